"""Exact forward passes that pay for every shared prefix once.

The G completions of a group share a prompt, and the prompts of one document share its text. Written one under
another, a batch repeats those tokens again and again. Here the sequences of a batch are merged into a *prefix tree*:
each distinct prefix is one token of one packed row, which attends to its own ancestors and to nothing else, at the
position it has in its sequence. A causal decoder gives every token of the tree exactly the hidden state it has in the
separate sequences, so log-probabilities and gradients are the same up to rounding, at a cost of
``P + G·R`` tokens instead of ``G·(P + R)``.

It asks of the model only what every Hugging Face decoder takes: a four-dimensional attention mask and position ids.
Sliding-window layers get the mask cut to their window. On a CPU the mask gives way to `tree_attention`, which does not
multiply what the mask hides, where the model lets its attention be chosen. `check_packing` compares with the plain
path on first use; where a model's attention ignores such masks (linear attention, some flash kernels) the plain path
is taken.

The language-model head runs only on tokens whose successor is asked for (`head`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethink.head import head_logprobs
from forethink.tree_attention import Plan, UnsupportedAttention, plan, tree_attention

_SPARE_PAIRS = 2048**2  # reckoned, not measured: ten milliseconds of an accelerator, or its launching of a small model


@dataclass(frozen=True)
class Pack:
    """A prefix tree laid out in one row of N tokens.

    Attributes:
        ids_t: token ids, int64 [N].
        positions_t: position of each token in its sequences, int64 [N].
        visible: bool [N, N]; ``visible[i, j]`` where j is i or an ancestor of i.
        sources: int64 [M], the packed index of the token before each asked-for token.
        targets: int64 [M], the asked-for token ids.
        members: which sequences lie in this pack, by their number in the batch.
        spans: for each member, its half-open range in ``sources`` and ``targets``.
        unpacked: number of tokens the sequences hold when written out one by one.
        plan: how `tree_attention` computes it; None leaves it to the model's own attention under the mask.
        rows: int64 [B, L], packed tokens of sequences that share nothing, one a row, -1 behind each: a batch padded on
            the right, where causal attention does not look. Nothing is in ``visible`` then.
    """

    ids_t: Tensor
    positions_t: Tensor
    visible: Tensor
    sources: Tensor
    targets: Tensor
    members: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    unpacked: int
    plan: Plan | None = None
    rows: Tensor | None = None

    @property
    def pairs(self) -> int:
        """Query-key pairs that a layer without window multiplies, masked or not; padding apart."""
        if self.rows is not None:
            return int(((self.rows >= 0).sum(1) ** 2).sum())
        return len(self.ids_t) ** 2 if self.plan is None else self.plan.pairs

    def to(self, device: torch.device | str) -> Pack:
        """The same pack on another device."""
        if self.ids_t.device == torch.device(device):
            return self
        names = ("ids_t", "positions_t", "visible", "sources", "targets", *(["rows"] if self.rows is not None else []))
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def spare_pairs(device: torch.device) -> int:
    """Query-key pairs that take a device as long as to launch a pass of its own over a tree; none on a CPU."""
    return 0 if device.type == "cpu" else _SPARE_PAIRS


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n


def pack(
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    max_tokens: int = 4096,
    share: bool = True,
    pairs_a_token: int = 1024,
    free_pairs: int = 0,
    tiled: bool = False,
) -> list[Pack]:
    """Merge sequences into prefix trees of at most ``max_tokens`` tokens (a longer sequence gets its own).

    Under a mask a tree of N tokens costs N² query-key pairs, hidden or not. There a sequence joins the tree before it
    only where the prefix it need not repeat, and a pass over a tree of its own, are worth more than the pairs it adds.

    Args:
        sequences: token ids, one list a sequence.
        starts: for each sequence, the index of the first token whose log-probability is asked for (≥ 1).
        max_tokens: size at which a tree is closed and a new one begun.
        share: False gives every sequence a tree of its own: the plain path, for checks and as fallback.
        pairs_a_token: pairs that take as long as one token takes in the linear layers, about twice the hidden size.
        free_pairs: pairs that take as long as to begin another pass; see `spare_pairs`.
        tiled: plan the trees for `tree_attention`, where pairs that do not see each other cost nothing.
    """
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i]))  # neighbours share the most
    packs: list[Pack] = []
    tree = _Tree(tiled)
    for number in order:
        sequence = sequences[number]
        if not 1 <= starts[number] < len(sequence):
            raise ValueError(f"sequence {number}: start {starts[number]} outside 1 … {len(sequence) - 1}")
        shared = _common_prefix(sequence, tree.last)
        size, fresh = len(tree.ids), len(sequence) - shared
        added = 0 if tiled else (size + fresh) ** 2 - size**2 - len(sequence) ** 2
        if tree.members and (not share or size + fresh > max_tokens or added > shared * pairs_a_token + free_pairs):
            packs.append(tree.close())
            tree = _Tree(tiled)
        tree.add(number, sequence, starts[number])
    if tree.members:
        packs.append(tree.close())
    return packs


class _Tree:
    def __init__(self, tiled: bool) -> None:
        self.tiled = tiled
        self.ends: list[int] = []  # past the last descendant of every token that has all of them
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.blocks: list[tuple[int, int, list[int]]] = []  # first and past-last new token, ancestors of the first
        self.sources: list[int] = []
        self.targets: list[int] = []
        self.members: list[int] = []
        self.spans: list[tuple[int, int]] = []
        self.last: Sequence[int] = ()
        self.path: list[int] = []
        self.unpacked = 0

    def add(self, number: int, sequence: Sequence[int], start: int) -> None:
        shared = _common_prefix(sequence, self.last)
        first = len(self.ids)
        self._end(self.path[shared:])
        self.ends.extend([0] * (len(sequence) - shared))
        self.path = self.path[:shared] + list(range(first, first + len(sequence) - shared))
        self.ids.extend(sequence[shared:])
        self.positions.extend(range(shared, len(sequence)))
        self.blocks.append((first, len(self.ids), self.path[:shared]))
        begin = len(self.sources)
        self.sources.extend(self.path[start - 1 : -1])
        self.targets.extend(sequence[start:])
        self.members.append(number)
        self.spans.append((begin, len(self.sources)))
        self.last = sequence
        self.unpacked += len(sequence)

    def _end(self, path: Sequence[int]) -> None:
        for index in path:
            self.ends[index] = len(self.ids)

    def close(self) -> Pack:
        n = len(self.ids)
        self._end(self.path)
        visible = torch.zeros(n, n, dtype=torch.bool)
        for first, past, ancestors in self.blocks:
            visible[first:past, first:past] = torch.ones(past - first, past - first, dtype=torch.bool).tril_()
            if ancestors:
                visible[first:past, torch.tensor(ancestors)] = True
        tensor = torch.tensor
        return Pack(
            tensor(self.ids), tensor(self.positions), visible, tensor(self.sources), tensor(self.targets),
            tuple(self.members), tuple(self.spans), self.unpacked,
            plan(self.ends, self.positions) if self.tiled else None,
        )  # fmt: skip


def attention_mask(config: Any, pack: Pack, dtype: torch.dtype, windowed: bool = True) -> Tensor | dict[str, Tensor]:
    """The four-dimensional mask [1, 1, N, N] of a pack, or one a kind of layer for models that mix windows.

    Without ``windowed`` the sliding layers' mask is the full one: for attention that sees to windows itself.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = set(getattr(text, "layer_types", None) or ())

    def shaped(visible: Tensor) -> Tensor:
        if getattr(config, "_attn_implementation", "sdpa") == "eager":
            return torch.where(visible, 0.0, torch.finfo(dtype).min).to(dtype)[None, None]
        return visible[None, None]

    full = sliding = shaped(pack.visible)
    if window is None:
        return full
    if windowed:
        distance = pack.positions_t[:, None] - pack.positions_t[None, :]
        sliding = shaped(pack.visible & (distance < window))
    if kinds:
        return {"full_attention": full, "sliding_attention": sliding}
    return sliding


def forward_pack(model: PreTrainedModel, pack: Pack, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of a pack's M asked-for tokens at a temperature, both fp32 [M]."""
    pack = pack.to(model.device)
    hidden = body_states(model, pack)
    return head_logprobs(model, hidden[pack.sources], pack.targets, temperature)


def body_states(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Hidden states after the last norm of every packed token, [N, D]."""
    if pack.rows is not None:
        ids = pack.ids_t[pack.rows.clamp(min=0)]
        padded: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return padded[pack.rows >= 0]
    with packed_attention(model, pack) as mask:
        output = model.base_model(
            input_ids=pack.ids_t[None], attention_mask=mask, position_ids=pack.positions_t[None], use_cache=False
        )
    return output.last_hidden_state[0]


def checkpoints_activations(model: PreTrainedModel) -> bool:
    """Whether the model runs its layers again in the backward pass."""
    for name in ("is_activation_checkpointing", "is_gradient_checkpointing"):  # transformers is renaming it
        if hasattr(model, name):
            return bool(getattr(model, name))
    return False


@contextlib.contextmanager
def packed_attention(model: PreTrainedModel, pack: Pack) -> Iterator[Tensor | dict[str, Tensor]]:
    """Let the model attend along a pack inside the ``with`` block; gives the mask to hand it there."""
    # Checkpointed layers run again outside this block, with the model's own attention: there the mask serves.
    tree = None if model.device.type != "cpu" or checkpoints_activations(model) else pack.plan
    with contextlib.nullcontext() if tree is None else tree_attention(model, tree):
        yield attention_mask(model.config, pack, model.dtype, windowed=tree is None)


def sequence_logprobs(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    temperature: float = 1.0,
    max_tokens: int = 4096,
    share: bool = True,
    tiled: bool = False,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield (sequence number, log-probabilities [R], entropies [R]), pack by pack; see `pack` for the arguments."""
    for one in pack(sequences, starts, max_tokens, share, tiled=tiled):
        logprobs, entropies = forward_pack(model, one, temperature)
        for member, (begin, end) in zip(one.members, one.spans, strict=True):
            yield member, logprobs[begin:end], entropies[begin:end]


@torch.no_grad()
def check_packing(
    model: PreTrainedModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    tolerance: float,
    tiled: bool = False,
) -> str | None:
    """Compare the tree with the model's own logits, sequence by sequence.

    Returns:
        None where every log-probability agrees within ``tolerance``, else one sentence that says what differs.
    """
    try:
        found = sequence_logprobs(model, sequences, starts, tiled=tiled)
        packed = {number: logprobs for number, logprobs, _ in found}
    except UnsupportedAttention as error:
        return f"{type(model).__name__} cannot attend along a tree ({error})"
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        return f"{type(model).__name__} does not take a four-dimensional attention mask ({error})"
    worst = 0.0
    for number, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        ids = torch.tensor([list(sequence)], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, start - 1 : -1].float()
        plain = logits.log_softmax(-1).gather(-1, ids[0, start:, None])[:, 0]
        worst = max(worst, float((plain - packed[number]).abs().max()))
    if worst <= tolerance:
        return None
    return f"{type(model).__name__}'s log-probabilities differ by {worst:.2g} between packed and plain sequences"

"""Two ways to decode rows of completions: groups against one copy of their prompt, and the plain one.

Both speak the same small language. ``arrange(keep, prompts, group)`` keeps some rows, drops the others, and adds
``group`` rows for every new prompt behind them; it returns the logits that follow each new prompt. ``step(tokens)``
feeds every row its newest token and returns the logits that follow it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethink.flops import Flops
from forethink.packing import pack, packed_attention, spare_pairs
from forethink.rollout.attention import NAME, GroupCache, PromptCache, Prompts
from forethink.tree_attention import UnsupportedAttention, chosen_attention
from forethink.types import first_line

PREFILL_TOKENS = 4096  # of a packed row of prompts


class Decoder(Protocol):
    """What the engine asks of a way to decode."""

    groups: int | None  # groups it can hold at once; None: any number
    flops: int  # operations done so far

    def arrange(self, keep: Sequence[int], prompts: Sequence[Sequence[int]], group: int) -> Tensor:
        """Logits [N, V] that follow each of the N new prompts."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] that follow the rows' tokens, int64 [R]."""
        ...


def layer_windows(model: PreTrainedModel) -> dict[int, int | None]:
    """The sliding window of every layer, from the configuration.

    Raises:
        UnsupportedAttention: a kind of layer that is neither full nor sliding-window attention.
    """
    text = model.config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention"] * text.num_hidden_layers
    other = set(kinds) - {"full_attention", "sliding_attention"}
    if other:
        raise UnsupportedAttention(f"it has layers of {', '.join(sorted(other))}")
    return {index: window if kind == "sliding_attention" else None for index, kind in enumerate(kinds)}


@functools.cache
def _capturing(device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.CUDAGraph]:
    """A stream to capture on, and a graph of little: its pool of memory serves all captures, one after another."""
    stream, anchor = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    ones = torch.ones(8, 8, device=device, dtype=torch.bfloat16)
    with torch.cuda.stream(stream):
        ones @ ones  # what the library sets up at its first product on a stream shall not lie in the pool
        stream.synchronize()
        anchor.capture_begin(capture_error_mode="thread_local")
        ones + ones
        anchor.capture_end()
    return stream, anchor


class CapturedStep:
    """A decoding step as a CUDA graph: launched as one instead of kernel by kernel.

    Args:
        forward: tokens, int64 [R], → logits [R, V]; reads and writes the same tensors at every call.
        tokens: the step's.
    """

    def __init__(self, forward: Callable[[Tensor], Tensor], tokens: Tensor) -> None:
        stream, anchor = _capturing(tokens.device)
        self.tokens, self.graph = tokens.clone(), torch.cuda.CUDAGraph()
        here = torch.cuda.current_stream(tokens.device)
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            # Other threads (a data loader's) may use the device meanwhile.
            self.graph.capture_begin(pool=anchor.pool(), capture_error_mode="thread_local")
            try:
                self.logits = forward(self.tokens)
            finally:
                self.graph.capture_end()
        here.wait_stream(stream)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [R, V], overwritten by the next call."""
        self.tokens.copy_(tokens)
        self.graph.replay()
        return self.logits


class GroupDecoder:
    """Every distinct prefix of the prompts is computed once, every prompt is held once; see `attention`."""

    groups: int | None = None

    def __init__(self, model: PreTrainedModel, captures: bool = True) -> None:
        self.model, self.flops, self._cost = model, 0, Flops.of(model)
        self.cache = GroupCache(model.device, layer_windows(model))
        self.captures = captures and model.device.type == "cuda"
        self._captured: CapturedStep | None = None  # of the rows as they are arranged now

    def arrange(self, keep: Sequence[int], prompts: Sequence[Sequence[int]], group: int) -> Tensor:
        if not prompts:
            self.cache.arrange(keep, None, group)
            return torch.empty(0, device=self.model.device)
        prefilled, logits = self._prefill(prompts)
        self.cache.arrange(keep, prefilled, group)
        return logits

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> tuple[Prompts, Tensor]:
        # A tree's sources are the nodes before each asked-for token: with one token more, that is the whole prompt.
        sequences = [[*prompt, 0] for prompt in prompts]
        last: list[Tensor] = [torch.empty(0)] * len(prompts)
        pairs: dict[int, list[Any]] = {}
        tiled, spare = self.model.device.type == "cpu", spare_pairs(self.model.device)
        for one in pack(sequences, [1] * len(sequences), PREFILL_TOKENS, free_pairs=spare, tiled=tiled):
            tree = one.to(self.model.device)
            paths = [tree.sources[begin:end] for begin, end in tree.spans]
            ends = torch.stack([path[-1] for path in paths])
            cache = PromptCache()
            with packed_attention(self.model, tree) as mask:
                logits = self.model(
                    input_ids=tree.ids_t[None],
                    attention_mask=mask,
                    position_ids=tree.positions_t[None],
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=ends,
                ).logits[0]
            if not cache.pairs:
                raise UnsupportedAttention("it does not use the cache it is given")
            self.flops += self._cost.forward(len(tree.ids_t), tree.pairs, len(logits))
            logits = logits if len(logits) == len(ends) else logits[ends]  # where it knows no logits_to_keep
            for member, path, logits_v in zip(tree.members, paths, logits, strict=True):
                last[member] = logits_v
                for layer, (key, value) in cache.pairs.items():
                    pairs.setdefault(layer, [None] * len(prompts))[member] = (key[0, :, path], value[0, :, path])
        return Prompts([len(prompt) for prompt in prompts], pairs), torch.stack(last)

    def step(self, tokens: Tensor) -> Tensor:
        positions = self.cache.begin()

        def forward(tokens: Tensor) -> Tensor:
            with chosen_attention(self.model, NAME):
                output = self.model(
                    input_ids=tokens[:, None], position_ids=positions, past_key_values=self.cache, use_cache=True
                )
            logits: Tensor = output.logits[:, -1]
            return logits

        logits = self._forward(forward, tokens)
        # Every row meets the places of its own tokens, and every group's widest number of rows those of all.
        groups, own = len(self.cache.lengths) * self.cache.widest, self.cache.capacity
        pairs = len(tokens) * own + groups * (max(self.cache.lengths) + own)
        self.flops += self._cost.forward(len(tokens), pairs, len(tokens))
        self.cache.end()
        return logits

    def _forward(self, forward: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        """The first step after rows were arranged is run as it is, which also warms up; the next one is captured."""
        if self.cache.moved:
            self._captured = None
        elif self.captures and self._captured is None:
            try:
                self._captured = CapturedStep(forward, tokens)
            except RuntimeError as error:
                self.captures = False
                warnings.warn(
                    f"{type(self.model).__name__}'s decoding is not captured as a CUDA graph ({first_line(error)}): "
                    "every kernel is launched by itself, which is slower.",
                    stacklevel=2,
                )
        return forward(tokens) if self._captured is None else self._captured(tokens)


class PlainDecoder:
    """One group after another on the model's own cache, expanded to the group: slow, and right for every model."""

    groups: int | None = 1

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.flops, self._cost = model, 0, Flops.of(model)
        self.cache: Any = None
        self.position = 0

    def arrange(self, keep: Sequence[int], prompts: Sequence[Sequence[int]], group: int) -> Tensor:
        if keep:
            assert not prompts  # one group at a time
            self.cache.batch_select_indices(torch.tensor(list(keep), device=self.model.device))
        if not prompts:
            return torch.empty(0, device=self.model.device)
        (prompt,) = prompts
        output = self.model(input_ids=torch.tensor([list(prompt)], device=self.model.device), use_cache=True)
        self.cache, self.position = output.past_key_values, len(prompt)
        self.cache.batch_repeat_interleave(group)
        self.flops += self._cost.forward(len(prompt), len(prompt) ** 2, output.logits.shape[1])
        logits: Tensor = output.logits[:, -1]
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        positions = torch.full_like(tokens, self.position)[:, None]
        output = self.model(
            input_ids=tokens[:, None], position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        self.position += 1
        self.flops += self._cost.forward(len(tokens), len(tokens) * self.position, len(tokens))
        logits: Tensor = output.logits[:, -1]
        return logits


@torch.no_grad()
def check_groups(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> str | None:
    """Compare two decoding steps of the longest and the shortest prompt with the model's own plain pass.

    Returns:
        None where the logits agree to rounding, else one sentence that says why groups cannot be decoded together.
    """
    by_length = sorted((list(prompt) for prompt in prompts), key=len)
    chosen = [by_length[-1], by_length[0]]
    group = 2
    sequences = [prompt for prompt in chosen for _ in range(group)]
    try:
        decoder = GroupDecoder(model)
        logits = decoder.arrange([], chosen, group).repeat_interleave(group, 0)
        for _ in range(2):
            top = logits.topk(group, -1).indices  # rows of a group part ways: one takes the best, one the second
            tokens = top.gather(-1, torch.arange(group, device=top.device).repeat(len(chosen))[:, None])[:, 0]
            sequences = [[*sequence, token] for sequence, token in zip(sequences, tokens.tolist(), strict=True)]
            logits = decoder.step(tokens)
    except (UnsupportedAttention, TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
        return f"{type(model).__name__} cannot decode groups against one copy of their prompt ({error})"
    for row, sequence in enumerate(sequences):
        ids = torch.tensor([sequence], device=model.device)
        plain = model(input_ids=ids, use_cache=False).logits[0, -1].double()
        plain, ours = plain - plain.mean(), logits[row].double() - logits[row].double().mean()
        error_size = float((plain - ours).norm() / plain.norm())
        if not error_size <= (1e-3 if model.dtype == torch.float32 else 0.05):
            return f"{type(model).__name__}'s logits differ by {error_size:.1%} when groups share one prompt"
    return None

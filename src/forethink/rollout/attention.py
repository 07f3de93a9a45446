"""Decoding many groups at once with every prompt's keys and values held once.

A group's G completions share their prompt. While they are decoded, the queries of all G (times the query heads of a
key-value head) meet the prompt's keys in one product, and each completion meets its own keys besides. One softmax runs
over both parts' scores, side by side. Plain products and a softmax (with a few dozen queries a prompt, torch's fused
CPU kernel takes twice as long), or compiled code that does the same, where this machine can (`kernels.takes`).

It reaches the model through the attention interface of transformers and a cache object: no model is patched. The
cache hands itself to the attention function as an attribute of the key tensor that it returns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, Cache

from forethink import kernels
from forethink.tree_attention import HARMLESS, UnsupportedAttention

NAME = "forethink_groups"
_TAG = "_forethink_groups"
_HIDDEN = -1e30  # a score no softmax sees, finite so that a fully hidden prompt gives no NaN
_FIRST_CAPACITY = 32


class PromptCache(Cache):
    """Collects the keys and values of one packed row of prompts, a pair a layer, each [1, heads, tokens, width]."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx in self.pairs:
            raise UnsupportedAttention(f"layer {layer_idx} writes its cache twice")
        self.pairs[layer_idx] = (key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


@dataclass(frozen=True)
class Prompts:
    """Prefilled prompts: keys and values by layer, one [heads, tokens, width] pair a prompt."""

    lengths: list[int]
    pairs: dict[int, list[tuple[Tensor, Tensor]]]


class _Layer:
    """One layer's keys and values: prompts [N, heads, P + capacity, width], completions [R, heads, capacity, width].

    Places that hold nothing are zero: a prompt's beyond its length, and all behind the longest prompt, which are there
    so that scores of both parts stand in one tensor and products need no copies of parts of tensors.
    """

    def __init__(self, prompt_k: Tensor, prompt_v: Tensor, own_k: Tensor, own_v: Tensor) -> None:
        self.prompt_k, self.prompt_v, self.own_k, self.own_v = prompt_k, prompt_v, own_k, own_v
        self.packed_v: Tensor | None = None  # the prompts' values as the kernels take them

    def grow(self) -> None:
        """Twice the capacity."""
        more = self.own_k.shape[2]
        self.prompt_k, self.prompt_v, self.own_k, self.own_v = (
            torch.nn.functional.pad(x, (0, 0, 0, more)) for x in (self.prompt_k, self.prompt_v, self.own_k, self.own_v)
        )


class GroupCache(Cache):
    """Keys and values of N groups and their R live completions, for decoding one token of each at a time.

    All completions of a group have the same number of own tokens (they start together). A completion is a row; its
    place among the queries of its group is its *slot*.
    """

    def __init__(self, device: torch.device, windows: dict[int, int | None]) -> None:
        super().__init__(layers=[])
        self.device = device
        self.windows = windows  # layer → sliding window, from the configuration
        self.by_layer: dict[int, _Layer] = {}
        self.lengths: list[int] = []  # prompt tokens, by group
        self.steps: list[int] = []  # own tokens already in the cache, by group
        self.group_of: list[int] = []  # by row
        self.capacity = 0  # places for own tokens
        self.moved = True  # whether tensors lie elsewhere than at the step before
        self._forget()

    def _forget(self) -> None:
        self._masks: dict[int | None, Tensor] = {}

    def arrange(self, keep: Sequence[int], fresh: Prompts | None, group: int) -> None:
        """Keep some rows, drop the rest with the groups that end empty, and add prompts with ``group`` rows each."""
        alive = sorted({self.group_of[row] for row in keep})
        renumber = {old: new for new, old in enumerate(alive)}
        new_lengths = fresh.lengths if fresh else []
        kept_groups, rows = self._counts(alive), self._counts(list(keep))
        added = len(new_lengths) * group
        lengths = [self.lengths[n] for n in alive] + new_lengths
        steps = [self.steps[n] for n in alive] + [0] * len(new_lengths)
        self.capacity = max([_FIRST_CAPACITY, *[2 ** (step).bit_length() for step in steps]])
        longest = max(self.lengths, default=0), max(lengths, default=0)
        for index in self.by_layer if self.by_layer else (fresh.pairs if fresh else ()):
            layer, pairs = self.by_layer.get(index), fresh.pairs[index] if fresh else []
            self.by_layer[index] = _Layer(
                *(_merge_prompts(layer, pairs, part, kept_groups, longest, self.capacity) for part in (0, 1)),
                *(_merge_rows(layer, pairs, part, rows, added, self.capacity) for part in (0, 1)),
            )
        base = len(alive)
        self.group_of = [renumber[self.group_of[row]] for row in keep]
        self.group_of += [base + n for n in range(len(new_lengths)) for _ in range(group)]
        self.lengths, self.steps = lengths, steps
        self._plan()

    def _plan(self) -> None:
        counts = [0] * len(self.lengths)
        places = []
        for n in self.group_of:
            places.append((n, counts[n]))
            counts[n] += 1
        self.widest = max(counts, default=0)
        slots = [n * self.widest + j for n, j in places]
        full = slots == list(range(len(self.lengths) * self.widest))
        self.slots = None if full else self._counts(slots)
        self.first_n = self._counts([0, *itertools.accumulate(counts)])  # a group's rows lie side by side
        self.rows = torch.arange(len(slots), device=self.device)
        # Counted on in place from step to step: a captured step reads them where they lie.
        self.length_n, self.step_n = self._counts(self.lengths)[:, None], self._counts(self.steps)[:, None]
        self.step_r = self._counts([self.steps[n] for n in self.group_of])
        self.position_r = self._counts([self.lengths[n] + self.steps[n] for n in self.group_of])[:, None]
        self.moved = True
        self._forget()

    def _counts(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.device)

    def begin(self) -> Tensor:
        """Make room for one more token of every row. Returns the position of each, int64 [R, 1]: its prompt's length
        and its own tokens so far; the same tensor at every step until rows are arranged anew.
        """
        longest = max(self.steps)
        # On a CPU, a slice is written faster than rows at places of their own.
        same = min(self.steps) == longest and self.device.type == "cpu"
        self.uniform = longest if same else None
        if longest == self.capacity:
            self.capacity *= 2
            for layer in self.by_layer.values():
                layer.grow()
            self.moved = True
        self._forget()
        return self.position_r

    def end(self) -> None:
        """Count the token just written."""
        self.steps = [step + 1 for step in self.steps]
        for counts in (self.step_n, self.step_r, self.position_r):
            counts.add_(1)
        self.moved = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        layer = self.by_layer[layer_idx]
        if self.uniform is not None:
            layer.own_k[:, :, self.uniform] = key_states[:, :, 0]
            layer.own_v[:, :, self.uniform] = value_states[:, :, 0]
        else:
            layer.own_k[self.rows, :, self.step_r] = key_states[:, :, 0]
            layer.own_v[self.rows, :, self.step_r] = value_states[:, :, 0]
        setattr(key_states, _TAG, (self, layer_idx))
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max((p + s for p, s in zip(self.lengths, self.steps, strict=True)), default=0)

    def mask(self, window: int | None, scores: Tensor) -> Tensor:
        """This step's additive mask, [N, 1, 1, places] as the scores' last dimension."""
        if window not in self._masks:
            lengths, steps, own = self.length_n, self.step_n, max(self.lengths)
            places = torch.arange(scores.shape[-1], device=self.device)
            hidden = torch.where(places < own, places >= lengths, places - own > steps)
            if window is not None:
                # A query at position q sees the keys at q-window+1 … q.
                position = torch.where(places < own, places, places - own + lengths)
                hidden |= position <= lengths + steps - window
            mask = scores.new_zeros(hidden.shape).masked_fill_(hidden, _HIDDEN)
            self._masks[window] = mask[:, None, None]
        return self._masks[window]

    def attend(
        self, layer_idx: int, query: Tensor, scaling: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attention of one token a row, [R, query heads, 1, width] → [R, 1, query heads, width]."""
        layer = self.by_layer[layer_idx]
        r, heads, _, width = query.shape
        query = query.reshape(r, layer.own_k.shape[1], -1, width)
        if softcap is None and kernels.takes(query, layer.own_k, layer.own_v):
            if layer.packed_v is None:
                layer.packed_v = kernels.packed_values(layer.prompt_v, self.length_n)
            counts, own_kv = (self.length_n, self.step_n, self.first_n), (layer.own_k, layer.own_v)
            out = kernels.group_attention(query, layer.prompt_k, layer.packed_v, *own_kv, counts, scaling, window)
            return out.view(r, 1, heads, -1)
        n, g, own = len(self.lengths), self.widest, max(self.lengths)  # where own tokens' places begin
        query = query * scaling
        scores = self._by_group(query, n, g) @ layer.prompt_k.transpose(-1, -2)
        scores[..., own:] = self._by_group(query @ layer.own_k.transpose(-1, -2), n, g)
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        weights = scores.add_(self.mask(window, scores)).softmax(-1)
        out = self._by_row(weights @ layer.prompt_v, g)
        out += self._by_row(weights[..., own:], g) @ layer.own_v
        return out.view(r, 1, heads, -1)

    def _by_group(self, rows: Tensor, n: int, g: int) -> Tensor:
        """[R, kv, rep, x] → [N, kv, g·rep, x]; zeros where a group has fewer rows than others."""
        if self.slots is not None:
            rows = rows.new_zeros(n * g, *rows.shape[1:]).index_copy_(0, self.slots, rows)
        return rows.unflatten(0, (n, g)).transpose(1, 2).flatten(2, 3)

    def _by_row(self, groups: Tensor, g: int) -> Tensor:
        """[N, kv, g·rep, x] → [R, kv, rep, x], contiguous."""
        rows = groups.unflatten(2, (g, -1)).transpose(1, 2).flatten(0, 1)
        return rows.contiguous() if self.slots is None else rows[self.slots]


def _merge_prompts(
    layer: _Layer | None,
    pairs: list[tuple[Tensor, Tensor]],
    part: int,
    kept: Tensor,
    longest: tuple[int, int],
    capacity: int,
) -> Tensor:
    """Keys or values of the prompts that stay and of new ones; ``longest`` is the longest prompt before and after."""
    old = None if layer is None else (layer.prompt_k, layer.prompt_v)[part]
    like = pairs[0][part] if old is None else old[0]
    merged = like.new_zeros(len(kept) + len(pairs), like.shape[0], longest[1] + capacity, like.shape[2])
    if old is not None and len(kept):
        length = min(longest)
        merged[: len(kept), :, :length] = old[kept, :, :length]
    for n, pair in enumerate(pairs, len(kept)):
        merged[n, :, : pair[part].shape[1]] = pair[part]
    return merged


def _merge_rows(
    layer: _Layer | None, pairs: list[tuple[Tensor, Tensor]], part: int, kept: Tensor, added: int, capacity: int
) -> Tensor:
    old = None if layer is None else (layer.own_k, layer.own_v)[part]
    like = pairs[0][part] if old is None else old[0]
    merged = like.new_zeros(len(kept) + added, like.shape[0], capacity, like.shape[2])
    if old is not None and len(kept):
        length = min(capacity, old.shape[2])
        merged[: len(kept), :, :length] = old[kept, :, :length]
    return merged


def group_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention function registered with transformers; works on a `GroupCache` alone.

    Raises:
        UnsupportedAttention: no group cache behind the keys, or an argument whose meaning is unknown here.
    """
    tagged: tuple[GroupCache, int] | None = getattr(key, _TAG, None)
    if tagged is None:
        raise UnsupportedAttention("its keys do not come straight from the cache")
    unknown = [name for name, value in kwargs.items() if value is not None and name not in HARMLESS]
    if unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(sorted(unknown))}")
    cache, layer_idx = tagged
    expected = cache.windows.get(layer_idx)
    if sliding_window != expected:
        raise UnsupportedAttention(f"layer {layer_idx} asks for a window of {sliding_window}, not {expected}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return cache.attend(layer_idx, query, scaling, sliding_window, softcap), None


AttentionInterface.register(NAME, group_attention)

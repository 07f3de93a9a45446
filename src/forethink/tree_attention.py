"""Attention over a prefix tree that computes (almost) only the pairs the tree has.

A packed row of N tokens (`packing`) has N² query-key pairs, of which a group of eight completions uses a quarter:
completions do not see each other. Here the row is cut into *tiles*: short runs of neighbouring queries that share
their ancestors. A tile's queries meet the keys of those ancestors, all visible, and the tile's own keys under a small
mask. The query heads of one key-value head are one product, so keys and values are never repeated.

Scores and softmax are fp32 whatever the inputs' type; the weights and all products with them run in it, as in torch's
fused kernel, and are made again in the backward pass. Where this machine can (`kernels.takes`), compiled code does the
same; `_TreeAttention` is what it is held to, and what serves elsewhere. It is an attention function registered with
transformers, so no model is patched.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel

from forethink import kernels

NAME = "forethink_tree"
TILE = 64  # queries in a tile, at most
# What attention functions are handed beside the arguments below and may pass over without changing the result.
HARMLESS = frozenset(
    {"position_ids", "position_embeddings", "use_cache", "output_attentions", "output_hidden_states", "is_causal",
     "cache_position", "return_dict", "num_items_in_batch", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
     "max_length_k"}
)  # fmt: skip


class UnsupportedAttention(Exception):
    """The model's attention does something that a path of ours does not know. The message says what."""


@contextlib.contextmanager
def chosen_attention(model: PreTrainedModel, name: str) -> Iterator[None]:
    """Let the model use another of transformers' attention functions inside the ``with`` block.

    Raises:
        UnsupportedAttention: its attention cannot be chosen.
    """
    before = model.config.get_text_config()._attn_implementation
    model.set_attn_implementation(name)
    if model.config.get_text_config()._attn_implementation != name:
        raise UnsupportedAttention("its attention cannot be chosen")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@dataclass(frozen=True)
class Tile:
    """Queries ``first … past - 1`` and the packed indices of the ancestors they all have, in order."""

    first: int
    past: int
    ancestors: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """One tile's work under one window.

    Attributes:
        keys: packed indices of the tokens its queries meet, int64 [L], ascending.
        mask: what to add to the scores, fp32 [m, L]; None where every query sees every key.
    """

    first: int
    past: int
    keys: Tensor
    mask: Tensor | None


@dataclass
class Plan:
    """The tiles of a tree, and their keys and masks by sliding window, made when first asked for.

    Attributes:
        tiles: in order; every token is a query of one tile.
        ends: int64 [N]; token i sees token j where ``j <= i < ends[j]``.
        positions_t: int64 [N].
    """

    tiles: list[Tile]
    ends: Tensor
    positions_t: Tensor
    _cuts: dict[int | None, list[Cut]] = field(default_factory=dict, repr=False)
    _ranges: dict[int | None, list[Tensor]] = field(default_factory=dict, repr=False)

    @property
    def pairs(self) -> int:
        """Query-key pairs that are multiplied in a layer without window."""
        return sum((t.past - t.first) * (len(t.ancestors) + t.past - t.first) for t in self.tiles)

    def cuts(self, window: int | None) -> list[Cut]:
        """The work of a layer, tile by tile."""
        if window not in self._cuts:
            self._cuts[window] = [self._cut(tile, window) for tile in self.tiles]
        return self._cuts[window]

    def ranges(self, window: int | None) -> list[Tensor]:
        """The same work as the kernels take it, int64: the tiles' first and past queries [T] each, where each tile's
        runs of keys begin [T + 1], and the runs' first and past keys.
        """
        if window not in self._ranges:
            runs = [_runs(self._keys(tile, window)) for tile in self.tiles]
            begins = [0, *itertools.accumulate(map(len, runs))]
            flat = [run for some in runs for run in some]
            tiles = [[tile.first for tile in self.tiles], [tile.past for tile in self.tiles]]
            columns = [*tiles, begins, [first for first, _ in flat], [past for _, past in flat]]
            self._ranges[window] = [torch.tensor(column) for column in columns]
        return self._ranges[window]

    def _keys(self, tile: Tile, window: int | None) -> Tensor:
        ancestors = torch.tensor(tile.ancestors, dtype=torch.long)
        if window is not None:  # the tile's first query is the first in its sequences too
            ancestors = ancestors[self.positions_t[ancestors] > self.positions_t[tile.first] - window]
        return torch.cat([ancestors, torch.arange(tile.first, tile.past)])

    def _cut(self, tile: Tile, window: int | None) -> Cut:
        queries, keys = torch.arange(tile.first, tile.past), self._keys(tile, window)
        hidden = (keys > queries[:, None]) | (queries[:, None] >= self.ends[keys])
        if window is not None:
            hidden |= self.positions_t[queries][:, None] - self.positions_t[keys] >= window
        mask = torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf) if bool(hidden.any()) else None
        return Cut(tile.first, tile.past, keys, mask)


def _runs(keys: Tensor) -> tuple[tuple[int, int], ...]:
    """Ascending indices as half-open ranges of neighbours."""
    breaks = (keys.diff() > 1).nonzero()[:, 0]
    firsts = torch.cat([keys[:1], keys[breaks + 1]])
    pasts = torch.cat([keys[breaks], keys[-1:]]) + 1
    return tuple(zip(firsts.tolist(), pasts.tolist(), strict=True))


def plan(ends: Sequence[int], positions: Sequence[int], tile: int | None = None) -> Plan:
    """Cut a tree in preorder into tiles.

    Args:
        ends: for every token the index behind its last descendant.
        positions: position of every token in its sequences.
        tile: queries in a tile, at most; `TILE` where not given.
    """
    tile = tile or TILE
    tiles: list[Tile] = []
    waiting: list[tuple[int, int, tuple[int, ...]]] = [
        (0, len(ends), ())
    ]  # ranges of whole subtrees with the same ancestors
    while waiting:
        at, past, ancestors = waiting.pop()
        begin = at
        while at < past and ends[at] - begin <= tile:  # neighbours that fit in one tile
            at = ends[at]
        if at > begin:
            tiles.append(Tile(begin, at, ancestors))
        else:  # a large subtree: its trunk, then what grows from it
            while at < ends[begin] and ends[at] == ends[begin] and at - begin < tile:
                at += 1
            tiles.append(Tile(begin, at, ancestors))
            if ends[begin] < past:
                waiting.append((ends[begin], past, ancestors))
            past, ancestors = ends[begin], (*ancestors, *range(begin, at))
        if at < past:
            waiting.append((at, past, ancestors))
    return Plan(tiles, torch.tensor(ends), torch.tensor(positions))


def _weights(query: Tensor, key: Tensor, cut: Cut, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """One tile's softmax weights, fp32 [K, rep · m, L], and the soft cap's slope at its scores where there is one.

    Scaled queries [K, rep, N, d] and keys [K, N, d] are fp32.
    """
    kv, rep, _, width = query.shape
    own = query[:, :, cut.first : cut.past].reshape(kv, -1, width)
    scores = torch.bmm(own, key.index_select(1, cut.keys).transpose(1, 2))
    slope = None
    if softcap is not None:
        scores = scores.div_(softcap).tanh_()
        slope = 1 - scores.square()
        scores = scores.mul_(softcap)
    if cut.mask is not None:
        scores.view(kv, rep, cut.past - cut.first, -1).add_(cut.mask)
    return torch.softmax(scores, -1), slope


class _TreeAttention(torch.autograd.Function):
    """Query [K, rep, N, d], key [K, N, d], value [K, N, e] of one dtype → [K, rep, N, e]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cuts: Sequence[Cut],
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        kv, rep, _, width = *query.shape[:3], value.shape[-1]
        out = query.new_empty(*query.shape[:3], width)
        with torch.autocast(query.device.type, enabled=False):
            query_f, key_f = query.float() * scale, key.float()
            for cut in cuts:
                weights = _weights(query_f, key_f, cut, softcap)[0].to(value.dtype)
                part = torch.bmm(weights, value.index_select(1, cut.keys))
                out[:, :, cut.first : cut.past] = part.view(kv, rep, -1, width)
        ctx.save_for_backward(query, key, value)
        ctx.rest = cuts, scale, softcap
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        cuts, scale, softcap = ctx.rest
        kv, rep, _, width = query.shape
        d_query = torch.empty_like(query)
        d_key, d_value = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (key, value))
        with torch.autocast(query.device.type, enabled=False):
            query_f, key_f = query.float() * scale, key.float()
            for cut in cuts:
                span = slice(cut.first, cut.past)
                weights, slope = _weights(query_f, key_f, cut, softcap)
                weights = weights.to(value.dtype)
                upstream = gradients[0][:, :, span].reshape(kv, -1, value.shape[-1])
                d_value.index_add_(1, cut.keys, torch.bmm(weights.transpose(1, 2), upstream).float())
                d_weights = torch.bmm(upstream, value.index_select(1, cut.keys).transpose(1, 2))
                d_scores = torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
                if slope is not None:
                    d_scores.mul_(slope)
                d_query[:, :, span] = torch.bmm(d_scores, key.index_select(1, cut.keys)).view(kv, rep, -1, width)
                own = query[:, :, span].reshape(kv, -1, width)
                d_key.index_add_(1, cut.keys, torch.bmm(d_scores.transpose(1, 2), own).float())
        return d_query.mul_(scale), d_key.mul_(scale).to(key.dtype), d_value.to(value.dtype), None, None, None


_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextlib.contextmanager
def tree_attention(model: PreTrainedModel, plan: Plan) -> Iterator[None]:
    """Let the model's attention follow a plan inside the ``with`` block."""
    token = _plan.set(plan)
    try:
        with chosen_attention(model, NAME):
            yield
    finally:
        _plan.reset(token)


def attend(
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
    """The attention function registered with transformers: query [1, H, N, d] → [1, N, H, e].

    Raises:
        UnsupportedAttention: no plan, dropout, or an argument whose meaning is unknown here.
    """
    plan = _plan.get()
    if plan is None or query.shape[0] != 1 or query.shape[2] != len(plan.ends) or key.shape[2] != len(plan.ends):
        raise UnsupportedAttention("its attention was called otherwise than with one packed row")
    unknown = [name for name, value in kwargs.items() if value is not None and name not in HARMLESS]
    if dropout or unknown:
        raise UnsupportedAttention(f"its attention takes {', '.join(sorted(unknown)) or 'dropout'}")
    if torch.is_autocast_enabled(query.device.type):  # as torch's own attention does
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    heads, width = query.shape[1], query.shape[-1]
    grouped = query[0].contiguous().view(key.shape[1], heads // key.shape[1], -1, width)
    scale = width**-0.5 if scaling is None else scaling
    # Taking a tile's keys from a transposed view would copy all of them every time.
    key, value = key[0].contiguous(), value[0].contiguous()
    if softcap is None and kernels.takes(grouped, key, value, widened=True):
        out: Tensor = kernels.TreeAttention.apply(grouped, key, value, plan, sliding_window, scale)
    else:
        out = _TreeAttention.apply(grouped, key, value, plan.cuts(sliding_window), scale, softcap)
    return out.reshape(1, heads, len(plan.ends), -1).transpose(1, 2), None


# Compiled layers call it as it is: there is nothing in it to join, and its plan is another at every call.
AttentionInterface.register(NAME, torch.compiler.disable(attend))

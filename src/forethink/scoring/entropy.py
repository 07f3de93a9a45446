"""Entropy of next-token distributions: tensor maths only.

With logits x over V tokens, m their maximum, e_v = exp(x_v - m) and s = Σ e_v (all in fp32), one pass of exponentials
gives every figure: log p_v = x_v - m - log s and, over the whole vocabulary, H = log s - Σ e_v (x_v - m) / s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forethink.kernels import row_sums

_BLOCKS = 64  # columns a block of the top-k search
_CACHED = 1 << 18  # fp32 elements worked on at once on a CPU: two such buffers stay in its second-level cache
_LARGE = 1 << 25  # the same on an accelerator
_FLOOR = -1e9  # a logit below the maximum that has no probability; finite, so that 0 · x is 0


class Stats(NamedTuple):
    """Figures of n positions, each tensor of shape [n]: fp32, nats; ``argmax`` int64."""

    entropy: Tensor  # over the top k, renormalised
    entropy_raw: Tensor  # the top k's share of the whole sum, not renormalised
    entropy_full: Tensor  # over the whole vocabulary
    argmax: Tensor  # the most probable token, the lowest id where several are equal
    logprob: Tensor  # of the target


def position_stats(logits_tv: Tensor, targets_t: Tensor, top_k: int) -> Stats:
    """Entropies, arg-max and the target's log-probability of every position.

    Entropy over the top 16 next tokens is the paper's filter (arXiv 2506.08007, section 3.2); it does not say
    whether it renormalises, so both are given. Every row is computed by itself, with the same operations wherever it
    stands, so its figures do not depend on the other rows.

    Args:
        logits_tv: float of any width, shape [n, V]; ``-inf`` is a token without probability.
        targets_t: int64, shape [n].
        top_k: tokens of the top-k entropies; the whole vocabulary where that is smaller.

    Returns:
        :class:`Stats`; NaN in the rows whose logits hold NaN or ``+inf``.
    """
    vocabulary = logits_tv.shape[1]
    top_k = min(top_k, vocabulary)
    sums = row_sums(logits_tv, top_k)
    top_values, top_ids, total, moment = _row_sums(logits_tv, top_k) if sums is None else sums
    targets = logits_tv.gather(1, targets_t[:, None])[:, 0].float()
    return _figures(top_values, top_ids, total, moment, targets, vocabulary)


def _row_sums(logits_tv: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`kernels.row_sums` in plain tensors."""
    count, vocabulary = logits_tv.shape
    device = logits_tv.device
    top_values = torch.empty(count, top_k, dtype=torch.float32, device=device)
    top_ids = torch.empty(count, top_k, dtype=torch.int64, device=device)
    total, moment = torch.empty(2, count, dtype=torch.float32, device=device)
    # A whole number of blocks, so that one view serves the search. A short last chunk runs at full size too: how
    # torch splits a sum may depend on the number of rows.
    width = -(-vocabulary // _BLOCKS) * _BLOCKS
    rows = max(1, (_CACHED if device.type == "cpu" else _LARGE) // width)
    shifted = torch.full((rows, width), _FLOOR, dtype=torch.float32, device=device)
    weights = torch.empty_like(shifted)
    for start in range(0, count, rows):
        span = slice(start, min(start + rows, count))
        used = span.stop - start
        shifted[:used, :vocabulary].copy_(logits_tv[span])
        values, ids = _top(shifted, top_k)
        top_values[span], top_ids[span] = values[:used], ids[:used]
        shifted.sub_(values[:, :1])
        torch.exp(shifted, out=weights)
        total[span] = weights.sum(-1)[:used]
        moment[span] = torch.mul(weights, shifted, out=weights).sum(-1)[:used]
        shifted[:, vocabulary:] = _FLOOR
    lost = moment.isnan() & ~total.isnan()
    if lost.any():  # 0 · -inf, where the model rules tokens out; e · log e is 0 there
        weights = (logits_tv[lost].float() - top_values[lost, :1]).exp()
        moment[lost] = torch.special.xlogy(weights, weights).sum(-1)
    return top_values, top_ids, total, moment


def _figures(
    top_values: Tensor, top_ids: Tensor, total: Tensor, moment: Tensor, targets: Tensor, vocabulary: int
) -> Stats:
    """Statistics from the top k [n, k], s [n], Σ e·(x - m) [n] and the targets' logits [n]."""
    highest = top_values[:, :1]
    argmax = torch.where(top_values == highest, top_ids, vocabulary - 1).amin(-1)
    log_total = total.log()
    top = (top_values - highest).clamp(min=_FLOOR)
    top_weights = top.exp()
    top_total = top_weights.sum(-1)
    entropy = top_total.log() - (top_weights * top).sum(-1) / top_total
    raw = (top_weights * (log_total[:, None] - top)).sum(-1) / total
    full = log_total - moment / total
    # Rounding can take a certain token's entropy just below 0.
    return Stats(
        entropy.clamp(min=0), raw.clamp(min=0), full.clamp(min=0), argmax, targets - highest[:, 0] - log_total
    )


def _top(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest values of every row and their columns, highest first.

    The k highest lie in the k blocks with the highest maxima, so only those are sorted: about ten times faster on a
    CPU than ``topk`` over the whole row.
    """
    blocks = logits.shape[1] // _BLOCKS
    if blocks <= 2 * k:
        values, ids = logits.topk(k, dim=-1)
        return values, ids
    maxima = logits.view(-1, _BLOCKS, blocks).amax(1)  # block j holds the columns j, j + blocks, …
    chosen = maxima.topk(k, dim=-1).indices
    offsets = torch.arange(_BLOCKS, device=logits.device) * blocks
    columns = (chosen[:, :, None] + offsets).flatten(1)
    values, order = logits.gather(1, columns).topk(k, dim=-1)
    return values, columns.gather(1, order)

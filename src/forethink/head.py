"""The language-model head without its cost: log-probabilities in chunks, logits made again in the backward pass.

Logits of [tokens × vocabulary] never exist as a whole. What some models do to their logits after the head is done
here too: a scale (Cohere, Granite) and a soft cap (Gemma).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

HEAD_CHUNK = 512  # rows of logits in memory at once
CPU_ROWS = 32  # on a CPU, rows of them in fp32 at once: caches hold them, and no large block of memory is asked for


class _HeadLogprobs(torch.autograd.Function):
    """log p(target) and entropy of one chunk of rows, keeping hidden states instead of logits for the backward pass.

    The softmax kernel is the one pass over the vocabulary that is fused and vectorised on CPU and GPU alike, so
    everything is derived from it: with p* the largest probability and z* its logit, the normaliser is z* − log p*,
    which cannot underflow, and d log p(target) / d logits = onehot(target) − p.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, config: Any
    ) -> tuple[Tensor, Tensor]:
        raw = _linear(hidden, weight, bias)
        logprobs, entropies = (hidden.new_empty(len(targets), dtype=torch.float32) for _ in range(2))
        for rows in _ranges(len(raw), _fp32_rows(raw)):
            logits = _finish(raw[rows], temperature, config)
            probabilities = torch.softmax(logits, -1)
            normaliser = logits.amax(-1) - probabilities.amax(-1).log()
            logprobs[rows] = logits.gather(-1, targets[rows, None])[:, 0] - normaliser
            entropies[rows] = normaliser - torch.linalg.vecdot(probabilities, logits)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.temperature, ctx.config = temperature, config
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        upstream = gradients[0][:, None]
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        capped = getattr(ctx.config.get_text_config(), "final_logit_softcapping", None)
        with torch.no_grad():
            slope = _linear(hidden, weight, bias)  # the logits, until their slopes are written over them
            for rows in _ranges(len(slope), _fp32_rows(slope)):
                logits = _finish(slope[rows], ctx.temperature, ctx.config)
                part = torch.softmax(logits, -1).mul_(-upstream[rows])
                part.scatter_add_(-1, targets[rows, None], upstream[rows])
                if capped is not None:  # d (cap · tanh(z / cap)) / dz = 1 − tanh²
                    part.mul_(1 - (logits * ctx.temperature / capped).square_())
                slope[rows] = part.mul_(logit_factor(ctx.config) / ctx.temperature)
            d_hidden = slope @ weight.to(hidden.dtype) if needs_hidden else None
            d_weight = (slope.T @ hidden).to(weight.dtype) if needs_weight else None
            d_bias = slope.sum(0).to(bias.dtype) if bias is not None and needs_bias else None
        return d_hidden, d_weight, d_bias, None, None, None


def logit_factor(config: Any) -> float:
    """The number a model multiplies its logits with: Cohere's scale, one over Granite's."""
    text = config.get_text_config()
    factor = 1.0 if getattr(text, "logit_scale", None) is None else float(text.logit_scale)
    return factor if getattr(text, "logits_scaling", None) is None else factor / float(text.logits_scaling)


def scaled(logits: Tensor, config: Any) -> Tensor:
    """What the model does to the head's output, in the output's dtype: the factor, then the soft cap."""
    factor = logit_factor(config)
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    logits = logits if factor == 1 else logits * factor
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _ranges(count: int, size: int) -> Iterator[slice]:
    """Neighbouring ranges of ``size`` rows, the last maybe shorter, that make up ``count``."""
    return (slice(begin, begin + size) for begin in range(0, count, size))


def _fp32_rows(logits: Tensor) -> int:
    """How many rows of a chunk are worked on in fp32 together."""
    return CPU_ROWS if logits.device.type == "cpu" else HEAD_CHUNK


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The head's output [M, V] in the dtype of hidden states [M, D]."""
    cast_bias = None if bias is None else bias.to(hidden.dtype)
    return torch.nn.functional.linear(hidden, weight.to(hidden.dtype), cast_bias)


def _finish(raw: Tensor, temperature: float, config: Any) -> Tensor:
    """Logits over the temperature, fp32, of the head's output, which may be overwritten."""
    logits = scaled(raw.float(), config)
    return logits if temperature == 1 else logits.div_(temperature)


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits [M, V] in fp32 of hidden states [M, D], as the model itself would give them. No gradient is kept."""
    head = model.get_output_embeddings()
    with torch.no_grad():
        return _finish(_linear(hidden, head.weight, getattr(head, "bias", None)), 1.0, model.config)


def head_logprobs(
    model: PreTrainedModel, hidden: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of ``targets`` [M] and (detached) entropies in nats [M] from hidden states [M, D], both fp32.

    Only `HEAD_CHUNK` rows of logits exist at once; the backward pass recomputes them. Under autocast the product
    runs in the autocast type, the softmax always in fp32.
    """
    head = model.get_output_embeddings()
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        hidden = hidden.to(torch.get_autocast_dtype(kind))
    bias = getattr(head, "bias", None)
    pieces = []
    with torch.autocast(kind, enabled=False):
        # One cast for all chunks, inside the graph: its backward adds the chunks' gradients to the master weight.
        weight = head.weight.to(hidden.dtype)
        for rows in _ranges(len(targets), HEAD_CHUNK):
            pieces.append(_HeadLogprobs.apply(hidden[rows], weight, bias, targets[rows], temperature, model.config))
    if not pieces:
        return hidden.new_zeros(0, dtype=torch.float32), hidden.new_zeros(0, dtype=torch.float32)
    logprobs, entropies = zip(*pieces, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)

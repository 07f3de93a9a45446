"""The one forward pass every training loop takes: packed log-probabilities through whatever wraps the model.

DistributedDataParallel and FSDP do their work when the wrapped module is *called*. So the packed pass is made
reachable as a keyword of the model's own ``forward`` (`install`), and is called through the wrapper (`packed`).
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from forethink.packing import Pack, check_packing, forward_pack, pack


def install(model: PreTrainedModel) -> None:
    """Let ``model(packs=[…], temperature=…)`` return log-probabilities and entropies, each [sum of M], fp32."""
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel, *args: Any, packs: Sequence[Pack] | None = None, temperature: float = 1.0, **kwargs: Any
    ) -> Any:
        if packs is None:
            return plain(*args, **kwargs)
        pieces = [forward_pack(self, one, temperature) for one in packs]
        return torch.cat([logprobs for logprobs, _ in pieces]), torch.cat([entropies for _, entropies in pieces])

    model.forward = types.MethodType(forward, model)  # type: ignore[method-assign]


def packed(
    model: torch.nn.Module, packs: Sequence[Pack], sequences: int, temperature: float = 1.0
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities and entropies of every sequence of the batch, in the batch's order, one tensor [R] each."""
    logprobs, entropies = model(packs=list(packs), temperature=temperature)
    by_sequence: list[tuple[Tensor, Tensor]] = [(logprobs[:0], entropies[:0])] * sequences
    offset = 0
    for one in packs:
        for member, (begin, end) in zip(one.members, one.spans, strict=True):
            rows = slice(offset + begin, offset + end)
            by_sequence[member] = (logprobs[rows], entropies[rows])
        offset += len(one.targets)
    return [lp for lp, _ in by_sequence], [entropy for _, entropy in by_sequence]


class Packer:
    """Makes packs, and on the first batch makes sure that this model may be given them.

    Args:
        model: the bare model, before any wrapper.
        max_tokens: size of a prefix tree.
    """

    def __init__(self, model: PreTrainedModel, max_tokens: int = 4096) -> None:
        self.model = model
        self.max_tokens = max_tokens
        self.share: bool | None = None
        self.reason: str | None = None  # why the plain path is taken, for the run's warnings

    def __call__(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Pack]:
        """Pack a batch; see `packing.pack`."""
        if self.share is None:
            # Two sequences with a common prefix are enough to show a mask that is not honoured.
            few = min(2, len(sequences))
            precise = self.model.dtype == torch.float32
            difference = check_packing(self.model, sequences[:few], starts[:few], 1e-3 if precise else 0.5)
            self.share = difference is None
            if difference is not None:
                self.reason = f"{difference}; every sequence is run alone, which is slower and equally right."
        return pack(sequences, starts, self.max_tokens, self.share)

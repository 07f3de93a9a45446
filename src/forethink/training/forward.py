"""The one forward pass every training loop takes: packed log-probabilities through whatever wraps the model.

DistributedDataParallel and FSDP do their work when the wrapped module is *called*. So the packed pass is made
reachable as a keyword of the model's own ``forward`` (`install`), and is called through the wrapper (`packed`).
"""

from __future__ import annotations

import contextlib
import functools
import types
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from forethink.packing import Pack, check_packing, forward_pack, pack, spare_pairs


def install(model: PreTrainedModel) -> None:
    """Let ``model(packs=[…], temperatures=[…])`` return log-probabilities and entropies, each [sum of M], fp32."""
    plain = model.forward

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        packs: Sequence[Pack] | None = None,
        temperatures: Sequence[float] = (),
        **kwargs: Any,
    ) -> Any:
        if packs is None:
            return plain(*args, **kwargs)
        pieces = [forward_pack(self, one, temperature) for one, temperature in zip(packs, temperatures, strict=True)]
        return torch.cat([logprobs for logprobs, _ in pieces]), torch.cat([entropies for _, entropies in pieces])

    model.forward = types.MethodType(forward, model)


def packed(
    model: torch.nn.Module, packs: Sequence[Pack], sequences: int, temperatures: Sequence[float] | None = None
) -> tuple[list[Tensor], list[Tensor]]:
    """Log-probabilities and entropies of every sequence of the batch, in the batch's order, one tensor [R] each.

    Args:
        model: the installed model in whatever wraps it.
        packs: the batch's packs.
        sequences: how many sequences the batch has.
        temperatures: one a pack; 1 where absent.
    """
    logprobs, entropies = model(packs=list(packs), temperatures=list(temperatures or [1.0] * len(packs)))
    by_sequence: list[tuple[Tensor, Tensor]] = [(logprobs[:0], entropies[:0])] * sequences
    offset = 0
    for one in packs:
        for member, (begin, end) in zip(one.members, one.spans, strict=True):
            rows = slice(offset + begin, offset + end)
            by_sequence[member] = (logprobs[rows], entropies[rows])
        offset += len(one.targets)
    return [lp for lp, _ in by_sequence], [entropy for _, entropy in by_sequence]


@contextlib.contextmanager
def _bare(model: PreTrainedModel) -> Iterator[None]:
    """The model's own forward, in its own precision: accelerate puts autocast around an instance's."""
    wrapped = model.__dict__.pop("forward", None)
    try:
        with torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        if wrapped is not None:
            model.__dict__["forward"] = wrapped


def base_of(model: torch.nn.Module) -> PreTrainedModel:
    """The bare model: below PEFT's wrapper where there is one."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


@torch.no_grad()
def inference_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """A policy's weights under the bare model's names: LoRA merged (the policy keeps it apart), shards gathered.

    Weights without LoRA are the model's own tensors, not copies. Tied weights appear once.
    """
    from peft.tuners.lora import LoraLayer

    base = base_of(model)
    weights = {}
    for name, parameter in base.named_parameters():
        if ".lora_" not in name and not name.startswith("lora_"):
            whole = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
            weights[name.replace(".base_layer.", ".")] = whole.detach()
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            key = f"{name}.weight"
            for adapter in module.active_adapters:
                weights[key] = weights[key] + module.get_delta_weight(adapter).to(weights[key].dtype)
    return weights


def batched(sequences: Sequence[Sequence[int]], starts: Sequence[int], max_tokens: int = 4096) -> list[Pack]:
    """Sequences that share nothing, in rows of like length, at most ``max_tokens`` a pack with their padding.

    For accelerators, on which a pass over one short sequence takes as long as one over many.
    """
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    packs: list[Pack] = []
    while order:
        width = len(sequences[order[0]])
        members, order = order[: max(1, max_tokens // width)], order[max(1, max_tokens // width) :]
        rows = torch.full((len(members), width), -1)
        ids: list[int] = []
        sources: list[int] = []
        targets: list[int] = []
        spans: list[tuple[int, int]] = []
        for row, number in zip(rows, members, strict=True):
            sequence, start, first, asked = sequences[number], starts[number], len(ids), len(targets)
            ids += sequence
            row[: len(sequence)] = torch.arange(first, len(ids))
            sources += range(first + start - 1, len(ids) - 1)
            targets += sequence[start:]
            spans.append((asked, len(targets)))
        positions = torch.cat([torch.arange(len(sequences[number])) for number in members])
        nothing = torch.empty(0, 0, dtype=torch.bool)
        packs.append(
            Pack(
                torch.tensor(ids), positions, nothing, torch.tensor(sources), torch.tensor(targets), tuple(members),
                tuple(spans), len(ids), rows=rows,
            )
        )  # fmt: skip
    return packs


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
        self.rows = False  # sequences that share nothing, as a padded batch
        self.tiled = False
        self.reason: str | None = None  # why the plain path is taken, for the run's warnings

    def __call__(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[Pack]:
        """Pack a batch; see `packing.pack`."""
        if self.rows:
            return batched(sequences, starts, self.max_tokens)
        if self.share is None:
            self._check(sequences, starts)
        width = self.model.config.get_text_config().hidden_size
        spare = spare_pairs(self.model.device)
        return pack(sequences, starts, self.max_tokens, self.share is True, 2 * width, spare, self.tiled)

    def _check(self, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        # Two sequences with a common prefix are enough to show a mask that is not honoured.
        few = min(2, len(sequences))
        tolerance = 1e-3 if self.model.dtype == torch.float32 else 0.5
        with _bare(self.model):
            if self.model.device.type == "cpu":
                self.tiled = check_packing(self.model, sequences[:few], starts[:few], tolerance, True) is None
            difference = None
            if not self.tiled:
                difference = check_packing(self.model, sequences[:few], starts[:few], tolerance)
        self.share = difference is None
        if difference is not None:
            self.reason = f"{difference}; every sequence is run alone, which is slower and equally right."

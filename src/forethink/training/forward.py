"""The one forward pass every training loop takes: packed log-probabilities through whatever wraps the model.

DistributedDataParallel and FSDP do their work when the wrapped module is *called*. So the packed pass is made
reachable as a keyword of the model's own ``forward`` (`install`), and is called through the wrapper (`packed`).

Between the products of a decoder layer lie some forty small operations, each of which reads and writes all tokens'
states. `torch.compile` joins them (`CompiledLayers`); the attention along a tree stays as it is.
"""

from __future__ import annotations

import contextlib
import functools
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from forethink.packing import Pack, check_packing, checkpoints_activations, forward_pack, pack, spare_pairs
from forethink.types import first_line

PAYS_FROM = 100  # steps of a training: on two cores one saves seconds at best, and compiling takes half a minute
SMALL = 10_000_000  # parameters of a model so small that its steps take no time to speak of
# Log-probabilities' root mean square difference, gradients' cosine. Not the largest difference: in bf16 that of some
# thousand tokens is now and then above 0.5, where 0.05 is the mean square's root (SmolLM2, 2,048 sampled tokens).
ALIKE = {torch.float32: (1e-4, 0.9999), torch.bfloat16: (0.2, 0.99)}


def compiles(asked: Literal["auto"] | bool, model: torch.nn.Module, steps: int) -> bool:
    """What ``model.compile`` means for a training of so many steps."""
    if asked != "auto":
        return asked
    parameters = list(model.parameters())
    large = sum(parameter.numel() for parameter in parameters) >= SMALL
    return parameters[0].device.type == "cpu" and large and steps >= PAYS_FROM


class CompiledLayers:
    """A model's decoder layers, compiled for passes with a gradient. Nothing else sees them compiled.

    The first pack is run both ways. Where compiling fails (no C++ compiler), or the two differ by more than rounding,
    a warning says so and the layers stay as they are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not next(model.get_input_embeddings().parameters()).requires_grad:
            layers = layers[1:]  # its input has no gradient, the others' has: it would be compiled for itself
        # Any number of tokens from the start, else the second length compiles anew. All layers share the result.
        self.forwards = [(layer, torch.compile(layer.forward, dynamic=True)) for layer in layers]
        self.checked = False

    @contextlib.contextmanager
    def use(self, pack: Pack, temperature: float) -> Iterator[None]:
        """Compiled layers inside the ``with`` block, where a gradient is wanted; the first pack checks them."""
        # Layers that the backward pass runs again are run outside this block: as they are, not compiled.
        if not torch.is_grad_enabled() or checkpoints_activations(self.model):
            yield
            return
        if not self.checked:
            self.checked = True
            trouble = self._trouble(pack, temperature)
            if trouble is not None:
                self.forwards = []
                warnings.warn(
                    f"{type(self.model).__name__}'s layers are not compiled ({trouble}); training is slower and "
                    "equally right. model.compile=false leaves out the attempt.",
                    stacklevel=2,
                )
        with self._compiled():
            yield

    @contextlib.contextmanager
    def _compiled(self) -> Iterator[None]:
        before = [layer.__dict__.get("forward") for layer, _ in self.forwards]
        for layer, forward in self.forwards:
            layer.forward = forward
        try:
            yield
        finally:
            for (layer, _), own in zip(self.forwards, before, strict=True):
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own

    def _trouble(self, pack: Pack, temperature: float) -> str | None:
        if not self.forwards:
            return "they are of no kind that transformers knows"
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        # The first layers' gradients have come through all others; the embedding's is left out for its size.
        first = sorted(trained[:16], key=torch.numel)[:8]

        def run() -> tuple[Tensor, Tensor]:
            logprobs, _ = forward_pack(self.model, pack, temperature)
            gradients = torch.autograd.grad(logprobs.sum(), first, allow_unused=True)
            return logprobs.detach(), torch.cat([g.float().flatten() for g in gradients if g is not None])

        logprobs, gradient = run()
        try:
            with self._compiled():
                found, slope = run()
        except Exception as error:  # whatever a compiler may raise, which is many kinds
            return first_line(getattr(error, "inner_exception", error))  # torch's own says who raised it alone
        apart = float((found - logprobs).square().mean().sqrt())
        cosine = float(torch.nn.functional.cosine_similarity(slope.double(), gradient.double(), dim=0))
        autocast = torch.is_autocast_enabled(self.model.device.type)
        most, least = ALIKE[torch.bfloat16 if autocast or self.model.dtype == torch.bfloat16 else torch.float32]
        if apart <= most and cosine >= least:
            return None
        return f"its log-probabilities differ by {apart:.2g}, its gradients' cosine is {cosine:.4f}"


def install(model: PreTrainedModel, compiled: bool = False) -> None:
    """Let ``model(packs=[…], temperatures=[…])`` return log-probabilities and entropies, each [sum of M], fp32."""
    plain = model.forward
    layers = CompiledLayers(model) if compiled else None

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
        with layers.use(packs[0], temperatures[0]) if layers and packs else contextlib.nullcontext():
            pieces = [forward_pack(self, one, t) for one, t in zip(packs, temperatures, strict=True)]
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

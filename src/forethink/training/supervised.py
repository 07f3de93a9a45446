"""Supervised training on token sequences: the warm start and the next-token baseline share this loop.

It is transformers' Trainer (so accelerate, FSDP, checkpoints, schedules and loggers come with it) with one change:
the sequences of a micro-batch are run as prefix trees, so examples that share a document pay for it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer

from forethink.flops import Flops
from forethink.training.forward import Packer, install, packed


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and the index of the first one that is learnt (1 for a plain document)."""

    ids: tuple[int, ...]
    start: int


class Examples(Dataset[Example]):
    """A list of examples in training order."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


class SupervisedTrainer(Trainer):
    """transformers' Trainer over `Examples`, in their given order, with shared prefixes.

    The loss is the mean negative log-likelihood over all learnt tokens of an optimiser step, whatever its split into
    micro-batches. ``flops`` counts the operations done so far.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("data_collator", list)
        super().__init__(*args, **kwargs)
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        install(base)
        self.packer = Packer(base)
        self.flops = 0
        self._cost = Flops.of(base)
        # The loss below is already a mean over the whole step's tokens; the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # type: ignore[arg-type]

    def _get_num_items_in_batch(self, batch_samples: list[list[Example]], device: torch.device) -> Tensor:
        learnt = sum(len(e.ids) - e.start for micro in batch_samples for e in micro)
        return self.accelerator.gather(torch.tensor(learnt, device=device)).sum()

    def _prepare_inputs(self, inputs: list[Example]) -> list[Example]:  # type: ignore[override]
        return inputs  # packs are moved to the device when they are run

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: list[Example],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum of −log p over the micro-batch's learnt tokens, over the step's number of learnt tokens."""
        sequences = [example.ids for example in inputs]
        packs = self.packer(sequences, [example.start for example in inputs])
        logprobs, _ = packed(model, packs, len(sequences))
        for one in packs:
            self.flops += self._cost.train(len(one.ids_t), len(one.ids_t) ** 2, len(one.targets))
        total = -torch.cat(logprobs).sum()
        count = num_items_in_batch if num_items_in_batch is not None else sum(len(lp) for lp in logprobs)
        return total * self.accelerator.num_processes / count  # DDP averages over processes; this is a sum

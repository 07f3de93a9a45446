"""Supervised training on token sequences: the warm start and the next-token baseline share this loop.

It is transformers' Trainer (so accelerate, FSDP, checkpoints, schedules and loggers come with it) with one change:
the sequences of a micro-batch are run as prefix trees, so examples that share a document pay for it once.
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from forethink.device import multiplies_bf16
from forethink.flops import Flops
from forethink.rundir import RunDir, write_atomic
from forethink.spent import totals
from forethink.training.checkpoints import SPENT, mark_complete, newest_checkpoint, save_model, step_of, with_lora
from forethink.training.forward import Packer, base_of, compiles, install, packed
from forethink.types import ForethinkError


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids, and the index of the first one that is learnt (1 for a plain document).

    ``text`` are token ids of a plain text that is learnt beside it, at the trainer's ``ntp_weight``; often none.
    """

    ids: tuple[int, ...]
    start: int
    text: tuple[int, ...] = ()


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
    micro-batches, plus ``ntp_weight`` times the same mean over the tokens of the examples' texts. A gradient that is
    no number stops training before the optimiser sees it.

    Args:
        spent: where tokens, FLOPs and seconds are counted, cumulative; a new counter where absent.
        ntp_weight: λ of λ·NTP on the examples' texts.
        compile: see `forward.compiles`.
    """

    def __init__(
        self,
        *args: Any,
        spent: Counter[str] | None = None,
        ntp_weight: float = 0.0,
        compile: Literal["auto"] | bool = False,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("data_collator", list)
        super().__init__(*args, **kwargs)
        base = base_of(cast(torch.nn.Module, self.model))
        install(base, compiles(compile, base, self.args.max_steps))
        self.packer = Packer(base)
        self.spent: Counter[str] = Counter() if spent is None else spent
        self.ntp_weight = ntp_weight
        self._text_tokens = torch.ones(())  # learnt ones of the step's texts, over all processes
        self.cost = Flops.of(base)
        self._started: float | None = None
        # The loss below is already a mean over the whole step's tokens; the Trainer must not divide it again.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)  # type: ignore[arg-type]

    def _get_num_items_in_batch(self, batch_samples: list[list[Example]], device: torch.device) -> Tensor:
        examples = [example for micro in batch_samples for example in micro]
        learnt = sum(len(e.ids) - e.start for e in examples), sum(len(e.text) - 1 for e in examples if e.text)
        counts = self.accelerator.gather(torch.tensor([learnt], device=device)).sum(0)
        self._text_tokens = counts[1].clamp(min=1)
        return counts[0]

    def _prepare_inputs(self, inputs: list[Example]) -> list[Example]:  # type: ignore[override]
        return inputs  # packs are moved to the device when they are run

    def compute_loss(  # type: ignore[override]
        self,
        model: torch.nn.Module,
        inputs: list[Example],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Sum of −log p over the micro-batch's learnt tokens over the step's number of them; texts besides."""
        texts = [example.text for example in inputs if example.text] if self.ntp_weight else []
        sequences = [*(example.ids for example in inputs), *texts]
        packs = self.packer(sequences, [example.start for example in inputs] + [1] * len(texts))
        logprobs, _ = packed(model, packs, len(sequences))
        for one in packs:
            self.spent["tokens/update"] += len(one.ids_t)
            self.spent["flops/update"] += self.cost.train(len(one.ids_t), one.pairs, len(one.targets))
        own = logprobs[: len(inputs)]
        count = num_items_in_batch if num_items_in_batch is not None else sum(len(lp) for lp in own)
        loss = -torch.cat(own).sum() / count
        if texts:
            loss = loss - self.ntp_weight * torch.cat(logprobs[len(inputs) :]).sum() / self._text_tokens
        return loss * self.accelerator.num_processes  # DDP averages over processes; this is a sum

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise ForethinkError(
                f"{Path(str(self.args.output_dir)).parent}: the gradient is not a number at step "
                f"{self.state.global_step + 1}; lower the learning rate and start again in another folder."
            )
        return cast("float | None", norm)

    def tick(self) -> float:
        """Seconds of training so far, those before a resume included; also kept in ``spent``."""
        if self._started is not None:
            now = time.monotonic()
            self.spent["seconds"] += now - self._started  # type: ignore[assignment]
            self._started = now
        return self.spent["seconds"]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's train, between the start and the stop of the clock."""
        self._started = time.monotonic()
        output = super().train(*args, **kwargs)
        self.tick()
        self._started = None
        return output


def train_to_end(trainer: SupervisedTrainer, log: Log, tokenizer: PreTrainedTokenizerBase, run: RunDir) -> int:
    """Train, from the newest complete checkpoint where there is one, and write ``<run>/model``.

    Remove ``<run>/checkpoints`` when the run is marked as done, not before.

    Returns:
        The number of steps.
    """
    trainer.add_callback(log)
    # The Trainer prints its logs as dictionaries; the run folder and one readable line a log take their place.
    trainer.remove_callback(PrinterCallback)
    checkpoint = newest_checkpoint(run.path / "checkpoints")
    done = 0 if checkpoint is None else step_of(checkpoint)
    run.truncate("metrics", lambda record: record["step"] <= done)
    if checkpoint is not None:
        trainer.spent.clear()
        trainer.spent.update(json.loads((checkpoint / SPENT).read_text(encoding="utf-8")))
        print(f"resuming from step {done}", flush=True)
    output = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    save_model(trainer.accelerator.unwrap_model(trainer.model), tokenizer, run.path / "model")
    return int(output.global_step)


def supervise(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    run: RunDir,
    *,
    learning_rate: float,
    batch: int,
    micro_batch: int,
    seed: int,
    lora_rank: int = 0,
    ntp_weight: float = 0.0,
    save_every: int = 50,
    stop: Callable[[int, float], bool] | None = None,
    spent: Counter[str] | None = None,
    compile: Literal["auto"] | bool = False,
) -> dict[str, Any]:
    """Train on the examples once and write ``<run>/model``; see `train_to_end`.

    Args:
        model: fp32 master weights, changed in place.
        examples: in training order; neighbours share prefixes.
        batch: examples an optimiser step, over all processes.
        micro_batch: examples a backward pass.
        ntp_weight: weight of the next-token loss on the examples' texts.
        stop: asked after every step with the step and the seconds trained so far; True ends training.
        spent: what was spent before, to which this adds; a resumed run replaces it by what its checkpoint says.

    Returns:
        Steps, examples, and learnt tokens' loss at the end.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    accumulation = max(1, batch // (micro_batch * processes))
    steps = max(1, len(examples) // (micro_batch * accumulation * processes))
    arguments = TrainingArguments(
        output_dir=str(run.path / "checkpoints"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=min(10, steps // 10 + 1),
        weight_decay=0.01,
        # A tiny model's products are too small to gain by it.
        bf16=multiplies_bf16(model.device) and model.num_parameters() > 10_000_000,
        use_cpu=model.device.type == "cpu",
        seed=seed,
        logging_nan_inf_filter=False,
        logging_steps=min(5, steps),  # a short run logs its last step too
        save_strategy="steps",
        save_steps=save_every,
        save_total_limit=2,
        report_to=[],
        disable_tqdm=not sys.stderr.isatty(),
        remove_unused_columns=False,
        dataloader_drop_last=True,
    )
    trained = with_lora(model, lora_rank, seed=seed) if lora_rank else model
    trainer = SupervisedTrainer(
        model=trained, args=arguments, train_dataset=Examples(examples), spent=spent, ntp_weight=ntp_weight,
        compile=compile,
    )  # fmt: skip
    log = Log(run, trainer, stop)
    done = train_to_end(trainer, log, tokenizer, run)
    return {"steps": done, "examples": done * micro_batch * accumulation * processes, "loss": log.loss}


class Log(TrainerCallback):
    """metrics.jsonl, one line in the terminal a log, whole checkpoints, and the caller's stop."""

    def __init__(
        self, run: RunDir, trainer: SupervisedTrainer, stop: Callable[[int, float], bool] | None = None
    ) -> None:
        self.run, self.trainer, self.stop = run, trainer, stop
        self.loss = float("nan")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        self.loss = logs["loss"]
        self.trainer.tick()
        record = {"step": state.global_step, **totals(self.trainer.spent), **logs}
        record["seconds"] = round(record["seconds"], 3)
        record.pop("epoch", None)
        self.run.append("metrics", [record])
        self.show(record, state.max_steps)

    def show(self, record: dict[str, Any], steps: int) -> None:
        """A line in the terminal."""
        print(f"step {record['step']}/{steps}: loss {self.loss:.3f}, {record['seconds']:.0f} s", flush=True)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_atomic(folder / SPENT, json.dumps(self.trainer.spent) + "\n")
        mark_complete(folder)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stop is not None and self.stop(state.global_step, self.trainer.tick()):
            control.should_training_stop = True

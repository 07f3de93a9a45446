"""The training stage: `<run>/problems` and a policy in, `<run>/train/model` out."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forethink.config import Config
from forethink.recipe import stage_folder
from forethink.records import problems_metadata, read_problems
from forethink.rundir import RunDir, hash_file
from forethink.types import ForethinkError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import GRPOConfig

    from forethink.rollout import Engine, Stop
    from forethink.templates import Template
    from forethink.training.groups import Group, Hooks, Task
    from forethink.training.grpo import ReinforcementTrainer

SECTIONS = ("model", "template", "reward", "rollout", "train", "trl")


def run_train(config: Config) -> Path:
    """The stage. Resumes from the newest complete checkpoint; finished work is kept.

    Raises:
        ForethinkError: no problems, or too few; problems made with another tokenizer; a key in `[trl]` that is
            forethink's own; a gradient that is no number.
        SystemExit: 130 after an interrupt; the same command goes on.
    """
    return run_stage(Stage, config, Path(config.run) / "train")


def run_stage(kind: type[Stage], config: Config, path: Path) -> Path:
    """Run a stage, or leave it as it is where it was finished before; an interrupt says where it goes on."""
    try:
        stage = kind(config, path)
        if not stage.done:
            stage.train()
    except KeyboardInterrupt:
        from forethink.training.checkpoints import step_of

        found = sorted(step_of(p.parent) for p in path.glob("checkpoints/checkpoint-*/complete"))
        print(f"interrupted: the same command goes on from step {[0, *found][-1]}", file=sys.stderr)
        raise SystemExit(130) from None
    return path


class Stage:
    """One run of the stage: what is loaded, and how the parts are joined. `finetune` says what is other there."""

    name = "train"
    sections: tuple[str, ...] = SECTIONS
    remedy = "choose other positions (problems.selector) or a longer warm start"  # against groups without signal

    def __init__(self, config: Config, path: Path) -> None:
        from forethink.models import model_inputs
        from forethink.training.checkpoints import goes_on

        self.config, self.path = config, path
        self.main = int(os.environ.get("RANK", "0")) == 0
        self.checkpoints = self.path / "checkpoints"
        inputs = self._inputs()  # first: it says what is missing
        self.start, self.adapter = self._start()
        self.goes_on = goes_on(self.adapter, config.train.lora_rank)
        inputs |= model_inputs(self.start, self.adapter)
        self.run = RunDir(self.path, self.name, config, self.sections, inputs) if self.main else None

    def _inputs(self) -> dict[str, str]:
        """Hashes of what the stage reads, models apart."""
        self.problems_folder = stage_folder(self.config, "problems")
        file = self.problems_folder / "train.parquet"
        if not file.is_file():
            raise ForethinkError(f"{file}: no such problems; run `forethink problems` with the same run=… first.")
        named = (self.config.reward.name, self.config.template.name)
        own = (Path(name.rpartition(":")[0] or name) for name in named)
        return {str(file): hash_file(file)} | {str(path): hash_file(path) for path in own if path.is_file()}

    @property
    def done(self) -> bool:
        """True where this very run was finished before, told alike to every process."""
        if self.run is not None:
            return self.run.done
        record = self.path / "run.json"
        return record.exists() and json.loads(record.read_text(encoding="utf-8"))["status"] == "done"

    def _start(self) -> tuple[str, str | None]:
        """The weights training starts from: a model, and an adapter that it goes on with or merges (`goes_on`)."""
        from forethink.training.checkpoints import starting_point

        start = self.config.train.start
        if start is None:  # a start that is named needs no warm start, so a parent's may be of another recipe
            warm = stage_folder(self.config, "warmup") / "model"
            start = str(warm) if warm.is_dir() else None
        return starting_point(self.config.model, start)

    def train(self) -> None:
        """Load, train, save."""
        import torch
        from transformers.utils import logging

        from forethink.device import keep_memory
        from forethink.training.forward import base_of
        from forethink.training.settings import grpo_settings, training_order

        keep_memory(self.config.model.device)
        if not sys.stderr.isatty():
            logging.disable_progress_bar()  # of every file it writes; in a log they are noise
        tokenizer = self._tokenizer()
        problems = self._problems(tokenizer)
        device = self.config.model.device
        cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
        settings = grpo_settings(self.config, self.checkpoints, cpu)
        order = training_order(len(problems), self.config.train.steps, self.config.train.problems, self.config.seed)
        # settings.device is this process's own; reading it starts the process group.
        model = self._model(torch.float32, str(settings.device))
        engine, hooks = self._engine(model, tokenizer), self._hooks(base_of(model), tokenizer)
        trainer = make_trainer(self.config, problems, order, settings, tokenizer, model, engine, hooks)
        trainer.on_groups = self._write_samples
        self._train_and_save(trainer, tokenizer)

    def _problems(self, tokenizer: PreTrainedTokenizerBase) -> Sequence[Task]:
        from forethink.models import fingerprint
        from forethink.training.settings import drawn

        problems = read_problems(self.problems_folder, "train")
        if not problems:
            raise ForethinkError(f"{self.problems_folder}: the training split is empty; take more documents.")
        made = problems_metadata(self.problems_folder, "train").get("fingerprint")
        if made != fingerprint(tokenizer):
            raise ForethinkError(
                f"{self.problems_folder}: its problems were made with another tokenizer than that of {self.start}; "
                "make them again with this policy."
            )
        return drawn(problems, self.config.train.limit, self.config.seed)

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from forethink.models import load_tokenizer

        return load_tokenizer(self.start, trust_remote_code=self.config.model.trust_remote_code)

    def _template(self) -> Template:
        from forethink.templates import load_template

        return load_template(self.config.template.name)

    def _stop(self, tokenizer: PreTrainedTokenizerBase) -> Stop | None:
        """What ends a completion; None: its first closed box."""
        return None

    def _hooks(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Hooks:
        from forethink.training.scores import next_token_hooks

        return next_token_hooks(self.config, model, tokenizer)

    def _model(self, dtype: torch.dtype, device: str) -> PreTrainedModel:
        import torch

        from forethink.models import load_model

        knobs = self.config.train
        if knobs.precision == "pure_bf16":
            dtype = torch.bfloat16
            if self.run is not None:
                self.run.warn(
                    f"train.precision=pure_bf16: weights of 8 bits' precision swallow a learning rate of "
                    f"{knobs.learning_rate:g} nearly whole: an update under half a unit in the last place is lost; "
                    "use bf16, which keeps fp32 master weights"
                )
        return load_model(
            self.start,
            adapter=self.adapter,
            merge=not self.goes_on,
            dtype=dtype,
            device=device,
            trust_remote_code=self.config.model.trust_remote_code,
        )

    def _engine(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Engine:
        """The engine over weights of its own: the trainer changes how its model is called."""
        import torch

        from forethink.device import computes_in_bf16
        from forethink.rollout import make_engine
        from forethink.training.checkpoints import merged

        rollout, stop = self.config.rollout, self._stop(tokenizer)
        thought_open = self._template().opens_thought(tokenizer)
        if rollout.engine == "vllm" and self.adapter is None:
            return make_engine(rollout, self.start, tokenizer, stop, thought_open=thought_open)
        twin = merged(model)
        dtype = torch.bfloat16 if computes_in_bf16(self.config.train.precision, model.device) else torch.float32
        for parameter in twin.parameters():  # not .to(dtype): buffers such as rotary frequencies stay precise
            parameter.requires_grad_(False)
            parameter.data = parameter.data.to(dtype)
        return make_engine(rollout, twin, tokenizer, stop, thought_open=thought_open)

    def _write_samples(self, step: int, groups: list[Group]) -> None:
        from accelerate.utils import gather_object  # type: ignore[import-untyped]

        from forethink.training.groups import sample_records

        lines = gather_object(sample_records(step, groups))
        if self.run is not None:
            self.run.append("samples", lines)

    def _train_and_save(self, trainer: ReinforcementTrainer, tokenizer: PreTrainedTokenizerBase) -> None:
        from forethink.training.checkpoints import SPENT, Keep, newest_checkpoint, save_model, step_of
        from forethink.training.progress import Progress

        if self.main:
            newest_checkpoint(self.checkpoints)  # removes torn ones, once
        trainer.accelerator.wait_for_everyone()
        checkpoint = newest_checkpoint(self.checkpoints)
        done = 0 if checkpoint is None else step_of(checkpoint)
        if checkpoint is not None and self.main:
            trainer.spent = Counter(json.loads((checkpoint / SPENT).read_text(encoding="utf-8")))
        if self.run is not None:
            for log in ("metrics", "samples"):
                self.run.truncate(log, lambda record: record["step"] <= done)
            if checkpoint is not None:
                print(f"resuming from step {done}", file=sys.stderr, flush=True)
        whole = self.adapter is not None and not self.goes_on  # an adapter upon merged weights would load onto others
        progress = Progress(self.run, self.config.train.degenerate_alarm, self.remedy)
        trainer.add_callback(progress)
        every = self.config.train.keep_every
        if every is not None and self.main:
            trainer.add_callback(Keep(trainer, tokenizer, self.path, lambda step: step % every == 0, whole))
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finally:
            progress.close()
        spent = trainer.total_spent()
        if self.run is not None:
            if trainer.packer.reason is not None:
                self.run.warn(trainer.packer.reason)
            save_model(trainer.accelerator.unwrap_model(trainer.model), tokenizer, self.path / "model", whole)
            self.run.finish({"steps": self.config.train.steps, **spent})
            shutil.rmtree(self.checkpoints, ignore_errors=True)  # of no use beside the final weights
        trainer.accelerator.wait_for_everyone()


def make_trainer(
    config: Config,
    problems: Sequence[Task],
    order: list[int],
    settings: GRPOConfig,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    engine: Engine,
    hooks: Hooks | None = None,
) -> ReinforcementTrainer:
    """Join hooks, engine and model into a trainer.

    Args:
        config: the resolved configuration.
        problems: the training split.
        order: indices of problems in training order, a whole number of steps (`settings.training_order`).
        settings: TRL's configuration, from `settings.grpo_settings`.
        tokenizer: the policy's.
        model: fp32 master weights, changed in place; with LoRA adapters already where training goes on with them.
        engine: over weights of its own.
        hooks: how problems are asked, read and judged; `next_token_hooks` when absent.
    """
    from datasets import Dataset
    from transformers import PrinterCallback

    from forethink.tokens import document_start
    from forethink.training.checkpoints import with_lora
    from forethink.training.grpo import ReinforcementTrainer
    from forethink.training.scores import next_token_hooks

    knobs = config.train
    hooks = hooks or next_token_hooks(config, model, tokenizer)  # first: what scores by the start copies it as it is
    trainer = ReinforcementTrainer(
        model=with_lora(model, knobs.lora_rank, config.seed) if knobs.lora_rank else model,
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": [""] * len(order), "index": order}),
        processing_class=tokenizer,
        problems=problems, engine=engine, hooks=hooks, bos=document_start(tokenizer), compile=config.model.compile,
        dynamic_from=knobs.dynamic_sampling_from, refill=knobs.refill, ntp_weight=knobs.ntp_weight,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # its dictionaries give way to Progress
    return trainer

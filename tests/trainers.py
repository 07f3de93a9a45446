"""What the trainer's tests share: problems over a small text, a trainer that tells its gradients, a run folder."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from forethink.config import Config, load_config
from forethink.models import encode_document, fingerprint, token_bytes
from forethink.records import write_problems
from forethink.types import Problem

TEXT = (
    "The cat sat on the mat. The dog sat on the log, and then the cat saw the dog run over the hill to the red barn "
    "near the old mill."
)


def make_problems(tokenizer: Any, documents: int = 1, every: int = 4) -> list[Problem]:
    """Problems at every fourth token of a few texts that begin alike."""
    problems = []
    for d in range(documents):
        text = TEXT if d == 0 else f"Story {d}. {TEXT}"
        ids, ends = encode_document(tokenizer, text, token_bytes(tokenizer))
        data = text.encode()
        for i in range(8, len(ids) - 4, every):
            at = ends[i - 1]
            problems.append(
                Problem(
                    id=f"doc{d}:{i}", document=f"doc{d}", index=i, split="train", context=data[:at],
                    context_ids=tuple(ids[:i]), target=data[at : ends[i + 3]], target_ids=tuple(ids[i : i + 4]),
                    token_ends=tuple(end - at for end in ends[i : i + 4]), entropy=1.0, entropy_raw=1.0,
                    entropy_full=1.0, logprob=-1.0, argmax_bytes=b" the",
                )
            )  # fmt: skip
    return problems


def configure(run: Path, *overrides: str) -> Config:
    return load_config(None, [f"run={run}", "train.precision=fp32", "model.device=cpu", *overrides])


class Watch(TrainerCallback):
    """Keeps the gradients of every step, and weights and optimiser state as they were after it."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.gradients: list[dict[str, torch.Tensor | None]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.optimizer: list[dict[str, Any]] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        named = self.model.named_parameters()
        self.gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in named})

    def on_step_end(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        self.weights.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
        self.optimizer.append(copy.deepcopy(optimizer.state_dict()))


def trainer_of(
    folder: Path,
    model: Any,
    tokenizer: Any,
    problems: Sequence[Problem],
    engine: Any,
    *overrides: str,
    order: Sequence[int] | None = None,
) -> tuple[Any, Watch]:
    """The real trainer on a copy of a model: one step over all problems, unless an order is given."""
    from forethink.training.settings import grpo_settings
    from forethink.training.train import make_trainer

    order = list(range(len(problems))) if order is None else list(order)
    config = configure(
        folder,
        f"train.problems={len(problems)}",
        "train.steps=1",
        "train.max_grad_norm=0",
        "rollout.group=4",
        *overrides,
    )
    settings = grpo_settings(config, folder, cpu=True)
    trainer = make_trainer(config, list(problems), order, settings, tokenizer, copy.deepcopy(model), engine)
    watch = Watch(trainer.model)
    trainer.add_callback(watch)
    return trainer, watch


def prepare(run: Path, model: Any, tokenizer: Any, documents: int = 4) -> None:
    """A run folder with problems, and beside it the policy as a folder."""
    model.save_pretrained(run.parent / "policy")
    tokenizer.save_pretrained(run.parent / "policy")
    metadata = {"policy": "policy", "fingerprint": fingerprint(tokenizer), "proxy": "policy", "seed": "0"}
    write_problems(run / "problems" / "train.parquet", make_problems(tokenizer, documents), metadata)
    (run.parent / "reward.py").write_text(
        "def by_length(answer, problem):\n    return float(len(answer.thought) % 7)\n", encoding="utf-8"
    )


def train_settings(run: Path, *overrides: str) -> Config:
    """Six steps of four problems that a random policy has a signal on: a reward of the thought's length."""
    return configure(
        run, f"model.name={run.parent / 'policy'}", f"reward.name={run.parent / 'reward.py'}:by_length",
        "train.steps=6", "train.problems=4", "train.micro_batch=2", "train.save_every=2", "train.learning_rate=1e-3",
        "train.dynamic_sampling_from=none", "rollout.group=4", "rollout.max_tokens=8", *overrides,
    )  # fmt: skip


def train_in_child(config: Config, environment: dict[str, str] | None = None) -> None:
    """What a child process runs: the stage, single-threaded."""
    import os
    import signal

    os.environ.update(environment or {})
    # A shell that starts the tests in the background has SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    from forethink.training.train import run_train

    run_train(config)


def ntp_in_child(config: Config) -> None:
    """What a child process runs for the plain baseline, single-threaded."""
    torch.set_num_threads(1)
    from forethink.training.ntp import run_ntp

    run_ntp(config)

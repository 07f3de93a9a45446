"""Checkpoints that are whole, and final weights that load again by their folder's name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from forethink.types import ForethinkError

SPENT = "spent.json"  # in a checkpoint: tokens, FLOPs and seconds until then
_COMPLETE = "complete"  # written last: a folder without it was being written when the run was killed


def mark_complete(checkpoint: Path) -> None:
    """Say that a checkpoint's every file is on disk."""
    (checkpoint / _COMPLETE).touch()


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete ``checkpoint-N``; torn ones are removed."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / _COMPLETE).exists():
            found.append((int(path.name.rsplit("-", 1)[1]), path))
        else:
            shutil.rmtree(path)
    return max(found)[1] if found else None


def with_lora(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """The model with fresh LoRA adapters of a rank on every linear layer below the head (alpha = 2 · rank)."""
    from peft import get_peft_model

    adapted: PreTrainedModel = get_peft_model(model, lora_config(rank))
    return adapted


def lora_config(rank: int) -> object:
    """PEFT's configuration for a rank."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write weights (safetensors; an adapter where the model has one) and tokenizer, whole or not at all.

    Raises:
        ForethinkError: the folder cannot be written.
    """
    torn = folder.with_name(f".{folder.name}")
    shutil.rmtree(torn, ignore_errors=True)
    try:
        model.save_pretrained(torn)
        tokenizer.save_pretrained(torn)
        shutil.rmtree(folder, ignore_errors=True)
        torn.rename(folder)
    except OSError as error:
        raise ForethinkError(
            f"{folder}: cannot be written ({error.strerror}); free some space and start again with the same command."
        ) from None


class Keep(TrainerCallback):
    """Writes the model to ``<folder>/checkpoint-<step>`` after every step that is due, the last one apart (``model``).

    What training resumes from is elsewhere and is thinned out; these are whole models to evaluate, for a scaling law.

    Args:
        due: asked after every step with its number.
    """

    def __init__(
        self, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, folder: Path, due: Callable[[int], bool]
    ) -> None:
        self.trainer, self.tokenizer, self.folder, self.due = trainer, tokenizer, folder, due

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.due(state.global_step) and state.global_step < state.max_steps:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            save_model(model, self.tokenizer, self.folder / f"checkpoint-{state.global_step}")

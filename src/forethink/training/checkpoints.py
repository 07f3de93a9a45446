"""Checkpoints that are whole, and final weights that load again by their folder's name."""

from __future__ import annotations

import copy
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from forethink.models import adapter_base
from forethink.types import ForethinkError

if TYPE_CHECKING:
    from forethink.config import Model

SPENT = "spent.json"  # in a checkpoint: tokens, FLOPs and seconds until then
_COMPLETE = "complete"  # written last: a folder without it was being written when the run was killed


def mark_complete(checkpoint: Path) -> None:
    """Say that a checkpoint's every file is on disk."""
    (checkpoint / _COMPLETE).touch()


def step_of(checkpoint: Path) -> int:
    """The step that a folder ``checkpoint-<step>`` was written after."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete ``checkpoint-N``; torn ones are removed."""
    found: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        if (path / _COMPLETE).exists():
            found.append((step_of(path), path))
        else:
            shutil.rmtree(path)
    return max(found)[1] if found else None


def with_lora(model: PreTrainedModel, rank: int, seed: int = 0) -> PreTrainedModel:
    """The model with LoRA adapters on every linear layer below the head, to be trained (alpha = 2 · rank).

    Args:
        model: changed in place; left as it is where it has adapters already.
        rank: of fresh adapters.
        seed: of their random half.
    """
    import torch
    from peft import PeftModel, get_peft_model

    # PEFT looks for the base model's configuration to see whether its vocabulary has grown (a GGUF file has none, and
    # ours never grows), and asks transformers by a name that it is about to drop.
    warnings.filterwarnings("ignore", message="Could not find a config file")
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    if isinstance(model, PeftModel):
        return model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cast(PreTrainedModel, get_peft_model(model, lora_config(rank)))


def goes_on(adapter: str | None, rank: int) -> bool:
    """Whether training with LoRA of this rank goes on with an adapter, rather than merge it and begin another.

    An adapter of the same rank is gone on with: the result then loads onto the same model as it did.
    """
    if adapter is None or not rank:
        return False
    try:
        made = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # loading it says what is wrong
    return bool(made.get("r") == rank)


def starting_point(model: Model, start: str | None) -> tuple[str, str | None]:
    """The weights that training starts from: a model, and the adapter on it that is gone on with or merged.

    Args:
        model: the policy, as ``[model]`` names it.
        start: a model's folder or name, or an adapter's folder, on the policy or on another model that it names
            (`models.adapter_base`); None: the policy as it is named.

    Raises:
        ForethinkError: the adapter's configuration cannot be read.
    """
    if start is None:
        return model.name, model.adapter
    if not (Path(start) / "adapter_config.json").is_file():
        return start, None
    return adapter_base(Path(start), model.name, lambda text: print(text, file=sys.stderr)), start


def refuse_adapter_on_adapter(adapter: str | None, rank: int, key: str) -> None:
    """Raise where training would save an adapter that belongs on another one, and not on a model on disk.

    Args:
        adapter: what training starts from.
        rank: of the adapter that it trains; 0: all weights.
        key: the rank's name in the configuration.

    Raises:
        ForethinkError: it would.
    """
    if adapter is not None and rank and not goes_on(adapter, rank):
        raise ForethinkError(
            f"{adapter}: an adapter on an adapter cannot be loaded again; set {key} to its rank, to go on with it, "
            "or to 0."
        )


def lora_config(rank: int) -> object:
    """PEFT's configuration for a rank."""
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")


def merged(model: PreTrainedModel) -> PreTrainedModel:
    """A copy, LoRA adapters merged into the weights below them."""
    own = copy.deepcopy(model)
    return cast(PreTrainedModel, cast(Any, own).merge_and_unload() if hasattr(own, "merge_and_unload") else own)


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, whole: bool = False) -> None:
    """Write weights (safetensors; an adapter where the model has one) and tokenizer, whole or not at all.

    Args:
        model: the policy, not changed.
        tokenizer: its tokenizer.
        folder: replaced where there is one.
        whole: write an adapter merged into the weights below it, where those are nowhere on disk.

    Raises:
        ForethinkError: the folder cannot be written.
    """
    if whole:
        model = merged(model)
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
        self,
        trainer: Trainer,
        tokenizer: PreTrainedTokenizerBase,
        folder: Path,
        due: Callable[[int], bool],
        whole: bool = False,
    ) -> None:
        self.trainer, self.tokenizer, self.folder, self.due, self.whole = trainer, tokenizer, folder, due, whole

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.due(state.global_step) and state.global_step < state.max_steps:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            save_model(model, self.tokenizer, self.folder / f"checkpoint-{state.global_step}", self.whole)

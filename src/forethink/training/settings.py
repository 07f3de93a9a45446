"""TRL's configuration for a run, and the order in which problems come."""

from __future__ import annotations

import dataclasses
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
from trl import GRPOConfig

from forethink.config import Config
from forethink.device import computes_in_bf16
from forethink.types import ForethinkError, Problem

# What forethink's own configuration decides, or its trainer relies on: not to be set in [trl].
_FIXED: dict[str, Any] = {
    "num_iterations": 1,  # exactly on-policy
    "loss_type": "dapo",  # mean over the batch's tokens, verl's token-mean
    "scale_rewards": "group",
    "beta": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "use_vllm": False,  # rollout.engine decides
    "mask_truncated_completions": False,
    "entropy_coef": 0.0,
    "router_aux_loss_coef": 0.0,
    "disable_dropout": True,  # sampling and training must see one distribution
    "cast_lm_head_to_fp32": False,
    "shuffle_dataset": False,  # the rows are in training order
    "remove_unused_columns": False,
    "logging_strategy": "steps",
    "logging_steps": 1,
    "logging_nan_inf_filter": False,
    "eval_strategy": "no",
    "save_strategy": "steps",
    "save_total_limit": 2,
    "fp16": False,
    "disable_tqdm": True,
}
_OWNED = frozenset(_FIXED) | {
    "output_dir", "max_steps", "num_train_epochs", "learning_rate", "warmup_steps", "weight_decay", "max_grad_norm",
    "epsilon", "temperature", "max_completion_length", "num_generations", "per_device_train_batch_size",
    "gradient_accumulation_steps", "steps_per_generation", "generation_batch_size", "seed", "data_seed", "bf16",
    "use_cpu", "save_steps", "use_adaptive_entropy", "resume_from_checkpoint", "model_init_kwargs",
}  # fmt: skip
# Where forethink's default is not TRL's, but [trl] may say otherwise.
_DEFAULTS: dict[str, Any] = {
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "lr_scheduler_type": "constant_with_warmup",
    "report_to": "none",
    "log_level": "error",
}


def grpo_settings(config: Config, folder: Path, cpu: bool) -> GRPOConfig:
    """TRL's configuration for a run, `[trl]` passed on verbatim.

    Raises:
        ForethinkError: `[trl]` holds a key that forethink sets itself or TRL does not know, or the sizes do not fit.
    """
    knobs, rollout = config.train, config.rollout
    known = {field.name for field in dataclasses.fields(GRPOConfig) if field.init}
    for key in config.trl:
        if key in _OWNED:
            raise ForethinkError(f"[trl]: {key!r} is set by forethink itself; remove it (see `forethink keys`).")
        if key not in known:
            raise ForethinkError(f"[trl]: GRPOConfig of the installed TRL has no {key!r}; mend the name.")
    # TRL checkpoints activations by default; prefix trees need little memory. transformers is renaming the key.
    checkpointing = [key for key in ("activation_checkpointing", "gradient_checkpointing") if key in known]
    off: dict[str, Any] = {} if any(key in config.trl for key in checkpointing) else {checkpointing[0]: False}
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if knobs.problems % processes:
        raise ForethinkError(f"train.problems is {knobs.problems}; make it a multiple of the {processes} processes.")
    if rollout.group < 2:
        raise ForethinkError("rollout.group is 1, and a group of one has no advantage; set it to 2 or more.")
    local = knobs.problems // processes
    micro = max(size for size in range(1, min(knobs.micro_batch, local) + 1) if local % size == 0)
    settings: dict[str, Any] = {
        **_FIXED,
        **_DEFAULTS,
        **off,
        **({"ddp_backend": "gloo"} if cpu and processes > 1 else {}),
        **config.trl,
        "output_dir": str(folder),
        "max_steps": knobs.steps,
        "learning_rate": knobs.learning_rate,
        "warmup_steps": knobs.warmup_steps,
        "weight_decay": knobs.weight_decay,
        "max_grad_norm": knobs.max_grad_norm,
        "epsilon": knobs.clip,
        "temperature": rollout.temperature,
        "max_completion_length": rollout.max_tokens,
        "num_generations": rollout.group,
        "per_device_train_batch_size": micro * rollout.group,
        "gradient_accumulation_steps": local // micro,
        "steps_per_generation": local // micro,
        "seed": config.seed,
        # Under autocast: fp32 master weights. Weights in bf16 themselves need none.
        "bf16": knobs.precision != "pure_bf16"
        and computes_in_bf16(knobs.precision, "cpu" if cpu else config.model.device),
        "use_cpu": cpu,
        "save_steps": knobs.save_every,
    }
    try:
        return GRPOConfig(**settings)
    except (TypeError, ValueError) as error:
        raise ForethinkError(f"[trl]: TRL refuses the settings ({str(error).splitlines()[0]}); mend them.") from None


def drawn(problems: list[Problem], limit: int | None, seed: int) -> list[Problem]:
    """At most ``limit`` problems, drawn at random and left in their order; all of them where it is None."""
    if limit is None or limit >= len(problems):
        return problems
    return [problems[i] for i in sorted(random.Random(seed).sample(range(len(problems)), limit))]


def training_order(count: int, steps: int, problems: int, seed: int) -> list[int]:
    """Which problem comes when: one shuffled pass after another; a pass's rest too small for a step is left out.

    Raises:
        ForethinkError: there are fewer problems than one step takes.
    """
    if count < problems:
        raise ForethinkError(f"train.problems is {problems}, but there are only {count} problems; lower it.")
    per_pass = count // problems
    order: list[int] = []
    for number in range(-(-steps // per_pass)):
        shuffled = np.random.default_rng([seed, number]).permutation(count)
        order += shuffled[: per_pass * problems].tolist()
    return order[: steps * problems]

"""The two trainers of the comparison, ours and TRL's own, stepping when they are told to.

Both get the same prompts as token ids, the same sizes, and rewards that are the same function of a completion's
tokens, so that the groups that carry a signal are chosen by the benchmark. A request says how to step:

* ``update``: completions given beforehand, so that both sides' gradients can be compared,
* ``step``: completions sampled to their full length,
* ``natural``: completions end where each trainer ends them (ours at the closing box too).

All of a step but its sampling is its update: reading, rewards, loss, gradients, optimiser.
"""

from __future__ import annotations

import copy
import json
import os
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from benchmarks.common import Size, clock, memory, policy, problems, prompts, reset_peak, tokenizer_of
from benchmarks.worker import Channel
from forethink.config import load_config
from forethink.device import keep_memory
from forethink.models import token_bytes
from forethink.rollout import make_engine
from forethink.training.groups import Scored
from forethink.training.settings import grpo_settings
from forethink.training.train import make_trainer
from forethink.types import Completion, Finish

STEPS = 100_000  # more than anybody asks for
RATE, DECAY, CLIP, TEMPERATURE = 1e-6, 0.01, 0.2, 0.8


class Stepper(TrainerCallback):
    """Waits for a request before every step and answers with what the step took."""

    def __init__(self, channel: Channel, size: Size) -> None:
        self.channel, self.size = channel, size
        self.request: dict[str, Any] = {}
        self.tokens, self.sampling, self.rollout_peak = 0, 0.0, 0.0  # of this step
        self.model: Any = None

    def on_train_begin(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.model = model
        self.channel.send(ready=True)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        request = self.channel.receive()
        if request is None:
            os._exit(0)  # there is no way out of the loop that does not save first
        self.request, self.tokens, self.sampling, self.rollout_peak = request, 0, 0.0, 0.0
        reset_peak(self.size.device)
        self.held = memory(self.size.device)[0]
        self.begin = clock(self.size.device)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        if "gradient" in self.request:
            named = self.model.named_parameters()
            save_file({name: p.grad.contiguous() for name, p in named if p.grad is not None}, self.request["gradient"])

    def on_step_end(self, *_: Any, **__: Any) -> None:
        seconds = clock(self.size.device) - self.begin
        peak = memory(self.size.device)[1]
        self.channel.send(
            seconds=seconds, update_seconds=seconds - self.sampling, peak_gib=max(peak, self.rollout_peak),
            update_peak_gib=peak, held_gib=self.held, tokens=self.tokens,
        )  # fmt: skip

    @contextmanager
    def sampled(self) -> Iterator[None]:
        """What happens inside is the step's rollout."""
        begin = clock(self.size.device)
        yield
        self.sampling += clock(self.size.device) - begin
        self.rollout_peak = max(self.rollout_peak, memory(self.size.device)[1])
        reset_peak(self.size.device)

    @property
    def mode(self) -> str:
        return str(self.request["mode"])

    def reward(self, problem: int, token_ids: Sequence[int]) -> float:
        """A number that hangs on the tokens, or none at all for the share of groups that shall carry no signal."""
        if problem < round(self.request.get("degenerate", 0.0) * self.size.problems):
            return 0.0
        return float(zlib.crc32(json.dumps(list(token_ids)).encode()) % 7)


class Given:
    """An engine that says again what was sampled before; other requests go to the engine behind it."""

    def __init__(self, steps: Stepper, fixed: Any, natural: Any, given: dict[str, list[list[int]]]) -> None:
        self.steps, self.fixed, self.natural, self.given = steps, fixed, natural, given
        self.table = fixed._ending.table
        self.version = 0

    def load(self, weights: Any, version: int) -> None:
        self.version = version
        if self.steps.mode != "update":
            (self.natural if self.steps.mode == "natural" else self.fixed).load(weights, version)

    def generate(self, asked: Any, names: Sequence[str], seed: int) -> list[list[Completion]]:
        if self.steps.mode != "update":
            engine = self.natural if self.steps.mode == "natural" else self.fixed
            with self.steps.sampled():
                groups: list[list[Completion]] = engine.generate(asked, names, seed)
            self.steps.tokens += sum(len(c.token_ids) for group in groups for c in group)
            return groups
        return [
            [
                Completion(
                    name, i, tuple(ids), b"".join(self.table[t] for t in ids), (0.0,) * len(ids), Finish.LENGTH,
                    self.version,
                )
                for i, ids in enumerate(self.given[name])
            ]
            for name in names
        ]  # fmt: skip


def _read(given: str | None) -> dict[str, list[list[int]]]:
    """Completions by problem, as `sample` wrote them."""
    return {} if given is None else json.loads(Path(given).read_text())


def ours(size: Size, channel: Channel, given: str | None = None, precision: str = "bf16") -> None:
    """forethink's trainer and its transformers engine, with their defaults."""
    keep_memory(size.device)  # as `forethink train` does
    tokenizer, steps = tokenizer_of(size), Stepper(channel, size)
    chosen = problems(size, tokenizer)
    number = {problem.id: i for i, problem in enumerate(chosen)}
    folder = Path(tempfile.mkdtemp())
    config = load_config(
        None,
        [f"run={folder}", f"model.device={size.device}", f"train.precision={precision}", f"train.steps={STEPS}",
         f"train.problems={size.problems}", f"train.learning_rate={RATE}", f"train.weight_decay={DECAY}",
         f"train.clip={CLIP}", "train.dynamic_sampling_from=none", f"train.save_every={STEPS}",
         f"rollout.group={size.group}", f"rollout.max_tokens={size.tokens}", f"rollout.temperature={TEMPERATURE}"],
    )  # fmt: skip
    model = policy(size, torch.float32)
    engines = []
    for fixed in (True, False):
        twin = copy.deepcopy(model)
        for parameter in twin.parameters():
            parameter.data = parameter.data.to(torch.float32 if precision == "fp32" else torch.bfloat16)
        engines.append(make_engine(config.rollout, twin, tokenizer, fixed_length=fixed))
    engine = Given(steps, *engines, _read(given))
    settings = grpo_settings(config, folder, cpu=size.device == "cpu")
    order = list(range(size.problems)) * 1000
    trainer = make_trainer(config, chosen, order, settings, tokenizer, model, engine)
    score = trainer.hooks.score

    def rewarded(replies: Any) -> tuple[list[Scored], int]:
        real, flops = score(replies)
        told = [[steps.reward(number[g.problem.id], c.token_ids) for c in g.completions] for g in replies]
        return [own._replace(rewards=rewards) for own, rewards in zip(real, told, strict=True)], flops

    trainer.hooks = trainer.hooks._replace(score=rewarded)
    trainer.add_callback(steps)
    trainer.train()


class Stock(GRPOTrainer):
    """TRL's trainer with prompts as token ids (a prompt's text is its number), and completions given where asked."""

    steps: Stepper
    prompt_ids: list[list[int]]
    given: list[list[list[int]]]

    def _tokenize_prompts(self, prompts: list) -> tuple[list[list[int]], None, dict]:
        self._asked = [int(prompt) for prompt in prompts]
        return [self.prompt_ids[number] for number in self._asked], None, {}

    def _generate_single_turn(self, prompt_ids: list, *args: Any, **kwargs: Any) -> tuple[list[list[int]], None]:
        if self.steps.mode == "update":
            seen: dict[int, int] = {}
            found = []
            for number in self._asked:
                found.append(self.given[number][seen.setdefault(number, 0)])
                seen[number] += 1
            return found, None
        shortest = 0 if self.steps.mode == "natural" else self.max_completion_length
        self.generation_config.min_new_tokens = shortest
        self.generation_kwargs["min_new_tokens"] = shortest
        with self.steps.sampled():
            completions, logprobs = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.steps.tokens += sum(map(len, completions))
        return completions, logprobs


def stock(size: Size, channel: Channel, given: str | None = None, precision: str = "bf16") -> None:
    """TRL's GRPOTrainer. On a CPU: bf16 autocast over fp32 weights (`bf16`, `use_cpu`), as transformers' page on
    training with a CPU says; no checkpointing of activations, which would only cost time; ``size.micro`` completions a
    backward pass, so that they fit in memory; everything else is TRL's default.
    """
    tokenizer, steps = tokenizer_of(size), Stepper(channel, size)
    chosen = problems(size, tokenizer)
    model, folder = policy(size, torch.float32), tempfile.mkdtemp()
    micro = min(size.micro, size.problems * size.group)
    slices = size.problems * size.group // micro
    arguments = GRPOConfig(
        output_dir=folder, max_steps=STEPS, learning_rate=RATE, weight_decay=DECAY, epsilon=CLIP, beta=0.0,
        temperature=TEMPERATURE, loss_type="dapo", scale_rewards="group", num_generations=size.group,
        max_completion_length=size.tokens, per_device_train_batch_size=micro, gradient_accumulation_steps=slices,
        steps_per_generation=slices, bf16=precision == "bf16", use_cpu=size.device == "cpu",
        gradient_checkpointing=False, logging_strategy="no", save_strategy="no", report_to="none",
        disable_tqdm=True, lr_scheduler_type="constant", top_k=0, top_p=1.0,
    )  # fmt: skip

    def reward(prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [steps.reward(int(prompt), ids) for prompt, ids in zip(prompts, completion_ids, strict=True)]

    trainer = Stock(
        model=model,
        args=arguments,
        reward_funcs=reward,
        train_dataset=Dataset.from_dict({"prompt": [str(i) for i in range(size.problems)]}),
        processing_class=tokenizer,
    )
    trainer.steps, trainer.prompt_ids = steps, prompts(chosen, tokenizer)
    replies = _read(given)
    trainer.given = [replies.get(problem.id, []) for problem in chosen]
    trainer.add_callback(steps)
    trainer.train()


def sample(size: Size, path: Path) -> None:
    """Write completions of all problems, as the policy samples them, for the trainers to be given."""
    tokenizer = tokenizer_of(size)
    chosen = problems(size, tokenizer)
    config = load_config(None, [f"rollout.group={size.group}", f"rollout.max_tokens={size.tokens}"])
    engine = make_engine(config.rollout, policy(size, torch.bfloat16), tokenizer, fixed_length=True)
    groups = engine.generate(prompts(chosen, tokenizer), [problem.id for problem in chosen], 0)
    table = token_bytes(tokenizer)
    assert all(token < len(table) for group in groups for c in group for token in c.token_ids)
    path.write_text(json.dumps({g[0].problem: [list(c.token_ids) for c in g] for g in groups}))

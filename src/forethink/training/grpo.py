"""GRPO for next-token problems: TRL's GRPOTrainer with four overrides, and what each is for.

* ``_prepare_inputs`` keeps groups whole (TRL shuffles completions across groups) and cuts the step's groups into
  micro-batches of neighbours, so that problems of one document meet in one prefix tree.
* ``_generate_and_score_completions`` samples with a forethink engine, reads, rewards, refills degenerate groups
  (DAPO's dynamic sampling) and drops what has no gradient.
* ``_get_per_token_logps_and_entropies`` runs the packed forward pass.
* ``training_step`` skips micro-batches without signal: no backward pass, so no gradient, so AdamW (which moves
  weights even at loss 0) touches nothing when a whole step is empty.

Advantages, clipping, loss aggregation, optimiser, schedules, checkpoints, loggers and wrappers are TRL's. A test
holds all of it to ``tests/reference_grpo.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer

from forethink.flops import Flops
from forethink.packing import pack
from forethink.rewards import degenerate, outcome
from forethink.rollout import Engine, check_version
from forethink.training.forward import Packer, install, packed
from forethink.types import Answer, Completion, Outcome, Problem

EPSILON = 1e-4  # added to the group's standard deviation, as in TRL


@dataclass(frozen=True)
class Group:
    """The G completions of one problem, read and rewarded. ``advantages`` is fp32 [G]; ``mask`` what the loss sees."""

    problem: Problem
    prompt: list[int]
    completions: list[Completion]
    answers: list[Answer]
    outcomes: list[Outcome]
    rewards: list[float | None]
    advantages: Tensor
    masks: list[list[bool]] | None = None

    @property
    def verdict(self) -> str | None:
        """``all_right`` or ``all_wrong`` where the plain outcome says nothing, whatever the reward; else None."""
        return degenerate(self.outcomes)

    @property
    def signal(self) -> bool:
        """Whether any completion has a gradient."""
        return bool(self.advantages.any())


def advantages(rewards: Sequence[float | None]) -> Tensor:
    """Group-relative advantages (r − mean) / (std + 1e-4), fp32 [G]; an unscored completion gets 0.

    The standard deviation is the sample one (n − 1), over the scored completions. Source: GRPO (2402.03300, eq. 3).
    """
    values = torch.tensor([float("nan") if r is None else r for r in rewards], dtype=torch.float32)
    scored = ~values.isnan()
    if scored.sum() < 2:
        return torch.zeros_like(values)
    mean, std = values[scored].mean(), values[scored].std()
    return torch.where(scored, (values - mean) / (std + EPSILON), 0.0)


class ReinforcementTrainer(GRPOTrainer):
    """TRL's GRPOTrainer on next-token problems; see the module's docstring.

    Args:
        problems: the training split; the data set's rows name them by ``index``.
        engine: where completions come from.
        render: problem → prompt token ids.
        read: completion → answer.
        score: group → rewards and, where the reward trains part of a completion only, loss masks.
        dynamic_from: step from which degenerate groups are refilled; None: never.
        refill: at most this many extra batches of problems a step.
        ntp_weight: λ of λ·NTP on the context tokens (RMT, 2509.24375).
        on_groups: called with the step and every group sampled in it, kept or not.
    """

    def __init__(
        self,
        *args: Any,
        problems: Sequence[Problem],
        engine: Engine,
        render: Callable[[Problem], list[int]],
        read: Callable[[Completion], Answer],
        score: Callable[[Problem, list[int], list[Completion], list[Answer]], tuple[list[float | None], Any]],
        dynamic_from: int | None = None,
        refill: int = 0,
        ntp_weight: float = 0.0,
        on_groups: Callable[[int, list[Group]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, reward_funcs=[_rewarded_elsewhere], **kwargs)
        base: PreTrainedModel = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        install(base)
        self.packer = Packer(base)
        self.problems = problems
        self.engine = engine
        self.render, self.read, self.score = render, read, score
        self.dynamic_from, self.refill, self.ntp_weight = dynamic_from, refill, ntp_weight
        self.on_groups = on_groups
        self.spent: Counter[str] = Counter()  # tokens and FLOPs since this process began, by kind
        self._cost = Flops.of(base)
        self._collected_for = -1

    # -- rollouts -----------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        slices = self.args.steps_per_generation
        if self._collected_for != self._step // slices:
            self._buffered_inputs = self._generate_and_score_completions(generation_batch)
            self._collected_for = self._step // slices
        return self._buffered_inputs[self._step % slices]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """One optimiser step's micro-batches, None where one has no signal on any process."""
        step = self.state.global_step
        wanted = [self.problems[row["index"]] for row in inputs[:: self.num_generations]]
        base = self.accelerator.unwrap_model(self.model_wrapped)
        self.engine.load(base, step)
        dynamic = self.dynamic_from is not None and step >= self.dynamic_from
        seen = self._sample(wanted, step)
        kept = [group for group in seen if not dynamic or group.verdict is None]
        rng = np.random.default_rng([self.args.seed, step, self.accelerator.process_index])
        for _ in range(self.refill if dynamic else 0):
            if len(kept) >= len(wanted):
                break
            fresh = rng.choice(len(self.problems), size=min(len(wanted), len(self.problems)), replace=False)
            more = self._sample([self.problems[i] for i in fresh if not _taken(self.problems[i], seen)], step)
            seen += more
            kept += [group for group in more if group.verdict is None]
        kept = kept[: len(wanted)]
        if self.on_groups is not None:
            self.on_groups(step, seen)
        self._log_groups(seen, kept)
        return self._slices(kept, [group.problem for group in kept] or wanted)

    def _sample(self, problems: Sequence[Problem], step: int) -> list[Group]:
        if not problems:
            return []
        prompts = [self.render(problem) for problem in problems]
        sampled = self.engine.generate(prompts, [problem.id for problem in problems], self.args.seed)
        groups = []
        for problem, prompt, completions in zip(problems, prompts, sampled, strict=True):
            check_version(completions, step)
            answers = [self.read(completion) for completion in completions]
            rewards, masks = self.score(problem, prompt, completions, answers)
            outcomes = [outcome(answer, problem) for answer in answers]
            groups.append(
                Group(problem, prompt, completions, answers, outcomes, rewards, advantages(rewards), masks)
            )
        lengths = [[len(c.token_ids) for c in completions] for completions in sampled]
        self.spent["rollout_tokens"] += sum(map(sum, lengths))
        self.spent["rollout_flops"] += self._cost.decode([len(p) for p in prompts], lengths)
        return groups

    def _slices(self, kept: list[Group], contexts: list[Problem]) -> list[dict[str, Any] | None]:
        slices = self.args.steps_per_generation
        device = self.accelerator.device
        tokens = sum(len(c.token_ids) for group in kept for c in group.completions)
        total = self.accelerator.gather(torch.tensor(tokens, device=device)).sum()
        live = sorted((group for group in kept if group.signal), key=lambda group: group.prompt)
        most = int(self.accelerator.gather(torch.tensor([len(live)], device=device)).max())
        self.spent["signal_groups"] += len(live)
        if most == 0 and self.ntp_weight == 0:
            return [None] * slices
        # Under DDP every process must take part in every backward pass, so one without signal sends zeros.
        idle = kept or self._idle(contexts[0])
        size = -(-max(most, 1) // slices)
        batches: list[dict[str, Any] | None] = []
        for i in range(slices):
            groups = live[i * size : (i + 1) * size]
            texts = contexts[i::slices] if self.ntp_weight else []
            if not groups and not texts and i * size >= most:
                batches.append(None)
                continue
            batch = self._tensors(groups or idle[:1], device)
            batch["num_items_in_batch"] = total
            batch["contexts"] = texts
            if not groups:
                batch["advantages"] = torch.zeros_like(batch["advantages"])
            batches.append(batch)
        return batches

    def _idle(self, problem: Problem) -> list[Group]:
        prompt = self.render(problem)
        nothing = Completion(problem.id, 0, (prompt[-1],), b"", (0.0,), "length", self.state.global_step)  # type: ignore[arg-type]
        return [Group(problem, prompt, [nothing], [], [], [0.0], torch.zeros(1))]

    def _tensors(self, groups: list[Group], device: torch.device) -> dict[str, Any]:
        """TRL's micro-batch: prompts padded left [B, P], completions padded right [B, R], advantages [B]."""
        rows = [(group, i) for group in groups for i in range(len(group.completions))]
        prompts = [torch.tensor(group.prompt) for group, _ in rows]
        completions = [torch.tensor(group.completions[i].token_ids) for group, i in rows]
        wide = max(map(len, prompts))
        pad = self._tokenizer.pad_token_id or 0
        prompt_ids = torch.stack([torch.nn.functional.pad(p, (wide - len(p), 0), value=pad) for p in prompts])
        prompt_mask = torch.stack([(torch.arange(wide) >= wide - len(p)).long() for p in prompts])
        completion_ids = torch.nn.utils.rnn.pad_sequence(completions, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(c) for c in completions])
        completion_mask = (torch.arange(completion_ids.shape[1]) < lengths[:, None]).long()
        batch = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "advantages": torch.cat([group.advantages for group in groups]),
        }
        if any(group.masks is not None for group in groups):
            loss_mask = torch.zeros_like(completion_mask)
            for row, (group, i) in enumerate(rows):
                mask = group.masks[i] if group.masks is not None else [True] * int(lengths[row])
                loss_mask[row, : len(mask)] = torch.tensor(mask, dtype=torch.long)
            batch["tool_mask"] = loss_mask  # TRL's name for "in the loss"
        return {key: value.to(device) for key, value in batch.items()}

    # -- update -------------------------------------------------------------------------------------------------

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step, or nothing at all for a micro-batch without signal."""
        model.train()
        if self._prepare_inputs(inputs) is None:
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_per_token_logps_and_entropies(  # type: ignore[override]
        self, model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **_: Any
    ) -> tuple[Tensor, Tensor, None]:
        width = input_ids.shape[1] - logits_to_keep
        keep = attention_mask.bool().cpu()
        sequences = [ids[k].tolist() for ids, k in zip(input_ids.cpu(), keep, strict=True)]
        starts = keep[:, :width].sum(1).tolist()
        packs = self.packer(sequences, starts)
        with self.accelerator.autocast():
            logprobs, entropies = packed(model, packs, len(sequences), self.temperature)
        for one in packs:
            size = len(one.ids_t)
            self.spent["update_tokens"] += size
            self.spent["update_flops"] += self._cost.train(size, size * size, len(one.targets))
        return _padded(logprobs, logits_to_keep), _padded(entropies, logits_to_keep), None

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)
        contexts = {problem.context_ids for problem in inputs["contexts"] if len(problem.context_ids) > 1}
        if not contexts:
            return loss
        packs = pack(sorted(contexts), [1] * len(contexts), self.packer.max_tokens, self.packer.share is not False)
        with self.accelerator.autocast():
            logprobs, _ = packed(model, packs, len(contexts))
        for one in packs:
            size = len(one.ids_t)
            self.spent["update_flops"] += self._cost.train(size, size * size, len(one.targets))
        ntp = -torch.cat(logprobs).mean()
        self._metrics["train"]["ntp_loss"].append(ntp.item())
        return loss + self.ntp_weight * ntp / self.args.steps_per_generation

    # -- what a step says of itself -----------------------------------------------------------------------------

    def _log_groups(self, seen: list[Group], kept: list[Group]) -> None:
        outcomes = Counter(o for group in seen for o in group.outcomes)
        completions = [c for group in seen for c in group.completions]
        thoughts = [answer.thought for group in seen for answer in group.answers]
        rewards = [r for group in seen for r in group.rewards if r is not None]
        verdicts = Counter(group.verdict for group in seen)
        figures = {
            "reward": sum(rewards) / max(len(rewards), 1),
            "accuracy": outcomes[Outcome.RIGHT] / max(len(completions), 1),
            **{f"outcome/{o.value}": outcomes[o] / max(len(completions), 1) for o in Outcome},
            "groups/all_right": verdicts["all_right"] / len(seen),
            "groups/all_wrong": verdicts["all_wrong"] / len(seen),
            "groups/signal": sum(group.signal for group in seen) / len(seen),
            "groups/sampled": float(len(seen)),
            "groups/kept": float(len(kept)),
            "completion_tokens": sum(len(c.token_ids) for c in completions) / max(len(completions), 1),
            "thought_characters": sum(map(len, thoughts)) / max(len(thoughts), 1),
            "distinct_thoughts": len(set(thoughts)) / max(len(thoughts), 1),
        }
        names = sorted(figures)
        local = torch.tensor([[figures[name] for name in names]], device=self.accelerator.device)
        for name, value in zip(names, self.accelerator.gather(local).mean(0).tolist(), strict=True):
            self._metrics["train"][name].append(value)


def _taken(problem: Problem, seen: Sequence[Group]) -> bool:
    return any(group.problem.id == problem.id for group in seen)


def _padded(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])


def _rewarded_elsewhere(**_: Any) -> list[float]:
    raise RuntimeError("forethink reads and rewards completions itself; TRL's reward path is not taken")

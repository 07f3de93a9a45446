"""GRPO for next-token problems and for questions: TRL's GRPOTrainer with a few overrides, and what each is for.

* ``_prepare_inputs`` keeps groups whole (TRL shuffles completions across groups) and cuts the step's groups into
  micro-batches of neighbours, so that problems of one document meet in one prefix tree.
* ``_generate_and_score_completions`` samples with a forethink engine, reads, rewards, refills degenerate groups
  (DAPO's dynamic sampling, arXiv 2503.14476) and drops what has no gradient.
* ``_get_per_token_logps_and_entropies`` runs the packed forward pass.
* ``training_step`` skips micro-batches without signal: no backward pass, so no gradient, so AdamW (which moves
  weights even at loss 0) touches nothing when a whole step is empty.
* ``_get_grad_norm`` stops at a gradient that is no number, before the optimiser sees it.
* ``log`` and ``_save_checkpoint`` add what was spent, and mark a checkpoint as complete.

Advantages, clipping, loss aggregation, optimiser, schedules, checkpoints, loggers and wrappers are TRL's. A test
holds all of it to ``tests/reference_grpo.py``.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from torch import Tensor
from transformers import PreTrainedModel
from trl import GRPOTrainer

from forethink.flops import Flops
from forethink.rollout import Engine, check_version, generate_counted
from forethink.rundir import write_atomic
from forethink.training.checkpoints import SPENT, mark_complete
from forethink.training.forward import Packer, compiles, inference_weights, install, packed
from forethink.training.groups import Group, Hooks, Replies, Task, advantages, collate, figures, idle_group, pooled
from forethink.types import ForethinkError, Problem


class ReinforcementTrainer(GRPOTrainer):
    """TRL's GRPOTrainer on problems or questions; see the module's docstring.

    Args:
        problems: the training split; the data set's rows name them by ``index``.
        engine: where completions come from; it is given the weights of the step before every sampling.
        hooks: how problems are asked, read, rewarded and judged.
        dynamic_from: step from which degenerate groups are refilled; None: never.
        refill: at most this many extra batches of problems a step.
        ntp_weight: λ of λ·NTP, the mean −log p over the context tokens that are no problem's target (RMT, 2509.24375).
        bos: ids that a plain document begins with.
        compile: see `forward.compiles`.
        on_groups: called with the number of the update (from 1) and every group sampled for it, kept or not.
    """

    def __init__(
        self,
        *args: Any,
        problems: Sequence[Task],
        engine: Engine,
        hooks: Hooks,
        dynamic_from: int | None = None,
        refill: int = 0,
        ntp_weight: float = 0.0,
        bos: Sequence[int] = (),
        compile: Literal["auto"] | bool = False,
        on_groups: Callable[[int, list[Group]], None] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, reward_funcs=[_rewarded_elsewhere], **kwargs)
        base: PreTrainedModel = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        install(base, compiles(compile, base, self.args.max_steps))
        self.packer = Packer(base)
        self.problems, self.engine = problems, engine
        self.hooks = hooks
        self.dynamic_from, self.refill, self.ntp_weight = dynamic_from, refill, ntp_weight
        self.bos, self.on_groups = list(bos), on_groups
        self.spent: Counter[str] = Counter()  # tokens, FLOPs and seconds of this process since the run began
        self._targets = {(one.document, one.index) for one in problems if isinstance(one, Problem)}
        self._cost = Flops.of(base)
        self._collected_for = -1
        self._texts: list[Problem] = []
        self._figures: dict[str, float] = {}
        self._ntp = torch.zeros(())
        self._mark = (time.perf_counter(), 0)

    # -- rollouts -----------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        slices = self.args.steps_per_generation
        if self._collected_for != self._step // slices:
            self._buffered_inputs = self._generate_and_score_completions(generation_batch)
            self._collected_for = self._step // slices
        return self._buffered_inputs[self._step % slices]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any] | None]:
        """One optimiser step's micro-batches, None where one has no signal on any process."""
        step = self.state.global_step
        wanted = [self.problems[row["index"]] for row in inputs[:: self.num_generations]]
        self.engine.load(inference_weights(self.model), step)
        dynamic = self.dynamic_from is not None and step >= self.dynamic_from
        seen = self._sample(wanted, step)
        kept = [group for group in seen if not dynamic or group.verdict is None]
        rng = np.random.default_rng([self.args.seed, step, self.accelerator.process_index])
        for _ in range(self.refill if dynamic else 0):
            if len(kept) >= len(wanted):
                break
            taken = {group.problem.id for group in seen}
            left = [problem for problem in self.problems if problem.id not in taken]
            fresh = rng.choice(len(left), size=min(len(wanted), len(left)), replace=False)
            more = self._sample([left[i] for i in fresh], step)
            seen += more
            kept += [group for group in more if group.verdict is None]
        kept = kept[: len(wanted)]
        if self.on_groups is not None:
            self.on_groups(step + 1, seen)
        self._log_groups(seen, kept)
        return self._micro_batches(kept, wanted)

    def _sample(self, problems: Sequence[Task], step: int) -> list[Group]:
        if not problems:
            return []
        prompts = [self.hooks.render(problem) for problem in problems]
        seed = (self.args.seed << 32) + step  # other random numbers when a problem comes again
        ids = [problem.id for problem in problems]
        sampled, flops = generate_counted(self.engine, self._cost, prompts, ids, seed)
        self.spent["flops/rollout"] += flops
        self.spent["tokens/generated"] += sum(len(c.token_ids) for completions in sampled for c in completions)
        replies = []
        for problem, prompt, completions in zip(problems, prompts, sampled, strict=True):
            check_version(completions, step)
            replies.append(Replies(problem, prompt, completions, [self.hooks.read(one) for one in completions]))
        with self.accelerator.autocast(), torch.no_grad():
            scored, flops = self.hooks.score(replies)
        self.spent["flops/scores"] += flops
        groups = []
        for (problem, prompt, completions, answers), (rewards, masks) in zip(replies, scored, strict=True):
            outcomes = [self.hooks.outcome(answer, problem) for answer in answers]
            groups.append(Group(problem, prompt, completions, answers, outcomes, rewards, advantages(rewards), masks))
        return groups

    def _micro_batches(self, kept: list[Group], wanted: list[Task]) -> list[dict[str, Any] | None]:
        """Cut the groups with a signal into micro-batches, as few as hold them.

        The last of a step is never None where another is not: there gradients are reduced over processes. How many
        there are, and how many completions each holds, is the same on every process, so that collective operations
        meet.
        """
        slices, device = self.args.steps_per_generation, self.accelerator.device
        live = sorted((group for group in kept if group.signal), key=lambda group: group.prompt)
        texts = self._plain_texts(cast("list[Problem]", wanted)) if self.ntp_weight else []
        counts = [sum(group.tokens for group in kept), len(live), sum(sum(self._learnt(t)) for t in texts)]
        totals = self.accelerator.gather(torch.tensor([counts], device=device))
        trained, most, plain = totals[:, 0].sum(), int(totals[:, 1].max()), totals[:, 2].sum()
        size = -(-len(wanted) // slices)
        busy = slices if self.ntp_weight else -(-most // size)
        batches: list[dict[str, Any] | None] = [None] * (slices - busy)
        for i in range(busy):
            groups = live[i * size : (i + 1) * size]
            rows = max(min(most - i * size, size), 1) * self.num_generations
            if missing := rows - sum(len(group.completions) for group in groups):
                groups.append(idle_group(wanted[0], wanted[0].context_ids[-1], missing))
            batch: dict[str, Any] = collate(groups, self._tokenizer.pad_token_id or 0)
            batch = {key: value.to(device) for key, value in batch.items()}
            batch |= {"num_items_in_batch": trained, "texts": texts[i::slices], "text_tokens": plain}
            batches.append(batch)
        return batches

    def _plain_texts(self, problems: Sequence[Problem]) -> list[Problem]:
        """Problems whose contexts hold the step's plain text: of nested ones, on whatever process, the longest."""

        def place(problem: Problem) -> tuple[str, int]:
            return problem.document, problem.index - len(problem.context_ids)

        longest: dict[tuple[str, int], int] = {}
        for key, index in gather_object([(place(problem), problem.index) for problem in problems]):
            longest[key] = max(index, longest.get(key, 0))
        return [problem for problem in problems if longest[place(problem)] == problem.index]

    def _learnt(self, text: Problem) -> list[bool]:
        """Which of a context's tokens the next-token loss sees: those that something precedes, less RL's targets."""
        first = text.index - len(text.context_ids)
        free = [(text.document, first + j) not in self._targets for j in range(len(text.context_ids))]
        return free if self.bos else free[1:]

    # -- update -------------------------------------------------------------------------------------------------

    def training_step(self, model: torch.nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """TRL's step, or nothing at all for a micro-batch without signal."""
        model.train()
        if self._prepare_inputs(inputs) is None:
            self._step += 1
            return torch.zeros((), device=self.accelerator.device)
        return super().training_step(model, inputs, num_items_in_batch)

    def _get_per_token_logps_and_entropies(
        self, model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **_: Any
    ) -> tuple[Tensor, Tensor, None]:
        width = input_ids.shape[1] - logits_to_keep
        keep = attention_mask.bool().cpu()
        sequences = [ids[k].tolist() for ids, k in zip(input_ids.cpu(), keep, strict=True)]
        packs = self.packer(sequences, keep[:, :width].sum(1).tolist())
        texts = [[*self.bos, *text.context_ids] for text in self._texts]
        plain = self.packer(texts, [max(len(self.bos), 1)] * len(texts)) if texts else []
        temperatures = [self.temperature] * len(packs) + [1.0] * len(plain)
        n = len(sequences)
        # One call of the wrapped model a micro-batch: DistributedDataParallel counts on it.
        packs += [replace(one, members=tuple(n + member for member in one.members)) for one in plain]
        with self.accelerator.autocast():
            logprobs, entropies = packed(model, packs, n + len(texts), temperatures)
        self._ntp = torch.zeros((), device=input_ids.device)
        for text, row in zip(self._texts, logprobs[n:], strict=True):
            self._ntp = self._ntp - row[torch.tensor(self._learnt(text), device=row.device)].sum()
        for one in packs:
            size = len(one.ids_t)
            self.spent["tokens/update"] += size
            self.spent["flops/update"] += self._cost.train(size, one.pairs, len(one.targets))
        return _padded(logprobs[:n], logits_to_keep), _padded(entropies[:n], logits_to_keep), None

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> Tensor:
        self._texts = inputs["texts"]
        loss = super()._compute_loss(model, inputs)
        if not self.ntp_weight:
            return loss
        share = self._ntp * self.accelerator.num_processes / inputs["text_tokens"].clamp(min=1)
        self._metrics["train"]["ntp_loss"].append(share.item() * self.args.steps_per_generation)
        return loss + self.ntp_weight * share

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> float | None:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            raise ForethinkError(
                f"step {self.state.global_step + 1}: the gradient is {norm}; the last checkpoint is kept: lower "
                "train.learning_rate or set train.precision=fp32, in another run folder."
            )
        return norm

    # -- what a step says of itself, what a checkpoint keeps -----------------------------------------------------

    def _log_groups(self, seen: list[Group], kept: list[Group]) -> None:
        self._figures = pooled(gather_object([figures(seen, kept)]))
        for name, value in self._figures.items():
            self._metrics["train"][name].append(value)

    def total_spent(self) -> dict[str, float]:
        """Tokens, FLOPs and seconds since the run began, over all processes (seconds: of the slowest)."""
        everyone = gather_object([dict(self.spent)])
        names = sorted({name for one in everyone for name in one})
        return {
            name: max(one.get(name, 0) for one in everyone)
            if name == "seconds"
            else sum(one.get(name, 0) for one in everyone)
            for name in names
        }

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """TRL's log with what was spent; TRL's own entropy (of trained tokens only) gives way to the samples'."""
        if "loss" in logs:
            now, generated = time.perf_counter(), self.spent["tokens/generated"]
            seconds, tokens = now - self._mark[0], generated - self._mark[1]
            self._mark = (now, generated)
            self.spent["seconds"] += seconds  # type: ignore[assignment]
            total = self.total_spent()
            total["flops/total"] = sum(value for name, value in total.items() if name.startswith("flops/"))
            logs |= total | {"step_seconds": seconds, "tokens_per_second": tokens / seconds}
            self._metrics["train"]["entropy"] = [self._figures["entropy"]]
            self._metrics["train"]["update_seconds"] = self._metrics["train"].pop("step_time", [0.0])
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """TRL's train."""
        self._mark = (time.perf_counter(), self.spent["tokens/generated"])
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        spent = self.total_spent()  # after it every process has written its part
        if self.args.should_save:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            write_atomic(folder / SPENT, json.dumps(spent) + "\n")
            mark_complete(folder)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Nothing: a run folder says of itself what it is."""


def _padded(rows: Sequence[Tensor], width: int) -> Tensor:
    return torch.stack([torch.nn.functional.pad(row, (0, width - len(row))) for row in rows])


def _rewarded_elsewhere(**_: Any) -> list[float]:
    raise RuntimeError("forethink reads and rewards completions itself; TRL's reward path is not taken")

"""The G completions of one problem: their advantages, their place in a batch, what is logged of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forethink.records import sample_record
from forethink.rewards import degenerate, outcome, right_if_stripped
from forethink.templates import box_opens
from forethink.types import Answer, Completion, Finish, Outcome, Problem, Question, Status

Task = Problem | Question

EPSILON = 1e-4  # added to the group's standard deviation, as in TRL


class Replies(NamedTuple):
    """One problem's prompt and its G completions, read."""

    problem: Any
    prompt: list[int]
    completions: list[Completion]
    answers: list[Answer]


class Scored(NamedTuple):
    """A group's rewards, and the tokens that train (None: all of them)."""

    rewards: list[float | None]
    masks: list[list[bool]] | None = None


Score = Callable[[Sequence[Replies]], tuple[list[Scored], int]]


class Hooks(NamedTuple):
    """What the trainer does not know of itself: how tasks are asked, read, rewarded and judged.

    ``render``: task → prompt token ids. ``read``: completion → answer. ``score``: rewards of all groups sampled and,
    where the reward trains part of a completion only, loss masks; with the operations that it took. ``outcome``: the
    plain verdict, whatever the reward.
    """

    render: Callable[[Any], list[int]]
    read: Callable[[Completion], Answer]
    score: Score
    outcome: Callable[[Answer, Any], Outcome] = outcome


@dataclass(frozen=True)
class Group:
    """The G completions of one problem, read and rewarded.

    ``advantages`` is fp32 [G]; ``masks`` says token by token what the loss sees, None for everything.
    """

    problem: Task
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

    @property
    def tokens(self) -> int:
        """Completion tokens that the loss sees."""
        if self.masks is not None:
            return sum(map(sum, self.masks))
        return sum(len(completion.token_ids) for completion in self.completions)


def advantages(rewards: Sequence[float | None]) -> Tensor:
    """Group-relative advantages (r − mean) / (std + 1e-4), fp32 [G]; an unscored completion gets 0.

    The standard deviation is the sample one (n − 1), over the scored completions. Source: GRPO (2402.03300, section
    4.1.2). Equal rewards give exactly 0, whatever their rounding.
    """
    values = torch.tensor([float("nan") if r is None else r for r in rewards], dtype=torch.float32)
    scored = ~values.isnan()
    known = values[scored]
    if len(known) < 2 or bool((known == known[0]).all()):
        return torch.zeros_like(values)
    return torch.where(scored, (values - known.mean()) / (known.std() + EPSILON), 0.0)


def thought_mask(completion: Completion, token_bytes: Sequence[bytes], thought_open: bool) -> list[bool]:
    r"""True for the tokens that decide what is predicted: up to the one that completes ``\boxed{``.

    What stands inside the box has no influence on log p(x_t | context, thought). Where no box is opened the whole
    completion is thought.
    """
    opened = box_opens(completion.text, thought_open)
    if opened is None:
        return [True] * len(completion.token_ids)
    mask, start = [], 0
    for token in completion.token_ids:
        mask.append(start < opened)
        start += len(token_bytes[token]) if token < len(token_bytes) else 0
    return mask


def idle_group(problem: Task, token: int, count: int) -> Group:
    """A group of ``count`` completions of one token and no gradient, for a process that has less to train than others.

    Collective operations over processes want as many rows from each.
    """
    nothing = [Completion(problem.id, i, (token,), b"", (0.0,), Finish.LENGTH, 0) for i in range(count)]
    return Group(problem, [token], nothing, [], [], [None] * count, torch.zeros(count), [[False]] * count)


def collate(groups: Sequence[Group], pad: int) -> dict[str, Tensor]:
    """TRL's micro-batch of B completions: prompts padded left [B, P], completions padded right [B, R].

    ``tool_mask`` (TRL's name for "in the loss") is there where a reward trains part of a completion only.
    """
    rows = [(group, i) for group in groups for i in range(len(group.completions))]
    wide = max(len(group.prompt) for group, _ in rows)
    lengths = torch.tensor([len(group.completions[i].token_ids) for group, i in rows])
    right = torch.nn.utils.rnn.pad_sequence
    prompts = [torch.tensor(group.prompt) for group, _ in rows]
    completions = [torch.tensor(group.completions[i].token_ids) for group, i in rows]
    batch = {
        "prompt_ids": right(prompts, batch_first=True, padding_value=pad, padding_side="left"),
        "prompt_mask": torch.stack([(torch.arange(wide) >= wide - len(p)).long() for p in prompts]),
        "completion_ids": right(completions, batch_first=True, padding_value=pad),
        "completion_mask": (torch.arange(int(lengths.max())) < lengths[:, None]).long(),
        "advantages": torch.cat([group.advantages for group in groups]),
    }
    if any(group.masks is not None for group in groups):
        masks = [
            torch.tensor(group.masks[i] if group.masks is not None else [True] * int(length), dtype=torch.long)
            for (group, i), length in zip(rows, lengths, strict=True)
        ]
        batch["tool_mask"] = right(masks, batch_first=True)
    return batch


def figures(seen: Sequence[Group], kept: Sequence[Group]) -> dict[str, float]:
    """What a step's sampled groups look like, over all that were sampled, kept or not.

    ``entropy`` is the mean of −log p over sampled tokens: an unbiased estimate of the sampling distribution's
    entropy a token, in nats. Two keys are counts, the others means.
    """
    completions = [c for group in seen for c in group.completions]
    answered = [(answer, group.problem) for group in seen for answer in group.answers]
    outcomes = Counter(o for group in seen for o in group.outcomes)
    rewards = [r for group in seen for r in group.rewards if r is not None]
    thoughts = [answer.thought for answer, _ in answered]
    verdicts = Counter(group.verdict for group in seen)
    n, tokens = len(completions), sum(len(c.token_ids) for c in completions)
    return {
        "reward": sum(rewards) / max(len(rewards), 1),
        "accuracy": outcomes[Outcome.RIGHT] / n,
        **{f"outcome/{o.value}": outcomes[o] / n for o in Outcome},
        "boxed": sum(answer.status is Status.BOXED for answer, _ in answered) / n,
        "right_if_stripped": sum(isinstance(p, Problem) and right_if_stripped(a, p) for a, p in answered) / n,
        "groups/all_right": verdicts["all_right"] / len(seen),
        "groups/all_wrong": verdicts["all_wrong"] / len(seen),
        "groups/degenerate": (verdicts["all_right"] + verdicts["all_wrong"]) / len(seen),
        "groups/signal": sum(group.signal for group in seen) / len(seen),
        "groups/sampled": float(len(seen)),
        "groups/kept": float(len(kept)),
        "completion_tokens": tokens / n,
        "thought_characters": sum(map(len, thoughts)) / n,
        "distinct_thoughts": len(set(thoughts)) / n,
        "entropy": -sum(sum(c.logprobs) for c in completions) / max(tokens, 1),
    }


def pooled(everyone: Sequence[dict[str, float]]) -> dict[str, float]:
    """The `figures` of several processes as one: counts add up, means are weighted by groups sampled."""
    groups = [one["groups/sampled"] for one in everyone]
    return {
        name: sum(one[name] for one in everyone)
        if name in ("groups/sampled", "groups/kept")
        else sum(one[name] * n for one, n in zip(everyone, groups, strict=True)) / sum(groups)
        for name in everyone[0]
    }


def sample_records(step: int, groups: Sequence[Group]) -> list[dict[str, Any]]:
    """The lines of ``samples.jsonl``, one a completion. ``step`` counts updates from 1."""
    return [
        sample_record(step, group.problem.id, len(group.prompt), *one)
        for group in groups
        for one in zip(group.completions, group.answers, group.outcomes, group.rewards, strict=True)
    ]

"""A quick look at how a policy answers: box rate, agreement with itself, right answers, groups with a signal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from forethink.flops import Flops
from forethink.head import head_logits
from forethink.packing import body_states
from forethink.rewards import degenerate, outcome
from forethink.rollout import Engine, generate_counted
from forethink.templates import Template, read
from forethink.training.forward import Packer
from forethink.types import Answer, Outcome, Problem, Status

_AT_ONCE = 512  # contexts packed together


@dataclass(frozen=True)
class Candidates:
    """The policy's own next tokens at one position, most probable first, with their probabilities."""

    ids: tuple[int, ...]
    probabilities: tuple[float, ...]


@torch.no_grad()
def candidates(
    model: PreTrainedModel,
    contexts: Sequence[Sequence[int]],
    k: int,
    spent: Counter[str],
    packer: Packer | None = None,
) -> list[Candidates]:
    """The k most probable next tokens after each bare context (token ids, any BOS included), without a thought.

    Contexts that are prefixes of one document share one forward pass, wherever in the list they stand. The operations
    are added to ``spent`` as ``flops/candidates``.

    Args:
        packer: the model's, from an earlier call; a new one checks the model's attention first.
    """
    packer = packer or Packer(model)
    cost = Flops.of(model)
    found: list[Candidates] = [Candidates((), ())] * len(contexts)
    order = sorted(range(len(contexts)), key=lambda i: list(contexts[i]))  # one document's follow one another
    console = Console(stderr=True)
    quiet = len(order) <= _AT_ONCE or not console.is_terminal
    for begin in track(range(0, len(order), _AT_ONCE), "candidates", console=console, disable=quiet):
        some = order[begin : begin + _AT_ONCE]
        # The token asked for is not looked at: one that is in every vocabulary closes each sequence.
        for tree in packer([[*contexts[i], 0] for i in some], [len(contexts[i]) for i in some]):
            one = tree.to(model.device)
            logits = head_logits(model, body_states(model, one)[one.sources])
            spent["flops/candidates"] += cost.forward(len(one.ids_t), one.pairs, len(logits))
            top = logits.softmax(-1).topk(k, -1)
            for row, member in enumerate(one.members):
                found[some[member]] = Candidates(tuple(top.indices[row].tolist()), tuple(top.values[row].tolist()))
    return found


@dataclass(frozen=True)
class Probe:
    """Shares over the completions of a set of positions (signal: over its groups)."""

    positions: int
    box: float
    agree: float
    right: float
    plain: float
    signal: float
    tokens: float

    def line(self) -> str:
        """The figures in one line."""
        return (
            f"box {self.box:.1%}, agrees with own arg-max {self.agree:.1%}, right {self.right:.1%} "
            f"(plain {self.plain:.1%}), groups with a signal {self.signal:.1%}, {self.tokens:.0f} tokens a reply"
        )

    def record(self) -> dict[str, float]:
        """The figures by name, for metrics.jsonl."""
        return {f"probe/{name}": value for name, value in asdict(self).items()}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Probe:
        """The figures of a record that was made of them."""
        return cls(**{field.name: record[f"probe/{field.name}"] for field in fields(cls)})


def probe(
    engine: Engine,
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    own: Sequence[bytes],
    seed: int,
    cost: Flops,
    spent: Counter[str],
) -> tuple[Probe, list[list[Answer]]]:
    """Sample a group at every position and count.

    Args:
        own: bytes of the policy's plain arg-max at each position, before training.
        cost: of the policy.
        spent: gains ``flops/rollout`` and ``tokens/generated``.
    """
    prompts = [template.render(problem, tokenizer) for problem in problems]
    opened = template.opens_thought(tokenizer)
    groups, flops = generate_counted(engine, cost, prompts, [problem.id for problem in problems], seed)
    spent["flops/rollout"] += flops
    spent["tokens/generated"] += sum(len(completion.token_ids) for group in groups for completion in group)
    answers = [
        [read(c.text, finish=c.finish, thought_open=opened, tokens=len(c.token_ids)) for c in group]
        for group in groups
    ]
    total = sum(map(len, answers))
    boxed = sum(a.status is Status.BOXED for group in answers for a in group)
    agree = sum(a.prediction == mine for group, mine in zip(answers, own, strict=True) for a in group)
    outcomes = [[outcome(a, p) for a in group] for group, p in zip(answers, problems, strict=True)]
    figures = Probe(
        positions=len(problems),
        box=boxed / total,
        agree=agree / total,
        right=sum(o is Outcome.RIGHT for group in outcomes for o in group) / total,
        plain=sum(mine == p.next_token for mine, p in zip(own, problems, strict=True)) / len(problems),
        signal=sum(degenerate(group) is None for group in outcomes) / len(problems),
        tokens=sum(a.tokens for group in answers for a in group) / total,
    )
    return figures, answers

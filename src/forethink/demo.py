"""The demonstration: every stage on text that each Python brings along, with a table before and after.

The corpus is CPython's documentation of its own language, in ``pydoc_data.topics``: real prose with grammar rules and
code between. The recipe is ``demo.toml`` beside this file; like every stage, the demonstration goes on where it was
stopped.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink import stages
from forethink.config import Config
from forethink.records import read_problems
from forethink.rundir import read_jsonl, write_atomic
from forethink.types import ForethinkError, Outcome, Problem

if TYPE_CHECKING:
    from rich.console import Console

RECIPE = Path(__file__).with_name("demo.toml")
Record = dict[str, Any]

_SHOWN = 3  # completions of the position shown
_CONTEXT = 280  # characters of its context


def write_corpus(path: Path) -> int:
    """Write CPython's documentation topics as JSON lines, shortest first, so that ``corpus.limit`` bounds the work.

    Returns:
        The number of topics.

    Raises:
        ForethinkError: this Python comes without its documentation topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ForethinkError(
            "this Python has no pydoc_data.topics, the demo's text; use another one, or name a corpus with "
            "`forethink score --corpus FILE`."
        ) from None
    ordered = sorted(topics.items(), key=lambda item: (len(item[1]), item[0]))
    lines = [json.dumps({"topic": name, "text": text}, ensure_ascii=False) for name, text in ordered]
    data = "\n".join(lines) + "\n"
    if not path.exists() or path.read_bytes() != data.encode():
        write_atomic(path, data)
    return len(lines)


@dataclass(frozen=True)
class Figures:
    """Shares over one evaluation's positions: plain and reasoning accuracy, box rate."""

    positions: int
    plain: float
    reasoning: float
    box: float

    @classmethod
    def of(cls, evaluation: Path) -> Figures:
        """Read the figures of an evaluation's run folder."""
        rows = list(read_jsonl(evaluation / "positions.jsonl"))
        if not rows:
            raise ForethinkError(f"{evaluation}: holds no positions; remove the folder and start the demo again.")
        samples = sum(row["samples"] for row in rows)
        return cls(
            positions=len(rows),
            plain=sum(row["plain"] for row in rows) / len(rows),
            reasoning=sum(row["right"] for row in rows) / samples,
            box=sum(row["boxed"] for row in rows) / samples,
        )


def quarters(metrics: Iterable[Mapping[str, Any]]) -> tuple[float, float] | None:
    """Mean reward of the first and of the last quarter of the training steps; None with fewer than four steps."""
    rewards = [row["reward"] for row in metrics if row.get("reward") is not None]
    if len(rewards) < 4:
        return None
    size = len(rewards) // 4
    return sum(rewards[:size]) / size, sum(rewards[-size:]) / size


def telling_group(samples: Iterable[Record]) -> list[Record]:
    """The group with right and wrong answers nearest to half and half, the latest such; the last one if none."""
    best: list[Record] = []
    score = (-1.0, -1)
    for (step, _), group in groupby(samples, key=lambda record: (record["step"], record["problem"])):
        members = list(group)
        right = sum(record["outcome"] == Outcome.RIGHT for record in members) / len(members)
        rank = (-abs(right - 0.5) if 0 < right < 1 else -1.0, step)
        if rank >= score:
            best, score = members, rank
    return best


def run_demo(config: Config) -> Path:
    """Run all stages below ``config.run`` and print what came of them.

    Args:
        config: the demo's recipe with any overrides; its corpus is always ``<run>/corpus.jsonl``.

    Returns:
        ``config.run``.
    """
    from rich.console import Console

    console = Console(highlight=False)
    started = time.monotonic()
    run = Path(config.run)
    path = run / "corpus.jsonl"

    def say(number: int, text: str) -> None:
        console.print(f"\n[bold]{number}/7 {text}[/bold]  ({time.monotonic() - started:,.0f} s)")

    count = write_corpus(path)
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"path": str(path)})})
    say(1, f"score: entropy of every position, {config.corpus.limit or count} of {count} topics")
    stages.score(config)
    say(2, "problems: choose positions of the training and the held-out topics")
    stages.problems(config)
    say(3, "eval: the policy as it comes, on held-out positions")
    evaluations = {"start": _evaluate(config, "eval-start", None)}
    say(4, "warmup: the form of an answer, from the policy's own candidates")
    warm = stages.warmup(config) / "model"
    say(5, "eval: after the warm start, same positions")
    evaluations["after warm start"] = _evaluate(config, "eval-warm", warm)
    say(6, f"train: {config.train.steps} steps of reinforcement pre-training")
    trained = stages.train(config)
    say(7, "eval: after training, same positions")
    evaluations["after RPT"] = _evaluate(config, "eval-trained", trained / "model")
    _report(console, config, evaluations)
    console.print(f"\n{time.monotonic() - started:,.0f} s in all.")
    return run


def _evaluate(config: Config, name: str, model: Path | None) -> Path:
    """An evaluation; of the policy itself where the model's folder is absent (a skipped warm start)."""
    chosen = str(model) if model is not None and model.exists() else None
    return stages.eval(
        config.model_copy(update={"eval": config.eval.model_copy(update={"name": name, "model": chosen})})
    )


def _report(console: Console, config: Config, evaluations: Mapping[str, Path]) -> None:
    from rich.table import Table

    figures = {name: Figures.of(path) for name, path in evaluations.items()}
    console.print(f"\n{next(iter(figures.values())).positions} held-out positions, the same in every row:")
    table = Table("")
    for name in ("plain accuracy", "reasoning accuracy", "box rate"):
        table.add_column(name, justify="right")
    for name, one in figures.items():
        table.add_row(name, f"{one.plain:.1%}", f"{one.reasoning:.1%}", f"{one.box:.1%}")
    console.print(table)
    run = Path(config.run)
    both = quarters(read_jsonl(run / "train" / "metrics.jsonl"))
    if both is not None:
        few, quarter = config.train.limit, config.train.steps // 4 * config.train.problems
        same = f", over the same {few} positions" if few and quarter % few == 0 else ""
        console.print(
            f"reward in training: {both[0]:.3f} in the first quarter of steps, {both[1]:.3f} in the last{same}"
        )
    problems = {problem.id: problem for problem in read_problems(run / "problems", "train")}
    group = telling_group(read_jsonl(run / "train" / "samples.jsonl"))
    if group and group[0]["problem"] in problems:
        _show(console, problems[group[0]["problem"]], group)
    console.print(
        f"\nWhere to look next: {run}/train/samples.jsonl (every thought), {run}/train/metrics.jsonl (every step),\n"
        f"{evaluations['after RPT']}/eval.json (intervals), docs/tutorial.md (the same on your own text).",
        soft_wrap=True,
    )


def _show(console: Console, problem: Problem, group: Sequence[Record]) -> None:
    """One position: its context, what came next, what the policy thought."""

    def text(data: bytes) -> str:
        return repr(data.decode("utf-8", errors="replace"))

    def line(label: str, value: str) -> None:
        console.print(f"{label:>12}  {value}", markup=False, soft_wrap=True)

    context = problem.context.decode("utf-8", errors="replace")[-_CONTEXT:]
    console.print(f"\n[bold]One position, step {group[0]['step']}[/bold]")
    line("context", f"… {context!r}")
    line("true text", text(problem.target))
    line("arg-max", f"{text(problem.argmax_bytes)} (without a thought)")
    right = [record for record in group if record["outcome"] == Outcome.RIGHT]
    other = [record for record in group if record["outcome"] != Outcome.RIGHT]
    for record in [*right[:1], *other][:_SHOWN] if other else right[:_SHOWN]:
        line("thought", record["thought"].strip() or "(none)")
        answer = text(base64.b64decode(record["prediction"])) if record["status"] == "boxed" else record["status"]
        reward = "not scored" if record["reward"] is None else f"reward {record['reward']:g}"
        line("answer", f"{answer}: {record['outcome']}, {reward}")
    line("", f"{len(right)} of {len(group)} completions are right")

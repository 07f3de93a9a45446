"""The figures of an evaluation on questions: accuracy with intervals, and differences on the same questions."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from forethink.evaluate.stats import cluster_bootstrap, paired_bootstrap, pass_at_k, powers_of_two, wilson_of
from forethink.rundir import read_jsonl
from forethink.types import ForethinkError, Question, Status

Record = dict[str, Any]
GREEDY = -1  # the greedy completion's number
_COUNTED = ("right", "wrong", "missing", "cut_off", "boxed", "tokens")


def question_records(questions: Sequence[Question], samples: Iterable[Record]) -> list[Record]:
    """One record a question: its completions counted, the greedy one apart under ``greedy``."""
    counts = {one.id: (Counter[str](), Counter[str]()) for one in questions}
    for sample in samples:
        count = counts[sample["problem"]][sample["sample"] == GREEDY]
        count[sample["outcome"]] += 1
        count["boxed"] += sample["status"] == Status.BOXED
        count["tokens"] += sample["tokens"]
        count["samples"] += 1

    def own(count: Counter[str]) -> Record:
        return {name: count[name] for name in ("samples", *_COUNTED)}

    return [
        {"problem": one.id, "text": one.text, "answer": one.answer}
        | own(counts[one.id][0])
        | {"greedy": own(counts[one.id][1])}
        for one in questions
    ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def summary(records: Sequence[Record], samples: int, resamples: int, seed: int) -> Record:
    """The figures of ``questions.json`` from the records of ``questions.jsonl``.

    Every share has ``value``, ``bootstrap`` (questions drawn anew; None with fewer than two) and ``wilson`` (None
    where a question has several completions that do not all say the same: `stats.wilson_of`). ``accuracy`` and
    ``box`` are over the samples, ``greedy`` and ``greedy_box`` over the greedy completions; ``signal`` is the share of
    questions that are neither always nor never right, those a group of GRPO learns from.
    """
    powers = powers_of_two(samples)
    columns: dict[str, list[float]] = {
        "accuracy": [r["right"] / samples for r in records],
        "greedy": [float(r["greedy"]["right"]) for r in records],
        "box": [r["boxed"] / samples for r in records],
        "greedy_box": [float(r["greedy"]["boxed"]) for r in records],
        **{f"pass@{k}": [pass_at_k(samples, r["right"], k) for r in records] for k in powers},
    }
    table = np.array(list(columns.values())).T
    bounds = cluster_bootstrap(table, [r["problem"] for r in records], resamples, seed)
    shares: Record = {}
    for i, name in enumerate(columns):
        single = samples == 1 or name.startswith("greedy")
        shares[name] = {
            "value": float(table[:, i].mean()),
            "wilson": wilson_of(table[:, i], single),
            "bootstrap": None if np.isnan(bounds[:, i]).any() else [float(bound) for bound in bounds[:, i]],
        }
    total = samples * len(records)
    return {
        "questions": len(records),
        **{name: shares[name] for name in ("accuracy", "greedy", "box", "greedy_box")},
        "pass_at": {str(k): shares[f"pass@{k}"] for k in powers},
        "outcomes": {kind: sum(r[kind] for r in records) / total for kind in _COUNTED[:4]},
        "signal": sum(0 < r["right"] < samples for r in records) / len(records) if samples > 1 else None,
        "all_right": sum(r["right"] == samples for r in records) / len(records),
        "all_wrong": sum(r["right"] == 0 for r in records) / len(records),
        "completion_tokens": sum(r["tokens"] for r in records) / total,
    }


def _finished(folder: Path) -> tuple[Record, list[Record]]:
    file = folder / "questions.json"
    if not file.is_file():
        raise ForethinkError(
            f"{folder}: no finished evaluation on questions (it has no questions.json); run it there first."
        )
    try:
        return json.loads(file.read_text(encoding="utf-8")), list(read_jsonl(folder / "questions.jsonl"))
    except (OSError, ValueError) as error:
        raise ForethinkError(f"{file}: cannot be read ({error}); make this evaluation again.") from None


def compare_questions(run_a: str | Path, run_b: str | Path, resamples: int = 2000, seed: int = 0) -> Record:
    """Two finished evaluations on the same questions: differences a − b with paired 95 % intervals over questions.

    Raises:
        ForethinkError: a folder holds no finished evaluation, or they stand on different questions.
    """
    (ours, a), (theirs, b) = _finished(Path(run_a)), _finished(Path(run_b))
    if [r["problem"] for r in a] != [r["problem"] for r in b]:
        shared = len({r["problem"] for r in a} & {r["problem"] for r in b})
        raise ForethinkError(
            f"{run_b}: evaluated on other questions than {run_a} ({shared} of {len(a)} shared); evaluate both with "
            "the same source, options and eval.positions."
        )

    def values(records: Sequence[Record], name: str) -> list[float]:
        if name == "greedy":
            return [float(r["greedy"]["right"]) for r in records]
        return [r["right" if name == "accuracy" else "boxed"] / r["samples"] for r in records]

    rows: Record = {}
    for name in ("accuracy", "greedy", "box"):
        pair = values(a, name), values(b, name)
        mean, low, high = paired_bootstrap(*pair, [r["problem"] for r in a], resamples, seed)
        rows[name] = {
            "ours": float(np.mean(pair[0])),
            "theirs": float(np.mean(pair[1])),
            "difference": mean,
            "interval": None if _number(low) is None else [low, high],
        }
    return {"folder": str(run_b), "models": {"ours": ours["model"], "theirs": theirs["model"]}, **rows}


def show_questions(result: Mapping[str, Any]) -> None:
    """Print the figures, and a line for every comparison."""

    def share(own: Mapping[str, Any]) -> str:
        interval = own["wilson"] or own["bootstrap"]
        between = "" if interval is None else f" ({100 * interval[0]:.1f} … {100 * interval[1]:.1f})"
        return f"{100 * own['value']:.1f} %{between}"

    of = f"{result['samples']} sample(s) at T {result['temperature']:g}, {result['max_tokens']} tokens"
    print(f"{result['model']['name']} on {result['questions']} questions of {result['source']}; {of}")
    print(f"  right, sampled  {share(result['accuracy'])}")
    for k, own in list(result["pass_at"].items())[1:]:
        print(f"  pass@{k:<9}  {share(own)}")
    print(f"  right, greedy   {share(result['greedy'])}")
    print(f"  with a box      {share(result['box'])}")
    kinds = ", ".join(f"{kind.replace('_', ' ')} {100 * value:.1f} %" for kind, value in result["outcomes"].items())
    print(f"  replies: {kinds}; {result['completion_tokens']:.0f} tokens on average")
    for one in result["against"]:
        print(f"  difference to {one['folder']}, percentage points, paired:")
        for name, label in (("accuracy", "sampled"), ("greedy", "greedy"), ("box", "box")):
            own = one[name]
            low, high = own["interval"] or (math.nan, math.nan)
            print(f"    {label:<8} {100 * own['difference']:+.1f} ({100 * low:+.1f} … {100 * high:+.1f})")

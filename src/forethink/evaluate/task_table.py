"""What came of multiple-choice questions, by task, mode and category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from forethink.evaluate.choices import Read
from forethink.evaluate.stats import wilson

Record = dict[str, Any]


def tabulate_tasks(samples: Sequence[Mapping[str, Any]]) -> list[Record]:
    """One row a task, mode and category, "all" first: n, accuracy, chance, lm-eval's own figure, what was read.

    ``chance`` is the mean of 1/options; ``accuracy`` holds ``value`` and ``wilson`` (95 %); ``lm_eval`` is lm-eval's
    metric on the same items: ``acc``, or ``exact_match`` under its own regular expression.
    """
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for sample in samples:
        for category in ("", sample["category"]):
            groups.setdefault((sample["task"], sample["mode"], category), []).append(sample)
    rows = []
    for (task, mode, category), own in sorted(groups.items()):
        if category == "all":  # records without a category: the same row again
            continue
        right = sum(sample["right"] for sample in own)
        found = Counter(sample["read"] for sample in own)
        rows.append(
            {
                "task": task,
                "mode": mode,
                "category": category or "all",
                "n": len(own),
                "accuracy": {"value": right / len(own), "wilson": list(wilson(right, len(own)))},
                "chance": sum(1 / sample["options"] for sample in own) / len(own),
                "lm_eval": sum(sample["lm_eval"] for sample in own) / len(own),
                "read": {read.value: found[read.value] / len(own) for read in Read},
            }
        )
    return rows


def show_tasks(result: Mapping[str, Any]) -> None:
    """Print the rows of a ``tasks.json``; plain text where standard output is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # a file has no width
    table = Table(title=f"{result['model']['name']}: questions right, in %", title_justify="left", box=box.SIMPLE)
    for number, column in enumerate(("task, mode", "category", "n", "right", "chance", "lm-eval", "no letter")):
        table.add_column(column, justify="right" if number > 1 else "left")
    for row in result["rows"]:
        low, high = row["accuracy"]["wilson"]
        table.add_row(
            f"{row['task']}, {row['mode']}",
            row["category"],
            str(row["n"]),
            f"{100 * row['accuracy']['value']:.1f} ({100 * low:.1f} … {100 * high:.1f})",
            f"{100 * row['chance']:.1f}",
            f"{100 * row['lm_eval']:.1f}",
            f"{100 * (1 - row['read']['letter']):.1f}",
        )
    console.print(table)
    console.print("95 % intervals: Wilson; lm-eval: its own metric on the same items")

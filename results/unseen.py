"""Stated figures beside those of documents that nobody had looked at, and where the latter should lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cells import NOT_YET, Record, grid, percent, picked


def expected(value: float, interval: Sequence[float]) -> tuple[float, float]:
    """Where the figure of as many other documents should lie in 95 of 100 cases, by a figure and its own interval.

    An interval says where the mean over all documents is thought to lie. Another sample strays from that mean as much
    as this one does, so the difference of the two has twice the variance: each arm of the interval times √2, the
    prediction interval for the mean of a second sample of the same size.
    """
    low, high = (value + math.sqrt(2) * (end - value) for end in interval)
    return max(0.0, low), min(1.0, high)


def unseen(data: Record, *pairs: str) -> str:
    """Pairs ``label=run/evaluation=run/evaluation``, the second on other documents: what was stated, expected, found.

    Both intervals are the bootstrap's over documents, for plain accuracy too: positions of one document resemble each
    other, and that is what another sample of documents changes.
    """
    rows, splits = [], []
    for pair in pairs:
        label, stated, found = pair.rsplit("=", 2)
        (_, _, _, one), (_, _, _, two) = picked(data, "evals", [f"{label}={stated}", f"{label}={found}"])
        if one is None or two is None:
            rows.append([label, "–", NOT_YET])
            continue
        ours, theirs = ({r["split"]: r for r in side["rows"] if r["kind"] == "nested"} for side in (one, two))
        splits = list(ours)
        for metric in ("plain", "reasoning"):
            if one["samples"] == 1 and metric == "reasoning":
                continue  # a baseline, which was asked once and boxes nothing
            cells = []
            for split in splits:
                before, after = ours[split][metric], theirs[split][metric]["value"]
                if before["bootstrap"] is None or after is None:  # one document, or no position
                    cells.append("–")
                    continue
                low, high = expected(before["value"], before["bootstrap"])
                where = "" if low <= after <= high else " **outside**"
                cells.append(f"{percent(before['value'])} → {percent(low)} … {percent(high)}: {percent(after)}{where}")
            rows.append([label, metric, *cells])
    if not splits:
        return NOT_YET
    rows = [row + ["–"] * (2 + len(splits) - len(row)) for row in rows]
    return grid(["model", "accuracy, %", *(f"{split}: stated → expected: found" for split in splits)], rows)

"""What a report works out of run folders: scaling laws, paired differences, reasoning patterns, the collapse watch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from forethink.evaluated import Point, asked, before, fit_split, read_point
from forethink.paired import differences, finished, same_positions
from forethink.patterns import KEYWORDS, Shares, collapse_watch, count_patterns, pattern_table
from forethink.report.samples import Record, Source
from forethink.spent import AXES

RESAMPLES = 400  # bootstrap draws of a law; `forethink fit` takes 1000
PAIR_RESAMPLES = 1000
ALL_PAIRS = 10  # of more evaluations on the same positions each is held against the first alone
WINDOWS = 12  # of the collapse watch


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A finished evaluation: its folder, the run it lies in, and how the page names both."""

    title: str
    folder: Path
    run: Path
    label: str


def significant(value: Any, digits: int = 5) -> Any:
    """The same with numbers cut to so many digits: what a page draws needs no more."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: significant(one, digits) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [significant(one, digits) for one in value]
    return value


def _shown(point: Point, title: str) -> Record:
    """A point with its accuracies and their intervals, by split and metric."""
    accuracy: Record = {}
    for row in point.result["rows"]:
        own = {}
        for metric in ("reasoning", "plain"):
            share = row.get(metric) or {"value": None}
            ends = share.get("bootstrap") or share.get("wilson")
            own[metric] = None if share["value"] is None else [share["value"], *(ends or (None, None))]
        accuracy[row["split"]] = own
    return {"title": title, "step": point.step, **point.spent, "accuracy": accuracy}


def _law(key: tuple[str, ...], points: Sequence[tuple[Point, str]], seed: int) -> Record:
    """One curve: its points, and every split's fit or refusal; plain accuracy on the nested splits only."""
    own = [point for point, _ in points]
    rows = [row for row in own[0].result["rows"] if "kind" in row]
    asks = [("reasoning", row) for row in rows] + [("plain", row) for row in rows if row["kind"] == "nested"]
    fits = [
        {"metric": metric, **fit_split(own, row, axis, metric, RESAMPLES, seed)}
        for metric, row in asks
        for axis in AXES
        if any(axis in point.spent for point in own)
    ]
    return {
        "stage": key[0],
        "training": own[0].training.name,
        "splits": [{name: row.get(name) for name in ("split", "kind", "above")} for row in rows],
        "points": [_shown(point, title) for point, title in points],
        "fits": fits,
        "before": before(own),
    }


def scaling(evaluations: Sequence[Evaluated], seed: int = 0) -> Record:
    """The laws of evaluated checkpoints: one curve a run, kind of training and way of asking.

    Returns:
        ``curves``, least trained point first; ``left_out``: evaluations that are no point, with the reason.
    """
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[Point, str]]] = {}
    left_out = []
    for one in evaluations:
        try:
            found = read_point(one.folder, one.run)
            key = () if isinstance(found, str) else (*asked(found), found.training.name)
        except (KeyError, TypeError, ValueError) as error:
            found, key = f"its eval.json or its training's log lacks {error}", ()
        if isinstance(found, str):
            left_out.append({"evaluation": one.title, "reason": found})
        else:
            groups.setdefault((one.label, key), []).append((found, one.title))
    curves = []
    for (label, key), points in groups.items():
        points.sort(key=lambda pair: (pair[0].step, pair[1]))
        curves.append({"run": label, **_law(key, points, seed)})
    made: Record = significant({"curves": curves, "left_out": left_out})
    return made


def pairs(evaluations: Sequence[Evaluated], seed: int = 0) -> list[Record]:
    """Differences of evaluations on the same positions, all pairs of a group, or all against its first where many.

    Returns:
        Records of ``ours`` and ``theirs`` (titles; the later and the earlier) and ``rows`` (`paired.differences`).
    """
    groups: list[list[tuple[str, tuple[Record, list[Record]]]]] = []
    for one in evaluations:
        found = finished(one.folder)
        if not found[1] or not {"splits", "band", "right", "samples", "plain"} <= found[1][0].keys():
            continue
        if "thresholds" not in found[0]:
            continue
        for group in groups:
            if same_positions(found, group[0][1]):
                group.append((one.title, found))
                break
        else:
            groups.append([(one.title, found)])
    made = []
    for group in groups:
        chosen: Iterable[tuple[Any, Any]] = combinations(group, 2)
        if len(group) > ALL_PAIRS:
            chosen = [(group[0], other) for other in group[1:]]
        for (theirs, b), (ours, a) in chosen:
            rows = differences(a[1], b[1], a[0]["thresholds"], PAIR_RESAMPLES, seed)
            made.append({"ours": ours, "theirs": theirs, "rows": significant(rows)})
    return made


def patterns(sources: Sequence[Source], seed: int = 0) -> Record | None:
    """Shares of the six patterns in every set of completions, and the diversity of training's thoughts over time.

    Returns:
        ``keywords``; ``rows``, one a source, each held against the first; ``watch``, one a source with steps. None
        without completions.

    Raises:
        ForethinkError: a line that is no response.
    """
    rows: list[tuple[Source, Shares]] = []
    watch = []
    for source in sources:
        lines = [line for own in source.samples.values() for line in own]
        if not lines:
            continue
        file = source.folder / "samples.jsonl"
        lines.sort(key=lambda line: int(line.get("step") or 0))
        rows.append((source, count_patterns(file, lines)))
        watch.append({"label": source.label, "kind": source.kind, "windows": collapse_watch(file, WINDOWS, lines)})
    if not rows:
        return None
    table = pattern_table([shares for _, shares in rows], seed)
    made: Record = significant(
        {
            "keywords": {name: list(words) for name, words in KEYWORDS.items()},
            "rows": [
                {**row, "source": source.label, "kind": source.kind}
                for (source, _), row in zip(rows, table, strict=True)
            ],
            "watch": watch,
        }
    )
    return made

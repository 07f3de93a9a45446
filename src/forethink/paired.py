"""Positions by difficulty, and two evaluations on the same positions: differences with paired intervals.

Reads the folders of finished evaluations and nothing else, so that the stage, the comparison of runs and the report
count in the same way. Documents are drawn anew with replacement, all their positions together (a cluster bootstrap),
because positions of one document resemble each other; both sides get the same draws.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethink.rundir import read_jsonl
from forethink.types import ForethinkError

Record = dict[str, Any]

_DRAWS = 1 << 22  # (resample, document) pairs in memory at once


@dataclass(frozen=True, slots=True)
class Split:
    """A range of base entropy. Nested splits have no upper end; disjoint ones hold above < entropy ≤ up_to."""

    name: str
    kind: str  # "nested" or "disjoint"
    above: float
    up_to: float | None

    def holds(self, position: Mapping[str, Any]) -> bool:
        """Whether a position's record counts for this split."""
        if self.kind == "nested":
            return self.name in position["splits"]
        return bool(position["band"] == self.name)


def nats(value: float) -> str:
    return f"{value:.1f}" if round(value, 1) == value else f"{value:g}"


def splits(thresholds: Sequence[float]) -> list[Split]:
    """Nested splits, one a threshold (easy, medium, hard where there are three), then the disjoint bands."""
    shown = [nats(t) for t in thresholds]
    names = ["easy", "medium", "hard"] if len(thresholds) == 3 else [f"above {t}" for t in shown]
    ends: list[float | None] = [*thresholds[1:], None]
    nested = [Split(name, "nested", above, None) for name, above in zip(names, thresholds, strict=True)]
    bands = [f"{low}–{high}" for low, high in itertools.pairwise(shown)] + [f"> {shown[-1]}"]
    disjoint = [Split(*own) for own in zip(bands, itertools.repeat("disjoint"), thresholds, ends, strict=False)]
    return nested + disjoint


def cluster_bootstrap(
    values: NDArray[np.float64] | Sequence[Any],
    clusters: Sequence[str],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> NDArray[np.float64]:
    """Percentile intervals of means, whole clusters drawn with replacement.

    Args:
        values: [N] or [N, M]: M quantities of N positions, resampled together.
        clusters: [N], the document of each position.
        resamples: number of bootstrap draws.
        seed: of the draws.
        level: coverage.

    Returns:
        [2] or [2, M]: low and high. NaN with fewer than two clusters, which tell nothing about spread.
    """
    table = np.asarray(values, dtype=np.float64)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(names)
    if count < 2:
        return np.full((2, *table.shape[1:]), np.nan)
    columns = table.reshape(len(table), -1)
    sums = np.zeros((count, columns.shape[1]))
    np.add.at(sums, member, columns)
    sizes = np.bincount(member, minlength=count).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, _DRAWS // count)
    for start in range(0, resamples, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        means.append((drawn @ sums) / (drawn @ sizes)[:, None])
    tail = (1 - level) / 2
    bounds = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return bounds.reshape(2, *table.shape[1:])


def paired_bootstrap(
    ours: Sequence[float],
    theirs: Sequence[float],
    clusters: Sequence[str],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean difference ``ours − theirs`` over the same positions with its cluster-bootstrap interval (low, high)."""
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    low, high = cluster_bootstrap(differences, clusters, resamples, seed, level)
    return float(differences.mean()), float(low), float(high)


# By name: what is taken of our positions and of theirs.
_COMPARED = {
    "plain": ("plain", "plain"),
    "reasoning": ("right", "right"),
    "reasoning_less_plain": ("right", "plain"),
}


def differences(
    ours: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    thresholds: Sequence[float],
    resamples: int,
    seed: int,
) -> list[Record]:
    """Split by split, the difference in accuracy (ours − theirs) on the same positions, in three ways.

    ``plain`` and ``reasoning`` are like against like; ``reasoning_less_plain`` is our reasoning accuracy less their
    plain one, the paper's comparison of a thinking policy with the model it came from (arXiv 2506.08007, table 1).
    Both lists hold the same positions in the same order; ``interval`` is None in splits of fewer than two documents,
    and splits without positions are left out.
    """
    rows: list[Record] = []
    for split in splits(thresholds):
        pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if split.holds(a)]
        if not pairs:
            continue
        clusters = [a["document"] for a, _ in pairs]
        row: Record = {"split": split.name, "kind": split.kind, "positions": len(pairs)}
        for name, keys in _COMPARED.items():
            values = [
                [p[key] / (1 if key == "plain" else p["samples"]) for p in side]
                for key, side in zip(keys, zip(*pairs, strict=True), strict=True)
            ]
            mean, low, high = paired_bootstrap(values[0], values[1], clusters, resamples, seed)
            row[name] = {
                "ours": float(np.mean(values[0])),
                "theirs": float(np.mean(values[1])),
                "difference": mean,
                "interval": None if math.isnan(low) else [low, high],
            }
        rows.append(row)
    return rows


def finished(folder: Path) -> tuple[Record, list[Record]]:
    """The ``eval.json`` and the positions of a finished evaluation.

    Raises:
        ForethinkError: there is none, or it cannot be read.
    """
    file = folder / "eval.json"
    if not file.is_file():
        raise ForethinkError(
            f"{folder}: no finished evaluation (it has no eval.json); run `forethink eval` there first."
        )
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForethinkError(f"{file}: cannot be read ({error}); make this evaluation again.") from None
    return result, list(read_jsonl(folder / "positions.jsonl"))


_SAME = ("problem", "document", "entropy", "splits", "band")


def same_positions(ours: tuple[Record, list[Record]], theirs: tuple[Record, list[Record]]) -> bool:
    """Whether two evaluations, as `finished` reads them, stand on the same positions and splits, in one order."""
    keys = [[[p.get(key) for key in _SAME] for p in side[1]] for side in (ours, theirs)]
    return bool(ours[0]["thresholds"] == theirs[0]["thresholds"] and keys[0] == keys[1])


def compare(run_a: str | Path, run_b: str | Path, resamples: int = 2000, seed: int = 0) -> Record:
    """Two finished evaluations on the same positions: differences a − b with paired 95 % intervals.

    Args:
        run_a: folder of an evaluation.
        run_b: folder of the one it is held against.
        resamples: bootstrap draws of whole documents.
        seed: of these draws.

    Returns:
        ``folder``, ``model`` and ``perplexity`` of both sides, and ``rows``: see `differences`.

    Raises:
        ForethinkError: a folder holds no finished evaluation, or they stand on different positions.
    """
    ours, theirs = finished(Path(run_a)), finished(Path(run_b))
    a, b = ours[1], theirs[1]
    if not same_positions(ours, theirs):
        shared = len({p["problem"] for p in a} & {p["problem"] for p in b})
        raise ForethinkError(
            f"{run_b}: evaluated on other positions or splits than {run_a} ({shared} of {len(a)} shared); "
            "evaluate both with the same problems, seed, eval.base, eval.positions and eval.thresholds."
        )
    return {
        "folder": str(run_b),
        "models": {"ours": ours[0]["model"], "theirs": theirs[0]["model"]},
        "perplexity": {"ours": ours[0]["perplexity"], "theirs": theirs[0]["perplexity"]},
        "rows": differences(a, b, ours[0]["thresholds"], resamples, seed),
    }

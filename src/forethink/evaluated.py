"""Evaluated checkpoints with what their training had taken, read from run folders: the points of a scaling law.

Compute is counted from the start of reinforcement (or continual next-token) training: FLOPs of rollouts, refilled
batches included, of the policy's scores and of updates; tokens generated and trained on; seconds of steps. Scoring a
corpus and the warm start come before and are the same for every checkpoint; `before` tells what the latter took.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethink.rundir import read_json, read_jsonl
from forethink.spent import totals
from forethink.types import ForethinkError

Record = dict[str, Any]

METRICS = ("reasoning", "plain")
# Evaluations lie on one curve only where they asked in the same way.
_SAME = ("template", "temperature", "max_tokens", "samples", "thresholds", "per_split")
_DRAWS = 100  # bootstrap draws in memory at once


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluated checkpoint: ``spent`` holds flops, tokens and seconds as far as the training run logged them."""

    evaluation: Path
    training: Path
    stage: str
    step: int
    spent: dict[str, float]
    result: Record

    def accuracy(self, split: str, metric: str) -> float | None:
        """The share in a split; None where the split is absent or empty."""
        rows = [row for row in self.result["rows"] if row["split"] == split]
        return rows[0][metric]["value"] if rows else None


def _locate(model: str, run: Path) -> tuple[Path, int | None] | str:
    """The training folder that wrote a model, and the checkpoint's step (None: the end); or why there is none.

    A step is told by the name ``checkpoint-<step>``, by ``trainer_state.json`` in a copy of a checkpoint, or it is the
    last one for ``<training folder>/model``.
    """
    path = Path(model)
    named = re.fullmatch(r"checkpoint-(\d+)", path.name)
    if named or path.name == "model":
        folder = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        step = int(named[1]) if named else None
    elif (path / "trainer_state.json").is_file():
        folder, step = run / "train", int(read_json(path / "trainer_state.json")["global_step"])
    else:
        return f"{model} is no checkpoint of a training run"
    # A run folder may have been moved since, and relative names depend on where the command was started.
    for place in (folder, run / folder.name, run.parent / folder.name, run / "train"):
        if (place / "metrics.jsonl").is_file() and (place / "run.json").is_file():
            return place, step
    return f"{folder} holds no training run"


def read_point(evaluation: Path, run: Path) -> Point | str:
    """The point of a finished evaluation below a run, or why it is none."""
    result = read_json(evaluation / "eval.json")
    found = _locate(result["model"]["adapter"] or result["model"]["name"], run)
    if isinstance(found, str):
        return found
    training, step = found
    stage = read_json(training / "run.json").get("stage", "")
    if stage == "warmup":
        return "the warm start: training begins there"
    lines = {int(line["step"]): line for line in read_jsonl(training / "metrics.jsonl") if totals(line)}
    if not lines:
        return f"{training / 'metrics.jsonl'} tells no FLOPs, tokens or seconds"
    step = max(lines) if step is None else step
    kept = Path(result["model"]["name"]) / "spent.json"
    if step not in lines and kept.is_file():
        return Point(evaluation, training, stage, step, totals(read_json(kept)), result)
    if not min(lines) <= step <= max(lines):
        return f"{training / 'metrics.jsonl'} has no step {step}"
    steps = sorted(lines)
    spent = {
        key: float(np.interp(step, steps, [totals(lines[s])[key] for s in steps]))  # logged every few steps
        for key in totals(lines[steps[0]])
        if all(key in totals(lines[s]) for s in steps)
    }
    return Point(evaluation, training, stage, step, spent, result)


def read_points(runs: Sequence[Path], only: str = "*") -> tuple[list[Point], list[tuple[str, str]]]:
    """The evaluated checkpoints of runs, least trained first, and the evaluations left out with the reason.

    Args:
        runs: folders as given to ``--run``, or folders of single evaluations.
        only: a pattern of evaluations' folder names.

    Raises:
        ForethinkError: a folder without any evaluation; evaluations that asked differently, or of different trainings.
    """
    points: list[Point] = []
    left_out: list[tuple[str, str]] = []
    for run in runs:
        single = (run / "eval.json").is_file()
        folders = [run] if single else sorted(path.parent for path in run.glob("*/eval.json"))
        folders = [folder for folder in folders if fnmatch.fnmatch(folder.name, only)]
        if not folders:
            raise ForethinkError(f"{run}: holds no finished evaluation; run `forethink eval` on checkpoints first.")
        for folder in folders:
            found = read_point(folder, run.parent if single else run)
            if isinstance(found, str):
                left_out.append((str(folder), found))
            else:
                points.append(found)
    for key in _SAME:
        odd = [point for point in points if point.result.get(key) != points[0].result.get(key)]
        if odd:
            raise ForethinkError(
                f"{odd[0].evaluation}: {key} is {odd[0].result.get(key)}, but {points[0].result.get(key)} in "
                f"{points[0].evaluation}; one curve needs one way of asking: choose evaluations with --only PATTERN."
            )
    odd = [point for point in points if point.stage != points[0].stage]
    if odd:
        raise ForethinkError(
            f"{odd[0].evaluation}: of a training by {odd[0].stage!r}, {points[0].evaluation} by "
            f"{points[0].stage!r}; fit each alone: choose with --only PATTERN."
        )
    return sorted(points, key=lambda point: (point.step, str(point.evaluation))), left_out


def asked(point: Point) -> tuple[str, ...]:
    """The way an evaluation asked and what trained its checkpoint: points of one curve agree in it."""
    return (point.stage, *(json.dumps(point.result.get(key)) for key in _SAME))


def before(points: Sequence[Point]) -> dict[str, Record]:
    """FLOPs and seconds of the warm start beside each training folder, where one was made; no part of C."""
    found = {}
    for training in sorted({point.training for point in points}):
        state = training.parent / "warmup" / "run.json"
        result = read_json(state).get("result", {}) if state.is_file() else {}
        if "flops" in result:
            found[str(training)] = {key: result[key] for key in ("flops", "seconds") if key in result}
    return found


def document_draws(
    points: Sequence[Point], split: str, kind: str, metric: str, resamples: int, seed: int
) -> NDArray[np.float64] | None:
    """Accuracies [r, n] of a split on bootstrap draws of whole documents, the same draw for every point.

    None where an evaluation has no ``positions.jsonl``, or there are fewer than two documents.
    """
    sums: list[dict[str, NDArray[np.float64]]] = []
    for point in points:
        own: dict[str, NDArray[np.float64]] = {}
        for line in read_jsonl(point.evaluation / "positions.jsonl"):
            if split in line["splits"] if kind == "nested" else line["band"] == split:
                value = float(line["plain"]) if metric == "plain" else line["right"] / line["samples"]
                own[line["document"]] = own.get(line["document"], np.zeros(2)) + np.array([value, 1.0])
        sums.append(own)
    names = sorted(set().union(*sums)) if all(sums) else []
    if len(names) < 2:
        return None
    table = np.array([[own.get(name, np.zeros(2)) for own in sums] for name in names])  # [documents, n, 2]
    rng = np.random.default_rng(seed)
    made = []
    for start in range(0, resamples, _DRAWS):
        size = min(_DRAWS, resamples - start)
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=size).astype(np.float64)
        totals = np.einsum("rd,dnc->rnc", weights, table)
        whole = totals[(totals[..., 1] > 0).all(axis=1)]  # a draw may miss every document of a small split
        made.append(whole[..., 0] / whole[..., 1])
    drawn: NDArray[np.float64] = np.concatenate(made)
    return drawn if len(drawn) else None


def fit_split(
    points: Sequence[Point], row: Mapping[str, Any], axis: str, metric: str, resamples: int, seed: int
) -> Record:
    """The law of one split against one axis: what `scaling.Fit.record` holds, or ``refused``, the reason.

    Where chance alone would fit as well, ``r2`` is there beside the reason.

    Args:
        points: as `read_points` gives them.
        row: of an ``eval.json``: its ``split`` and ``kind``.
        axis: one of `AXES`.
        metric: one of `METRICS`.
        resamples: bootstrap draws.
        seed: of these draws.
    """
    from forethink.scaling import NoLaw, fit

    split, kind = row["split"], row["kind"]
    own = [p for p in points if axis in p.spent and p.accuracy(split, metric) is not None]
    pairs = [(p.spent[axis], float(p.accuracy(split, metric) or 0.0)) for p in own]
    record: Record = {"split": split, "kind": kind, "axis": axis, "points": len(pairs), "refused": None}
    try:
        fit(pairs, resamples=100, seed=seed)  # refuses before the documents are drawn
        draws = document_draws(own, split, kind, metric, resamples, seed)
        return record | fit(pairs, draws, resamples=resamples, seed=seed).record()
    except ForethinkError as error:
        known = {"r2": error.r2} if isinstance(error, NoLaw) else {}
        return record | {"refused": f"{split} against {axis}: {error}"} | known

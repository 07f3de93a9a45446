"""``forethink compare``: finished runs side by side: what each was, what it took, what came of it.

Reads run folders only. Every run stands for one evaluation; differences to the baseline are taken on the same
positions, with 95 % intervals over documents drawn anew (`forethink.paired`). Runs that cannot be paired say why.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethink.types import ForethinkError

Record = dict[str, Any]

SUMMARY = "finished runs side by side, with paired differences on the same positions"
TEXT = (
    "Reads the training and one evaluation of every RUN (a run's folder, or that of one evaluation). The first, or\n"
    "--baseline, is what the others are held against.\n"
    "Writes <RUN>/compare.json: settings, cost, training and accuracy of every run, differences with intervals."
)
EXAMPLE = "forethink compare runs/family/prefix_match runs/family/dense --markdown family.md"

WATCHED = ("reward", "accuracy", "boxed", "groups/degenerate", "thought_characters")
_ASKED = ("template", "temperature", "max_tokens", "samples")


@dataclass(frozen=True, slots=True)
class Place:
    """A RUN as given: its top folder, and its evaluation or why there is none."""

    given: Path
    top: Path
    evaluation: Path | None
    missing: str | None = None


def add_compare(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="a run's folder, or that of one of its evaluations")
    add("--baseline", metavar="RUN", help="what the others are held against (default: the first RUN)")
    add("--name", help="the evaluation of every run, by folder name (default: the one most runs have, the newest)")
    add("--out", metavar="FILE", help="where the figures go (default: compare.json in the first RUN)")
    add("--markdown", metavar="FILE", help="also write the tables as Markdown")
    add("--resamples", type=int, default=2000, metavar="N", help="bootstrap draws (default: 2000)")
    add("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def _json(path: Path) -> Record:
    from forethink.rundir import read_json  # here, since `--help` loads the standard library alone

    return read_json(path)


def places(runs: Sequence[Path], name: str | None) -> list[Place]:
    """Which evaluation every run stands for.

    Args:
        runs: run folders or folders of evaluations.
        name: of the evaluation in run folders; the name that most of them have when absent, of these the newest.

    Raises:
        ForethinkError: a folder is absent, or that of another stage.
    """
    own: dict[Path, list[str]] = {}
    newest: dict[str, str] = {}
    for run in runs:
        if not run.is_dir():
            raise ForethinkError(f"{run}: no such run; name the folder given to the stages with --run.")
        if (run / "eval.json").is_file():
            continue
        if (run / "run.json").is_file():
            raise ForethinkError(f"{run}: no finished evaluation; name one, or the run's folder, {run.parent}.")
        own[run] = sorted(file.parent.name for file in run.glob("*/eval.json"))
        for found in own[run]:
            state = run / found / "run.json"
            made = str(_json(state).get("created", "")) if state.is_file() else ""
            newest[found] = max(made, newest.get(found, ""))
    counts = Counter(found for names in own.values() for found in names)
    chosen = name or max(counts, key=lambda one: (counts[one], newest[one], one), default=None)
    result = []
    for run in runs:
        if run not in own:
            result.append(Place(run, run.parent, run))
        elif chosen in own[run]:
            result.append(Place(run, run, run / str(chosen)))
        else:
            has = f"it has {', '.join(own[run])}" if own[run] else "it has none"
            result.append(Place(run, run, None, f"no evaluation {chosen!r} ({has})" if chosen else "no evaluation"))
    return result


def quarters(lines: Sequence[Mapping[str, Any]], key: str) -> Record | None:
    """Means over the first and the last quarter of the logged steps (one step where there are fewer than four)."""
    values = [float(line[key]) for line in lines if line.get(key) is not None and math.isfinite(line[key])]
    if not values:
        return None
    size = max(1, len(values) // 4)
    return {"first": sum(values[:size]) / size, "last": sum(values[-size:]) / size}


def reward_words(settings: Mapping[str, Any], stage: str) -> str:
    """The reward of a training in a few words; the stage's name where it has none."""
    reward = settings.get("reward")
    if reward is None:
        return stage
    words, weight = str(reward["name"]), reward.get("length_weight") or 0
    words += " by the start" if reward.get("scorer") == "start" else ""
    if weight:
        words = f"{1 - weight:g}·{words} + {weight:g}·length({reward['length_budget']})"
    ntp = settings.get("train", {}).get("ntp_weight") or 0
    return f"{words} + {ntp:g}·NTP" if ntp else words


_PARAMETERS = {
    "threshold": ("threshold",), "band": ("threshold", "upper"), "top_fraction": ("fraction",), "random": ("fraction",)
}  # fmt: skip


def _selector(top: Path, inputs: Mapping[str, str]) -> str | None:
    """The selector of the problems a training read: its run's own, else those that its record names."""
    named = [Path(file).parent for file in inputs if Path(file).name == "train.parquet"]
    moved = [top.parent / folder.parent.name / folder.name for folder in named]
    for folder in (top / "problems", *named, *moved):
        if (folder / "run.json").is_file():
            knobs = _json(folder / "run.json").get("settings", {}).get("problems", {})
            name = str(knobs.get("selector"))
            return " ".join([name, "–".join(f"{knobs[key]:g}" for key in _PARAMETERS.get(name, ()))]).strip()
    return None


def _training(place: Place) -> Record:
    """What trained the evaluated model, with what, and what it took up to there; None where nothing did."""
    from forethink.evaluated import read_points
    from forethink.rundir import read_jsonl
    from forethink.spent import totals

    none: Record = dict.fromkeys(("training", "stage", "reward", "selector", "template", "step"))
    none |= {"spent": {}, "watched": {}}
    step: int | None = None
    if place.evaluation is not None:
        points, left_out = read_points([place.evaluation])
        if not points:
            return none | {"untrained": left_out[0][1]}
        folder, step, spent = points[0].training, points[0].step, points[0].spent
    else:
        folder, spent = place.top / "train", {}
    if not (folder / "run.json").is_file():
        return none | {"untrained": f"{folder} holds no training run"}
    lines = [line for line in read_jsonl(folder / "metrics.jsonl") if step is None or int(line["step"]) <= step]
    if step is None and lines:
        step, spent = int(lines[-1]["step"]), totals(lines[-1])
    record = _json(folder / "run.json")
    settings = record.get("settings", {})
    return {
        "training": str(folder),
        "stage": record.get("stage"),
        "reward": reward_words(settings, str(record.get("stage"))),
        "selector": _selector(place.top, record.get("inputs", {})),
        "template": settings.get("template", {}).get("name"),
        "step": step,
        "spent": spent,
        "watched": {key: quarters(lines, key) for key in WATCHED},
        "untrained": None,
    }


def _accuracy(result: Mapping[str, Any]) -> list[Record]:
    kept = ("split", "kind", "positions", "documents", "plain", "reasoning", "box")
    return [{key: row[key] for key in kept} for row in result["rows"]]


def _labels(runs: Sequence[Path]) -> list[str]:
    """The runs' paths below the folder that holds them all."""
    whole = [os.path.abspath(run) for run in runs]
    for i, path in enumerate(whole):
        if path in whole[:i]:
            raise ForethinkError(f"{runs[i]}: named twice; name every run once.")
    common = os.path.commonpath([os.path.dirname(path) for path in whole])
    return [os.path.relpath(path, common) for path in whole]


def _held_against(place: Place, base: Place, resamples: int, seed: int) -> tuple[list[Record] | None, list[str]]:
    """The paired differences of a run to the baseline, and what is to be said about them."""
    from forethink.paired import compare

    for one in (place, base):
        if one.evaluation is None:
            return None, [f"not paired: {one.given} has {one.missing}"]
    try:
        rows = compare(str(place.evaluation), str(base.evaluation), resamples, seed)["rows"]
    except ForethinkError as error:
        return None, [f"not paired: {error}"]
    ours, theirs = (_json(Path(str(one.evaluation)) / "eval.json") for one in (place, base))
    return rows, [
        f"asked with {key}={ours.get(key)}, the baseline with {theirs.get(key)}"
        for key in _ASKED
        if ours.get(key) != theirs.get(key)
    ]


def compare_runs(
    runs: Sequence[Path],
    baseline: Path | None = None,
    name: str | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> Record:
    """Everything of ``forethink compare``, as JSON values.

    Args:
        runs: run folders or folders of evaluations.
        baseline: one of them, or another that then comes first; the first when absent.
        name: see `places`.
        resamples: bootstrap draws of whole documents.
        seed: of these draws.

    Returns:
        ``baseline`` (a label) and ``runs``, in the order given: ``label``, ``run``, ``evaluation``; of the training
        ``training`` (its folder), ``stage``, ``reward``, ``selector``, ``template``, ``step``, ``spent`` (flops,
        tokens, seconds), ``watched`` (means of the first and last quarter) or ``untrained`` (why there is none);
        ``accuracy`` by split; ``against``: `paired.differences` to the baseline, None where it cannot be paired;
        ``notes``.

    Raises:
        ForethinkError: see `places`; a run named twice; fewer than 100 draws.
    """
    if resamples < 100:
        raise ForethinkError(f"--resamples is {resamples}; ask for at least 100.")
    whole = [run.resolve() for run in runs]
    first = 0
    if baseline is not None:
        if baseline.resolve() in whole:
            first = whole.index(baseline.resolve())
        else:
            runs = [baseline, *runs]
    labels, found = _labels(runs), places(runs, name)
    rows = []
    for i, (label, place) in enumerate(zip(labels, found, strict=True)):
        row: Record = {"label": label, "run": str(place.given), "evaluation": None, "accuracy": [], **_training(place)}
        if place.evaluation is not None:
            row |= {
                "evaluation": str(place.evaluation),
                "accuracy": _accuracy(_json(place.evaluation / "eval.json")),
            }
        row["against"], row["notes"] = (
            (None, []) if i == first else _held_against(place, found[first], resamples, seed)
        )
        rows.append(row)
    return {
        "baseline": labels[first],
        "level": 0.95,
        "resamples": resamples,
        "seed": seed,
        "intervals": "differences: bootstrap over documents drawn anew, both sides on the same draws",
        "watched": "means over the first and the last quarter of the training steps",
        "runs": rows,
    }


def run_compare(args: argparse.Namespace) -> None:
    """Gather, print, write, say where."""
    from forethink.rundir import write_atomic
    from forethink.sheets import show, to_markdown

    baseline = None if args.baseline is None else Path(args.baseline)
    result = compare_runs([Path(run) for run in args.runs], baseline, args.name, args.resamples, args.seed)
    show(result)
    out = Path(args.out) if args.out else Path(args.runs[0]) / "compare.json"
    write_atomic(out, json.dumps(result, indent=1, ensure_ascii=True, allow_nan=False) + "\n")
    if args.markdown:
        write_atomic(Path(args.markdown), to_markdown(result))
        print(f"done: {args.markdown}")
    print(f"done: {out}")

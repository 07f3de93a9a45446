"""What a report shows, gathered from run folders: stages, evaluations, training curves, documents."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forethink import __version__
from forethink.report.documents import gather
from forethink.report.findings import Evaluated, pairs, patterns, scaling
from forethink.report.samples import Record, read_source
from forethink.rundir import read_json, read_jsonl
from forethink.types import ForethinkError

BUDGET = 4_000_000  # characters of JSON for documents and completions
POINTS = 500  # of a curve

_CURVES = (
    "reward", "accuracy", "outcome/right", "outcome/wrong", "outcome/missing", "outcome/cut_off",
    "groups/degenerate", "groups/all_right", "groups/all_wrong", "thought_characters", "completion_tokens",
    "distinct_thoughts", "entropy", "tokens/generated", "tokens/update", "flops/rollout", "flops/scores",
    "flops/update", "flops/total", "flops", "step_seconds", "seconds", "loss", "probe/box", "probe/agree",
    "probe/right",
)  # fmt: skip
_TOTALS = ("step", "tokens/", "flops", "seconds")  # counted from the start: of several steps the last one's


def _stages(run: Path, label: str) -> list[Record]:
    """The stages of a run in the order they were started, each with its folder."""
    if (run / "run.json").exists():
        raise ForethinkError(f"{run}: the folder of one stage; name the run's folder, {run.parent}, instead.")
    files = list(run.rglob("run.json")) if run.is_dir() else []
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(run).parts)]
    if not files:
        raise ForethinkError(f"{run}: no run folder (it holds no stage's run.json); name the folder given as --run.")
    found = [(file.parent, read_json(file)) for file in files]
    found.sort(key=lambda item: (str(item[1].get("created", "")), str(item[0])))
    return [_stage(folder, record, run, label) for folder, record in found]


def _stage(folder: Path, record: Record, run: Path, label: str) -> Record:
    config = folder / "config.toml"
    dropped = folder / "dropped.json"
    shown = (
        "stage", "status", "created", "seconds", "resumed", "command", "git", "versions", "machine", "inputs",
        "warnings", "settings",
    )  # fmt: skip
    return {
        "run": label,
        "name": str(folder.relative_to(run)),
        **{key: record.get(key) for key in shown},
        "dropped": read_json(dropped) if dropped.exists() else None,
        "result": None if record.get("stage") == "eval" else record.get("result"),
        "config": config.read_text(encoding="utf-8", errors="replace") if config.exists() else None,
    }


def _evaluation(folder: Path, stage: Mapping[str, Any]) -> Record | None:
    """An evaluation's figures; None before it is finished."""
    file = folder / "eval.json"
    return {**read_json(file), "run": stage["run"], "name": stage["name"]} if file.exists() else None


def _measured(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def curves(folder: Path) -> Record | None:
    """The columns of ``metrics.jsonl`` that the page draws, at most 500 points each; None where there are none.

    Of a longer log every point stands for ``every`` steps: the mean of what is measured at each, and the last value
    of what counts from the start.
    """
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
    names = [name for name in _CURVES if any(_measured(row.get(name)) for row in rows)]
    if not names:
        return None
    every = -(-len(rows) // POINTS)
    parts = [rows[i : i + every] for i in range(0, len(rows), every)]

    def point(part: Sequence[Record], name: str) -> float | None:
        values = [float(row[name]) for row in part if _measured(row.get(name))]
        if not values:
            return None
        value = values[-1] if name.startswith(_TOTALS) else sum(values) / len(values)
        return float(f"{value:.6g}")

    columns = {name: [point(part, name) for part in parts] for name in names}
    return {"every": every, "steps": [part[-1]["step"] for part in parts], "columns": columns}


def _labels(runs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    whole = [run.resolve().parts for run in runs]
    for length in range(1, max(map(len, whole)) + 1):
        labels = ["/".join(parts[-length:]) for parts in whole]
        if len(set(labels)) == len(labels):
            return labels
    raise ForethinkError(f"{runs[0]}: named twice; name every run once.")


def _folders(run: Path, stages: Sequence[Record], kind: str) -> list[Path]:
    return [run / stage["name"] for stage in stages if stage["stage"] == kind]


def _problem_files(folders: Sequence[Path], evaluations: Sequence[Record]) -> list[Path]:
    files = [file for folder in folders for file in folder.glob("*.parquet")]
    for one in evaluations:
        named = Path(str(one.get("problems", {}).get("file", "")))
        files += [named] if named.is_file() else []
    own = {file.resolve(): file for file in files if not file.name.startswith(".")}
    # Held-out problems first: an evaluation's samples belong to them.
    return sorted(own, key=lambda file: (file.name == "train.parquet", str(file)))


def _parents(run: Path, stages: Sequence[Record]) -> list[Path]:
    """The runs whose stages this one shares: as recorded, or beside it where both were moved."""
    configs = [tomllib.loads(stage["config"]) for stage in stages if stage["config"]]
    named = dict.fromkeys(config.get("parent", "none") for config in configs)
    places = [(Path(name), run.parent / Path(name).name) for name in named if name != "none"]
    return [next((place for place in pair if place.is_dir()), pair[0]) for pair in places]


def collect(runs: Sequence[Path], budget: int = BUDGET) -> Record:
    """Everything that a report shows, as JSON values.

    Args:
        runs: the top folders of finished or running runs.
        budget: characters of JSON for documents and completions; what is beyond is left out and said in ``notes``.

    Returns:
        ``runs`` (labels), ``stages``, ``evaluations``, ``training`` (curves a stage), ``sources`` (sets of
        completions), ``documents``, ``pairs``, ``scaling`` and ``patterns`` (see `findings`), ``notes``.

    Raises:
        ForethinkError: a folder that is no run, or a file in it that cannot be read.
    """
    labels = _labels(runs)
    data: Record = {"version": __version__, "runs": labels, "stages": [], "evaluations": [], "training": []}
    scored: list[Path] = []
    files: list[Path] = []
    sources = []
    evaluated = []
    for run, label in zip(runs, labels, strict=True):
        stages = _stages(run, label)
        evaluations = []
        for stage in stages:
            folder = run / stage["name"]
            title = stage["name"] if len(runs) == 1 else f"{label}/{stage['name']}"
            if stage["stage"] in ("eval", "train") and (folder / "samples.jsonl").exists():
                sources.append(read_source(title, stage["stage"], folder, label))
            one = _evaluation(folder, stage)
            if one is not None:
                evaluations.append({**one, "title": title})
                evaluated.append(Evaluated(title, folder, run, label))
            drawn = None if stage["stage"] in ("score", "eval") else curves(folder)
            if drawn is not None:
                data["training"].append({"run": label, "title": title, "stage": stage["stage"], **drawn})
        data["stages"] += stages
        data["evaluations"] += evaluations
        shared = _parents(run, stages)
        own = [*_folders(run, stages, "score"), *(parent / "score" for parent in shared)]
        scored += [p for p in own if any(p.glob("shards/*.parquet")) and p not in scored]
        problems = [*_folders(run, stages, "problems"), *(parent / "problems" for parent in shared)]
        files += _problem_files(problems, evaluations)
    data["sources"] = [{"label": source.label, "kind": source.kind, "run": source.run} for source in sources]
    data["documents"], data["notes"] = gather(scored, files, sources, budget)
    data["pairs"], data["scaling"], data["patterns"] = pairs(evaluated), scaling(evaluated), patterns(sources)
    data["notes"] += [
        f"{one['title']}: a point of its curves stands for {one['every']} steps." for one in data["training"]
        if one["every"] > 1
    ]  # fmt: skip
    return data

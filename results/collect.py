"""A summary of run folders that can be committed: `python results/collect.py NAME RUN [RUN …] [--note TEXT]`.

Writes results/NAME.json: of every stage its command, seed, git sha, versions, machine, seconds, warnings and result;
of every evaluation its rows and comparisons; end tasks, questions, scaling fits, comparisons and patterns where they
are there. A run may be unfinished: what is missing is left out, and the results page says "not yet run". Paths of
this machine are cut: below the folder that holds a run's folder they stay relative, else only the name is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]
HERE = Path(__file__).parent
# File of a run folder -> part of the summary, keyed by the folder's name below the run.
PARTS = {"eval.json": "evals", "tasks.json": "tasks", "questions.json": "questions"}
WHOLE = ("fit.json", "compare.json", "patterns.json")  # of the run itself
_ROW = ("split", "kind", "above", "up_to", "positions", "documents", "plain", "reasoning", "box", "agree", "pass_at",
        "outcomes", "signal", "completion_tokens")  # fmt: skip


def read(path: Path) -> Record:
    """A JSON object of a run folder; one sentence where it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path}: cannot be read ({error}); make this folder again.") from None
    if not isinstance(data, dict):
        raise SystemExit(f"{path}: holds no record; make this folder again.")
    return data


def cutter(root: Path) -> Callable[[str], str]:
    """A function that cuts paths that are absolute or lead upwards: relative below ``root``, else the last name."""

    def short(match: re.Match[str]) -> str:
        path = match[0].rstrip("/")
        base = str(root.resolve())
        return path[len(base) + 1 :] if path.startswith(base + "/") else path.rpartition("/")[2]

    return lambda text: re.sub(r"(?<![\w:./~])(?:~?/|(?:\.\./)+)(?:[^\s'\"=,:;]+)", short, text)


def clean(value: Any, cut: Callable[[str], str]) -> Any:
    """Numbers to six digits, texts without absolute paths, in keys as well."""
    if isinstance(value, dict):
        return {cut(str(key)): clean(item, cut) for key, item in value.items()}
    if isinstance(value, list):
        return [clean(item, cut) for item in value]
    if isinstance(value, str):
        return cut(value)
    return float(f"{value:.6g}") if isinstance(value, float) else value


def last_line(path: Path) -> Record:
    """The last whole line of a metrics.jsonl."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return dict(json.loads(lines[-1])) if lines else {}


def stage(folder: Path, run: Path) -> Record:
    """What run.json says, and of an unfinished stage how far it came."""
    record = read(folder / "run.json")
    result = {k: v for k, v in (record.get("result") or {}).items() if isinstance(v, int | float | str | bool)}
    found = {
        "folder": folder.relative_to(run).as_posix(),
        "seed": record.get("settings", {}).get("seed"),
        "command": shlex.join(["forethink" if part == "__main__.py" else str(part) for part in record["command"]]),
        "inputs": {Path(name).name: str(digest)[:16] for name, digest in record.get("inputs", {}).items()},
        "result": result,
    }
    for key in ("stage", "status", "created", "git", "versions", "seconds", "resumed", "warnings"):
        found[key] = record.get(key)
    machine = record.get("machine") or {}
    kind = re.findall(r"^\w+|(?<=-)(?:x86_64|AMD64|aarch64|arm64)\b", str(machine.get("system", "")))
    found["machine"] = machine | {"system": " ".join(kind[:2])}
    if record.get("status") != "done":
        spent = re.compile(r"step$|seconds$|flops/|tokens/")
        found["so_far"] = {k: v for k, v in last_line(folder / "metrics.jsonl").items() if spent.search(k)}
    return found


def evaluation(result: Record) -> Record:
    """An eval.json less what no table needs."""
    rows = [{key: row[key] for key in _ROW if key in row} for row in result.get("rows", [])]
    return result | {"rows": rows}


def summary_of(run: Path) -> Record:
    """Everything of one run's folder."""
    if not run.is_dir():
        raise SystemExit(f"{run}: no such run; name the folder given to the stages with --run.")
    folders = sorted(path.parent for depth in ("*", "*/*", "*/*/*") for path in run.glob(f"{depth}/run.json"))
    hidden = [f for f in folders if not any(part.startswith(".") for part in f.relative_to(run).parts)]
    found: Record = {"stages": [stage(folder, run) for folder in hidden]}
    found["stages"].sort(key=lambda one: (one["created"] or "", one["folder"]))
    for file, part in PARTS.items():
        own = {f.relative_to(run).as_posix(): read(f / file) for f in hidden if (f / file).is_file()}
        found[part] = {name: evaluation(data) if part == "evals" else data for name, data in own.items()}
    for file in WHOLE:
        if (run / file).is_file():
            found[file.removesuffix(".json")] = read(run / file)
    # <root>/runs/NAME: commands were given in <root>
    return dict(clean(found, cutter(run.resolve().parent.parent)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the summary's name: results/NAME.json")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a folder given to the stages with --run")
    parser.add_argument("--note", default="", help="a sentence that the page shows with these figures")
    parser.add_argument(
        "--out", type=Path, default=HERE, metavar="DIR", help="folder of the summary (default: results)"
    )
    args = parser.parse_args()
    labels = [run.resolve().name for run in args.runs]
    if len(set(labels)) < len(labels):
        labels = [f"{run.resolve().parent.name}/{run.resolve().name}" for run in args.runs]
    runs = {label: summary_of(run) for label, run in zip(labels, args.runs, strict=True)}
    out = args.out / f"{args.name}.json"
    text = json.dumps({"note": args.note, "runs": runs}, indent=1, ensure_ascii=False, allow_nan=False)
    out.write_text(text + "\n", encoding="utf-8")
    print(f"done: {out}; now `make results`")


if __name__ == "__main__":
    main()

"""Run every recipe of a folder from one start, evaluate all on the same positions, and lay them side by side.

    python recipes/family.py recipes/family --corpus FILE [--held-out FILE] [section.key=value …]

``start.toml`` of the folder is scored, made problems of and warmed up once; the other recipes name its run as their
``parent``, and train and are evaluated one after the other. Stopped, it goes on where it was by the same command.
Everything lies below the runs that the recipes name; the table is ``compare.md`` and ``compare.json`` beside them.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from forethink import cli
from forethink.config import load_config
from forethink.types import ForethinkError


def plan(folder: Path, corpus: str, held_out: str | None, overrides: list[str]) -> list[list[str]]:
    """The commands of a family, in their order, as arguments of ``forethink``."""
    start = folder / "start.toml"
    members = sorted(path for path in folder.glob("*.toml") if path != start)
    source = f"corpus.path={json.dumps(corpus, ensure_ascii=False)}"
    runs = {recipe: load_config(recipe, overrides).run for recipe in (start, *members)}

    def stage(name: str, recipe: Path) -> list[str]:
        return [name, "--config", str(recipe), source, *overrides]

    def evaluate(recipe: Path, name: str, model: str | None) -> list[str]:
        place = ["--corpus", held_out] if held_out is not None else [source]
        checkpoint = [] if model is None else ["--checkpoint", f"{runs[recipe]}/{model}/model"]
        return ["eval", "--config", str(recipe), "--name", name, *checkpoint, *place, *overrides]

    commands = [stage(name, start) for name in ("score", "problems")]
    commands += [evaluate(start, "before", None), stage("warmup", start), evaluate(start, "eval", "warmup")]
    for recipe in members:
        commands += [stage("problems", recipe), stage("train", recipe), evaluate(recipe, "eval", "train")]
    beside = Path(runs[start]).parent
    commands.append(
        ["compare", runs[start], f"{runs[start]}/before", *(runs[recipe] for recipe in members), "--name", "eval",
         "--out", str(beside / "compare.json"), "--markdown", str(beside / "compare.md")]
    )  # fmt: skip
    return commands


def _without_absent_model(command: list[str]) -> list[str]:
    """The command less a checkpoint that is not there: a warm start that the policy did not need."""
    if "--checkpoint" not in command:
        return command
    at = command.index("--checkpoint")
    return command if Path(command[at + 1]).is_dir() else command[:at] + command[at + 2 :]


def run_all(commands: list[list[str]]) -> int:
    """Run commands one after the other; the exit code of the first that failed, else 0."""
    for number, command in enumerate(map(_without_absent_model, commands), 1):
        print(f"\n[{number}/{len(commands)}] forethink {' '.join(command)}", flush=True)
        code = cli.main(command)
        if code:
            return code
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run the plan; the exit code of the command that failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds start.toml and the recipes based on it")
    parser.add_argument("--corpus", required=True, metavar="FILE", help="corpus.path of all recipes")
    parser.add_argument("--held-out", metavar="FILE", help="evaluate on this corpus, not on held-out documents")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for every command alike")
    args = parser.parse_intermixed_args(arguments)
    try:
        commands = plan(args.folder, args.corpus, args.held_out, args.overrides)
    except ForethinkError as error:
        print(f"family: {error}", file=sys.stderr)
        return 2
    return run_all(commands)


if __name__ == "__main__":
    sys.exit(main())

"""Run every recipe of a folder from one start, evaluate all on the same positions, and lay them side by side.

    python recipes/family.py recipes/family --corpus FILE [--held-out FILE] [--jobs N] [section.key=value …]

``start.toml`` of the folder is scored, made problems of and warmed up once; the other recipes name its run as their
``parent``, and train and are evaluated one after the other. Where ``train.start`` names a model or an adapter, all
train from that and nothing is warmed up. Stopped, it goes on where it was by the same command.
Everything lies below the runs that the recipes name; the table is ``compare.md`` and ``compare.json`` beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forethink import cli
from forethink.config import load_config
from forethink.types import ForethinkError


def plan(folder: Path, corpus: str, held_out: str | None, overrides: list[str]) -> list[list[str]]:
    """The commands of a family, in their order, as arguments of ``forethink``."""
    start = folder / "start.toml"
    members = sorted(path for path in folder.glob("*.toml") if path != start)
    source = f"corpus.path={json.dumps(corpus, ensure_ascii=False)}"
    configs = {recipe: load_config(recipe, overrides) for recipe in (start, *members)}
    runs = {recipe: config.run for recipe, config in configs.items()}

    def stage(name: str, recipe: Path) -> list[str]:
        return [name, "--config", str(recipe), source, *overrides]

    def evaluate(recipe: Path, name: str, model: str | None) -> list[str]:
        place = ["--corpus", held_out] if held_out is not None else [source]
        checkpoint = [] if model is None else ["--checkpoint", model]
        return ["eval", "--config", str(recipe), "--name", name, *checkpoint, *place, *overrides]

    commands = [stage(name, start) for name in ("score", "problems")]
    named = configs[start].train.start
    commands += [evaluate(start, "before", None), *([] if named else [stage("warmup", start)])]
    commands.append(evaluate(start, "eval", named or f"{runs[start]}/warmup/model"))
    for recipe in members:
        commands += [
            stage("problems", recipe),
            stage("train", recipe),
            evaluate(recipe, "eval", f"{runs[recipe]}/train/model"),
        ]
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
    absent = command[at + 1].endswith("/warmup/model") and not Path(command[at + 1]).is_dir()
    return command[:at] + command[at + 2 :] if absent else command


def _reads(command: list[str]) -> tuple[str, set[str], set[str]]:
    """The folder a command makes, those of its run and its parent that it reads, and runs that may hold its corpus."""
    flags = {name: value for name, value in itertools.pairwise(command) if name.startswith("--")}
    plain = [text for before, text in itertools.pairwise(command) if not before.startswith("--")]
    config = load_config(flags["--config"], [text for text in plain if "=" in text])
    runs = {run for run in (config.run, config.parent) if run is not None}
    stages = {"problems": ["score"], "warmup": ["problems"], "train": ["problems", "warmup"],
              "ntp": ["score", "problems"], "eval": [] if "--corpus" in flags else ["score", "problems"]}  # fmt: skip
    read = {f"{run}/{stage}" for run in runs for stage in stages.get(command[0], [])}
    read |= {f"{config.parent}/{command[0]}"}  # where the parent has this stage, nothing is made
    read |= {config.eval.problems} if command[0] == "eval" and config.eval.problems else set()
    shared = runs if command[0] == "eval" and "--corpus" in flags else set()
    return f"{config.run}/{flags.get('--name', command[0])}", read, shared


def needs(commands: list[list[str]]) -> list[set[int]]:
    """For every command the earlier ones that it waits for: those that make what it reads; `fit` and `compare` all."""
    found: list[set[int]] = []
    made: dict[str, int] = {}
    corpora: dict[str, int] = {}  # run → the evaluation that scores its held-out corpus for all
    for number, command in enumerate(commands):
        if command[0] in ("fit", "compare"):
            found.append(set(range(number)))
            continue
        own, read, shared = _reads(command)
        named = {folder for folder in made if any(folder in text for text in command[1:])}
        found.append({made[folder] for folder in (read | named) & made.keys()})
        found[-1] |= {corpora[run] for run in shared & corpora.keys()}
        if shared and not shared & corpora.keys():
            corpora[own.rpartition("/")[0]] = number
        made[own] = number
    return found


def run_all(commands: list[list[str]], jobs: int = 1) -> int:
    """Run commands one after the other, or several side by side; the exit code of the first that failed, else 0.

    Side by side, each begins when what it reads is done, and writes what it says to ``log/`` beside the runs.
    """
    if jobs > 1:
        return _side_by_side(commands, jobs)
    for number, command in enumerate(map(_without_absent_model, commands), 1):
        print(f"\n[{number}/{len(commands)}] forethink {' '.join(command)}", flush=True)
        code = cli.main(command)
        if code:
            return code
    return 0


def environment(jobs: int) -> dict[str, str]:
    """What each of ``jobs`` commands side by side is started with: its share of the cores, unless the user set one.

    Each would take all cores; its threads then wait for one another at every product, which takes many times as long.
    """
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ}


def _side_by_side(commands: list[list[str]], jobs: int) -> int:
    waits, running, done, failed = needs(commands), dict[int, subprocess.Popen[bytes]](), set[int](), 0
    logs = Path(_reads(commands[0])[0]).parents[1] / "log"
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while len(done) < len(commands) and (running or not failed):
            for number, command in enumerate(commands):
                free = number not in running and number not in done and waits[number] <= done
                if free and len(running) < jobs and not failed:
                    said = logs / f"{number + 1:02d}-{command[0]}.txt"
                    whole = _without_absent_model(command)
                    print(f"[{number + 1}/{len(commands)}] forethink {' '.join(whole)}", flush=True)
                    with said.open("wb") as file:
                        running[number] = subprocess.Popen(
                            [sys.executable, "-m", "forethink", *whole], stdout=file, stderr=subprocess.STDOUT,
                            env=environment(jobs),
                        )  # fmt: skip
            time.sleep(0.2)
            for number in [number for number, one in running.items() if one.poll() is not None]:
                code = running.pop(number).returncode
                if code:
                    failed = failed or code
                    said = logs / f"{number + 1:02d}-{commands[number][0]}.txt"
                    print(f"[{number + 1}/{len(commands)}] failed; {said} says why:", file=sys.stderr)
                    print("".join(said.read_text(errors="replace").splitlines(True)[-5:]), file=sys.stderr, flush=True)
                else:
                    done.add(number)
    finally:  # an interrupt reaches them too: they end where they can go on
        for one in running.values():
            one.wait()
    return failed


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """What every script of this folder takes."""
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="commands side by side, on a GPU that has room"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="for every command alike")


def plan_and_run(who: str, make: Callable[[], list[list[str]]], jobs: int) -> int:
    """Run what ``make`` plans (`run_all`); 2, with one sentence, where it cannot plan."""
    try:
        commands = make()
    except ForethinkError as error:
        print(f"{who}: {error}", file=sys.stderr)
        return 2
    return run_all(commands, jobs)


def main(arguments: list[str] | None = None) -> int:
    """Run the plan; the exit code of the command that failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="holds start.toml and the recipes based on it")
    parser.add_argument("--corpus", required=True, metavar="FILE", help="corpus.path of all recipes")
    parser.add_argument("--held-out", metavar="FILE", help="evaluate on this corpus, not on held-out documents")
    common_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    return plan_and_run("family", lambda: plan(args.folder, args.corpus, args.held_out, args.overrides), args.jobs)


if __name__ == "__main__":
    sys.exit(main())

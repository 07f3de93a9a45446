"""The paper's third result for one recipe, by one command: fine-tuning from several starts, with several seeds.

    python recipes/finetune.py recipes/finetune_arithmetic.toml [section.key=value …] \\
        --starts base ntp=DIR rpt=DIR [--seeds 0 1] [--jobs N]

A start is a name and the folder of a model or an adapter; a name alone is the policy as it comes. Each start and seed
has a folder of its own below the recipe's run, ``<start>-seed0``, with the accuracy before and after. The questions
asked before and after are the same for all; a seed's training questions are the same for all starts.
Stopped, it goes on where it was by the same command.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from forethink.config import load_config
from forethink.functions import load_function

common_arguments, plan_and_run = (
    load_function(f"{Path(__file__).parent / 'family.py'}:{name}") for name in ("common_arguments", "plan_and_run")
)


def plan(recipe: Path, starts: list[str], seeds: list[int], overrides: list[str]) -> list[list[str]]:
    """The commands, in their order, as arguments of ``forethink``."""
    load_config(recipe, overrides)  # a wrong key is said before the first hour
    pairs = [start.partition("=")[::2] for start in starts]
    return [
        ["finetune", "--config", str(recipe), *overrides, f"seed={seed}", "--name", f"{name}-seed{seed}",
         *(["--start", folder] if folder else [])]
        for seed in seeds
        for name, folder in pairs
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Run the plan; the exit code of the command that failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--starts", nargs="+", default=["base"], metavar="NAME[=DIR]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    common_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    planned = (args.recipe, args.starts, args.seeds, args.overrides)
    return int(plan_and_run("finetune", lambda: plan(*planned), args.jobs))


if __name__ == "__main__":
    sys.exit(main())

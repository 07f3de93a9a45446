"""The paper's first two results for one recipe, by one command: every arm of the comparison, then the scaling law.

    python recipes/arms.py recipes/omni_math.toml --corpus FILE --held-out FILE [--seeds 0 1] [--jobs N] \\
        [section.key=value …]

The arms are the model as it comes, after the warm start, after RPT, and after continual next-token training for the
FLOPs that warm start and RPT took. All are evaluated on the same positions of the held-out corpus, which the model as
it comes scores once. The recipe's own run holds what the seeds share; each seed's stands beside it, ``<run>-seed0``.
The first seed's checkpoints (``train.keep_every``) and its final model are evaluated once more, alike, for the fit.
A recipe that names where training starts (``train.start``) is not warmed up: the start is evaluated in its place, and
the baseline is given the FLOPs of RPT alone. Stopped, it goes on where it was by the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from forethink.config import Config, load_config
from forethink.functions import load_function
from forethink.powerlaw import PARAMETERS

common_arguments, plan_and_run = (
    load_function(f"{Path(__file__).parent / 'family.py'}:{name}") for name in ("common_arguments", "plan_and_run")
)


def plan(
    recipe: Path, corpus: str, held_out: str, seeds: list[int], overrides: list[str], curve: list[str]
) -> list[list[str]]:
    """The commands, in their order, as arguments of ``forethink``; ``curve`` are settings of the fit's evaluations."""
    config = load_config(recipe, overrides)
    common = ["--config", str(recipe), *overrides]
    source = ["--corpus", corpus]

    # Evaluations draw by the first seed, whatever their model was trained with: all stand on the same positions.
    def evaluate(run: str, name: str, *settings: str) -> list[str]:
        return ["eval", *common, f"run={run}", f"seed={seeds[0]}", "--corpus", held_out, "--name", name, *settings]

    def checkpoint(run: str, name: str, model: str, *settings: str) -> list[str]:
        return evaluate(run, name, f"parent={config.run}", "--checkpoint", f"{run}/{model}", *settings)

    start = [*common, f"run={config.run}", f"seed={seeds[0]}", *source]
    commands = [["score", *start], ["problems", *start], evaluate(config.run, "base", "eval.samples=1")]
    named = config.train.start
    if named is not None:
        commands.append(evaluate(config.run, "warm", "--checkpoint", named, "--against", f"{config.run}/base"))
    runs = [f"{config.run}-seed{seed}" for seed in seeds]
    for seed, run in zip(seeds, runs, strict=True):
        own = [*common, f"run={run}", f"parent={config.run}", f"seed={seed}", *source]
        budget = json.dumps([f"{run}/{stage}" for stage in (["train"] if named else ["warmup", "train"])])
        home = run if named is None else config.run
        base, warm = (["--against", folder] for folder in (f"{config.run}/base", f"{home}/warm"))
        if named is None:
            commands += [["warmup", *own], checkpoint(run, "warm", "warmup/model", *base)]
        commands += [
            ["train", *own], checkpoint(run, "rpt", "train/model", *base, *warm),
            ["ntp", *own, "ntp.budget=flops", f"ntp.budget_from={budget}"],
            checkpoint(run, "ntp_eval", "ntp/model", *base, *warm),
        ]  # fmt: skip
    commands += [checkpoint(runs[0], name, model, *curve) for name, model in _kept(config)]
    enough = len(_kept(config)) > PARAMETERS  # as many points as parameters say nothing of the law
    return commands + ([["fit", runs[0], "--only", "step-*"]] if enough else [])


def _kept(config: Config) -> list[tuple[str, str]]:
    """Names of the fit's evaluations and the models they are of, the last step's among them."""
    every, steps = config.train.keep_every, config.train.steps
    if every is None:
        return []
    models = [(step, f"train/checkpoint-{step}") for step in range(every, steps, every)]
    return [(f"step-{step:04d}", model) for step, model in [*models, (steps, "train/model")]]


def main(arguments: list[str] | None = None) -> int:
    """Run the plan; the exit code of the command that failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--corpus", required=True, metavar="FILE", help="to train on")
    parser.add_argument("--held-out", required=True, metavar="FILE", help="to evaluate on")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--curve", action="append", default=[], metavar="section.key=value", help="for the fit's evaluations alone"
    )
    common_arguments(parser)
    args = parser.parse_intermixed_args(arguments)
    planned = (args.recipe, args.corpus, args.held_out, args.seeds, args.overrides, args.curve)
    return int(plan_and_run("arms", lambda: plan(*planned), args.jobs))


if __name__ == "__main__":
    sys.exit(main())

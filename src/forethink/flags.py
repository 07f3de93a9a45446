"""The flags that single commands have beside the common ones; each stands for a key of the configuration."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def eval_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `eval`."""
    parser.add_argument("--checkpoint", metavar="DIR", help="eval.model: a model or adapter folder (else the policy)")
    parser.add_argument("--name", metavar="NAME", help="eval.name: the folder below the run's folder")
    parser.add_argument(
        "--against", action="append", metavar="DIR",
        help="eval.against: an evaluation on the same positions, for paired differences (repeatable)",
    )  # fmt: skip
    _question_flags(parser, [("--questions", "held_out", "evaluate on questions (questions.held_out)")])


def _question_flags(parser: argparse.ArgumentParser, sources: Sequence[tuple[str, str, str]]) -> None:
    for flag, dest, text in sources:
        parser.add_argument(flag, dest=dest, metavar="SOURCE", help=f"{text}: a file, or reasoning_gym:TASK")
    parser.add_argument("--question-field", metavar="NAME", help="questions.question: the field of the question")
    parser.add_argument("--answer-field", metavar="NAME", help="questions.answer: the field of the reference answer")


def finetune_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `finetune`."""
    held_out = ("--held-out", "held_out", "questions.held_out")
    _question_flags(parser, [("--questions", "questions", "questions.source"), held_out])
    parser.add_argument("--start", metavar="DIR", help="finetune.start: a model or adapter folder")
    parser.add_argument("--name", dest="tune", metavar="NAME", help="finetune.name: the folder below the run's folder")


def rescore_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `rescore`."""
    parser.add_argument("--samples", metavar="FILE", help="a samples.jsonl (default: <run>/train/samples.jsonl)")
    parser.add_argument("--problems", metavar="DIR", help="its problems (default: <run>/problems)")
    parser.add_argument("--reward", metavar="NAME", help="reward.name: a reward, module:function or file.py:function")

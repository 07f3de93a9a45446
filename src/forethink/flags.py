"""Flags of single commands, beside the common ones of :mod:`forethink.cli`; each stands for a key of the recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def text(value: str) -> str:
    r"""A separator as typed in a shell: ``\n`` and ``\t`` stand for newline and tab."""
    return value.replace("\\n", "\n").replace("\\t", "\t")


def eval_flags(parser: argparse.ArgumentParser) -> None:
    """Those of `eval`."""
    parser.add_argument("--checkpoint", metavar="DIR", help="eval.model: a model or adapter folder (else the policy)")
    parser.add_argument("--name", metavar="NAME", help="eval.name: the folder below the run's folder")
    parser.add_argument(
        "--against", action="append", metavar="DIR",
        help="eval.against: an evaluation on the same positions, for paired differences (repeatable)",
    )  # fmt: skip
    _question_flags(parser, [("--questions", "held_out", "evaluate on questions (questions.held_out)")])
    add = parser.add_argument
    add(
        "--tasks", action="append", metavar="FILE",
        help="tasks.path: ask multiple-choice questions instead: JSON lines, Parquet or a hub id (repeatable)",
    )  # fmt: skip
    add("--mode", choices=("plain", "reasoning", "both"), help="tasks.mode: likelihood of letters, or a reply")
    add("--limit", type=int, metavar="N", help="tasks.limit: ask N questions of each file, drawn by the seed")


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


def train_flags(parser: argparse.ArgumentParser) -> None:
    """Of ``forethink train``: what a dry run supposes."""
    add = parser.add_argument
    add("--dry-run", action="store_true", help="print memory, FLOPs and GPU-hours of the recipe; load no weights")
    add("--gpus", type=int, default=1, metavar="N", help="dry run: GPUs that share the work (default: 1)")
    add("--gpu-tflops", type=float, default=989.0, help="dry run: peak of one GPU in bf16 (default: 989, an H100)")
    add("--gpu-memory", type=float, default=80.0, help="dry run: GB of one GPU (default: 80)")
    add("--mfu", type=float, default=0.35, help="dry run: share of the peak that is reached (default: 0.35)")
    add("--degenerate", type=float, default=0.5, help="dry run: share of groups without a signal (default: 0.5)")
    add("--prompt-tokens", type=int, help="dry run: mean prompt (default: the longest the recipe allows)")
    add("--response-tokens", type=int, help="dry run: mean completion (default: the longest the recipe allows)")
    add("--corpus-tokens", type=int, default=0, help="dry run: tokens to be scored for entropy (default: 0)")

"""Flags of single commands, beside the common ones of :mod:`forethink.cli`. Only the standard library is loaded."""

from __future__ import annotations

import argparse


def eval_flags(parser: argparse.ArgumentParser) -> None:
    """Of ``forethink eval``."""
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="eval.model: a model or adapter folder (else the policy)")
    add("--name", metavar="NAME", help="eval.name: the folder below the run's folder")
    add(
        "--against", action="append", metavar="DIR",
        help="eval.against: an evaluation on the same positions, for paired differences (repeatable)",
    )  # fmt: skip
    add(
        "--tasks", action="append", metavar="FILE",
        help="tasks.path: ask multiple-choice questions instead: JSON lines, Parquet or a hub id (repeatable)",
    )  # fmt: skip
    add(
        "--mode", choices=("plain", "reasoning", "both"), help="tasks.mode: likelihood of letters, or a reply in words"
    )
    add("--limit", type=int, metavar="N", help="tasks.limit: ask N questions of each file, drawn by the seed")


def rescore_flags(parser: argparse.ArgumentParser) -> None:
    """Of ``forethink rescore``."""
    add = parser.add_argument
    add("--samples", metavar="FILE", help="a samples.jsonl (default: <run>/train/samples.jsonl)")
    add("--problems", metavar="DIR", help="its problems (default: <run>/problems)")
    add("--reward", metavar="NAME", help="reward.name: a reward, module:function or file.py:function")


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

"""The commands that look at finished or running run folders: ``forethink fit`` and ``forethink patterns``."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink import compare, watch
from forethink.report import command as report
from forethink.types import ForethinkError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Record = dict[str, Any]


def _runs(parser: argparse.ArgumentParser, out: str) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or that of one of its stages")
    parser.add_argument("--out", metavar="FILE", help=f"where the figures go (default: {out} in the first RUN)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")


def _fit_flags(parser: argparse.ArgumentParser) -> None:
    _runs(parser, "fit.json")
    parser.add_argument("--metric", choices=("reasoning", "plain"), default="reasoning", help="accuracy to fit")
    parser.add_argument("--only", metavar="PATTERN", default="*", help="evaluations by folder name, e.g. 'step-*'")
    parser.add_argument("--resamples", type=int, default=1000, metavar="N", help="bootstrap draws (default: 1000)")


def _patterns_flags(parser: argparse.ArgumentParser) -> None:
    _runs(parser, "patterns.json")
    parser.add_argument("--windows", type=int, default=8, metavar="N", help="parts of the training (default: 8)")


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=120, highlight=False)  # a file has no width


def _table(title: str, *columns: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=Text(title), title_justify="left", box=box.SIMPLE)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left")
    return made


def _out(args: argparse.Namespace, name: str) -> Path:
    first = Path(args.runs[0])
    return Path(args.out) if args.out else (first if first.is_dir() else first.parent) / name


def _existing(args: argparse.Namespace) -> list[Path]:
    runs = [Path(run) for run in args.runs]
    for run in runs:
        if not run.exists():
            raise ForethinkError(f"{run}: no such run; name the folder given to the stages with --run.")
    return runs


def _write(path: Path, data: Mapping[str, Any]) -> None:
    from forethink.rundir import write_atomic

    write_atomic(path, json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False) + "\n")
    print(f"done: {path}")


def fit_runs(runs: Sequence[Path], metric: str, only: str, resamples: int, seed: int) -> Record:
    """Every split's law against FLOPs, tokens and seconds, over the evaluated checkpoints of the runs.

    Returns:
        ``points``, ``left_out``, ``before`` (the warm start's cost, no part of C) and ``fits``: one record a split and
        axis, with ``refused`` (the reason, or None) and, where fitted, what `scaling.Fit.record` holds.

    Raises:
        ForethinkError: nothing can be fitted; the message holds the first reason.
    """
    from forethink.evaluated import before, fit_split, read_points
    from forethink.spent import AXES

    if resamples < 100:
        raise ForethinkError(f"--resamples is {resamples}; ask for at least 100.")
    points, left_out = read_points(runs, only)
    if not points:
        raise ForethinkError(f"{left_out[0][0]}: {left_out[0][1]}; there is no evaluated checkpoint to fit.")
    rows = points[0].result["rows"]
    fits = [fit_split(points, row, axis, metric, resamples, seed) for row in rows for axis in AXES]
    if all(one["refused"] for one in fits):
        raise ForethinkError(f"{', '.join(map(str, runs))}: {fits[0]['refused']}")
    return {
        "law": "P(C) = A / C^alpha + P*",
        "metric": metric,
        "level": 0.95,
        "resamples": resamples,
        "seed": seed,
        "intervals": "residuals: bootstrap of the scatter about the curve; documents: other evaluation documents",
        "points": [
            {
                "evaluation": str(point.evaluation),
                "training": str(point.training),
                "step": point.step,
                **point.spent,
                "accuracy": {row["split"]: point.accuracy(row["split"], metric) for row in rows},
            }
            for point in points
        ],
        "left_out": [{"evaluation": name, "reason": reason} for name, reason in left_out],
        "before": before(points),
        "fits": fits,
    }


def _span(ends: Sequence[float | None] | None, scale: float = 1.0, form: str = ".3g") -> str:
    if ends is None:
        return "–"
    return " … ".join("open" if end is None else f"{scale * end:{form}}" for end in ends)


def _show_fit(result: Mapping[str, Any]) -> None:
    console = _console()
    for axis in dict.fromkeys(one["axis"] for one in result["fits"]):
        title = f"{result['law']}, {result['metric']} accuracy against {axis}; 95 % intervals"
        table = _table(title, "split", "n", "A", "alpha", "P* in %", "from documents", "R²", "last point held out")
        for one in [o for o in result["fits"] if o["axis"] == axis]:
            if one["refused"]:
                continue
            star, alpha, a = one["p_star"], one["alpha"], one["A"]
            hold = one["hold_out"]
            held = "–" if hold is None else f"{100 * hold['predicted']:.1f} for {100 * hold['observed']:.1f}"
            table.add_row(
                one["split"],
                str(one["points"]),
                f"{a['value']:.3g}\n{_span(a['residuals'])}",
                f"{alpha['value']:.3g}\n{_span(alpha['residuals'])}",
                f"{100 * star['value']:.1f}\n{_span(star['residuals'], 100, '.1f')}",
                f"alpha {_span(alpha['documents'])}\nP* {_span(star['documents'], 100, '.1f')}",
                f"{one['r2']:.3f}",
                held if hold is None else f"{held}\n{_span(hold['interval'], 100, '.1f')}",
            )
        if table.row_count:
            console.print(table)
    for one in result["fits"]:
        if one["refused"]:
            known = f" (R² {one['r2']:.3f})" if "r2" in one else ""
            console.print(f"not fitted: {one['refused']}{known}", markup=False)
    for one in result["left_out"]:
        console.print(f"left out: {one['evaluation']}: {one['reason']}", markup=False)
    for training, cost in result["before"].items():
        console.print(f"not counted: the warm start before {training}: {cost['flops']:.3g} FLOPs", markup=False)


def _fit(args: argparse.Namespace) -> None:
    result = fit_runs(_existing(args), args.metric, args.only, args.resamples, args.seed)
    _show_fit(result)
    _write(_out(args, "fit.json"), result)


def _plain(text: str, width: int = 60) -> str:
    """Model output for a terminal: control and other unprintable characters as escapes, cut to a width."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= width else safe[: width - 1] + "…"


def _percent(value: float | None, form: str = ".1f") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{100 * value:{form}}"


def _show_patterns(result: Mapping[str, Any]) -> None:
    from rich.text import Text

    console = _console()
    names = list(result["keywords"])
    table = _table("share of responses with a pattern, in %; 95 % intervals (Wilson)", "responses of", "n", *names)
    for row in result["rows"]:
        cells = []
        for name in names:
            one = row["groups"][name]
            cell = f"{_percent(one['value'])}\n{_span(one['wilson'], 100, '.1f')}"
            if one["change"] is not None:
                cell += f"\n{_percent(one['change'], '+.0f')} %"
            cells.append(cell)
        table.add_row(Text(_plain(row["source"])), str(row["responses"]), *cells)
    console.print(table)
    if len(result["rows"]) > 1:
        console.print("third line: change against the first row's share")
    for one in result["watch"]:
        title = f"thoughts over time: {one['source']}"
        table = _table(
            title, "steps", "thoughts", "characters", "distinct 1-, 2-, 3-grams", "distinct", "zlib", "opening line"
        )
        for part in one["windows"]:
            first: Record = part["openings"][0] if part["openings"] else {"line": "", "share": None}
            table.add_row(
                f"{part['from']}–{part['to']}",
                str(part["thoughts"]),
                "–" if part["characters"] is None else f"{part['characters']:.0f}",
                " ".join(_percent(part["distinct"][n], ".0f") for n in ("1", "2", "3")),
                _percent(part["distinct_thoughts"], ".0f"),
                "–" if part["compression"] is None else f"{part['compression']:.2f}",
                Text(f"{_percent(first['share'])} % {_plain(first['line'], 30)}"),
            )
        console.print(table)
    console.print("distinct: in %; zlib: bytes of thoughts over their compressed bytes; both watch for repetition")


def _patterns(args: argparse.Namespace) -> None:
    from forethink.patterns import report_patterns

    result = report_patterns(_existing(args), args.windows, args.seed)
    _show_patterns(result)
    _write(_out(args, "patterns.json"), result)


_Flags = Callable[[argparse.ArgumentParser], None]
_Run = Callable[[argparse.Namespace], None]
# Of every command: summary, what it reads and writes, an example, what it does, its flags.
LOOKING: dict[str, tuple[str, str, str, _Run, _Flags]] = {
    "fit": (
        "the scaling law P(C) = A / C^alpha + P* over evaluated checkpoints",
        "Reads the evaluations below every RUN and the metrics.jsonl of the training that wrote the checkpoints.\n"
        "Writes <RUN>/fit.json: every split against FLOPs, tokens and seconds, with intervals, or why not.",
        "forethink fit runs/math --only 'step-*'",
        _fit,
        _fit_flags,
    ),
    "patterns": (
        "reasoning patterns by keyword, and whether thoughts collapse into one",
        "Reads the samples.jsonl of every RUN's training and evaluations (or a samples.jsonl itself). The first is\n"
        "what the others are compared with.\nWrites <RUN>/patterns.json: shares with intervals, diversity over time.",
        "forethink patterns runs/before runs/after",
        _patterns,
        _patterns_flags,
    ),
    "compare": (compare.SUMMARY, compare.TEXT, compare.EXAMPLE, compare.run_compare, compare.add_compare),
    "watch": (watch.SUMMARY, watch.TEXT, watch.EXAMPLE, watch.run_watch, watch.add_watch),
    "report": (report.SUMMARY, report.TEXT, report.EXAMPLE, report.run_report, report.add_report),
}

"""The command ``forethink watch``: a look in the terminal at a run while one of its stages works.

Reads ``run.json``, ``metrics.jsonl`` and ``samples.jsonl`` of the stage that was started last and writes nothing. What
a model wrote may hold escape sequences that a terminal obeys: every character that is not printable is written out.
"""

from __future__ import annotations

import argparse
import base64
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.types import ForethinkError
from forethink.watched import Watched, current

if TYPE_CHECKING:
    from rich.console import RenderableType

SUMMARY = "a look in the terminal while a stage works"
TEXT = (
    "Reads the run.json, metrics.jsonl and samples.jsonl of the stage of RUN that was started last, again and again,\n"
    "until it is done; writes nothing. Without a terminal it prints a line whenever a step is new."
)
EXAMPLE = "forethink watch runs/math"

BARS = "▁▂▃▄▅▆▇█"
# Of a line of metrics.jsonl: column, its name, how it is written.
SHOWN = (
    ("reward", "reward", "{:.3f}"), ("accuracy", "right", "{:.1%}"), ("outcome/wrong", "wrong", "{:.1%}"),
    ("outcome/missing", "missing", "{:.1%}"), ("outcome/cut_off", "cut off", "{:.1%}"),
    ("groups/degenerate", "degenerate groups", "{:.0%}"), ("loss", "loss", "{:.4f}"), ("probe/box", "boxed", "{:.0%}"),
    ("probe/agree", "own arg-max", "{:.0%}"), ("thought_characters", "thought, characters", "{:.0f}"),
    ("distinct_thoughts", "distinct thoughts", "{:.0%}"), ("entropy", "entropy, nats", "{:.3f}"),
    ("step_seconds", "seconds a step", "{:.1f}"), ("tokens_per_second", "tokens a second", "{:.0f}"),
)  # fmt: skip
LINES = ("reward", "accuracy", "loss", "groups/degenerate", "thought_characters", "entropy")


def printable(text: str, width: int | None = None) -> str:
    """Text for a terminal: what is not printable as an escape, newlines as ``↵``, cut to a width."""
    kept = text if width is None else text[: width + 1]
    safe = "".join(c if c.isprintable() else "↵" if c == "\n" else c.encode("unicode_escape").decode() for c in kept)
    return safe if width is None or len(safe) <= width else safe[: width - 1] + "…"


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """A row of bars: the values' means over as many equal parts as fit."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return ""
    count = min(width, len(known))
    parts = [known[i * len(known) // count : (i + 1) * len(known) // count] for i in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, span = min(means), max(means) - min(means)
    return "".join(BARS[int((len(BARS) - 1) * (value - low) / span + 0.5)] if span else BARS[0] for value in means)


def figures(one: Watched) -> list[tuple[str, str]]:
    """Names and values of now."""
    found = []
    for name, title, form in SHOWN:
        values = one.column(name)
        if values:
            found.append((title, form.format(values[-1])))
    number = one.outcomes.total()
    if number:
        found.append(("completions", f"{number:,}"))
        found += [(name.replace("_", " "), f"{n / number:.1%}") for name, n in one.outcomes.most_common()]
    return found


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _head(one: Watched) -> str:
    number = "no step yet" if one.step is None else f"step {one.step}" + (f"/{one.total}" if one.total else "")
    seconds = one.column("seconds")
    parts = [f"{one.folder} ({one.state.get('stage')}, {one.state.get('status')})", number]
    parts += [f"{_clock(seconds[-1])} so far"] if seconds else []
    parts += [f"{_clock(one.left())} left"] if one.left() is not None and not one.done else []
    return printable("  ".join(parts))


def line(one: Watched) -> str:
    """One line of now."""
    return "  ".join([_head(one), *(f"{name} {value}" for name, value in figures(one))])


def _completion(last: Mapping[str, Any], width: int) -> list[tuple[str, str]]:
    rows = [
        ("problem", printable(str(last.get("problem")), width)),
        ("thought", printable(str(last.get("thought")), width)),
    ]
    try:
        answer = base64.b64decode(str(last.get("prediction") or "")).decode("utf-8", "backslashreplace")
    except ValueError:
        answer = ""
    shown = f"“{printable(answer, 200)}”" if last.get("status") == "boxed" else str(last.get("status"))
    reward = last.get("reward")
    worth = "" if reward is None else f", reward {reward:.3g}" if isinstance(reward, int | float) else ""
    return [*rows, ("answer", f"{printable(shown)}: {printable(str(last.get('outcome')))}{worth}")]


def panel(one: Watched) -> RenderableType:
    """All of now, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(_head(one), style="bold")]
    now = Table.grid(padding=(0, 2))
    for _ in range(4):
        now.add_column()
    cells = [Text.assemble((f"{name} ", "dim"), value) for name, value in figures(one)]
    for start in range(0, len(cells), 4):
        now.add_row(*cells[start : start + 4])
    curves = Table.grid(padding=(0, 2))
    for name in LINES:
        values = one.column(name)
        if len(values) > 1:
            curves.add_row(
                Text(name, style="dim"), sparkline(values), Text(f"{min(values):.3g} … {max(values):.3g}", style="dim")
            )
    parts += [table for table in (now, curves) if table.row_count]
    if one.last is not None:
        example = Table.grid(padding=(0, 2))
        for name, value in _completion(one.last, 600):
            example.add_row(Text(name, style="dim"), Text(value))
        parts += [Text("last completion", style="bold"), example]
    for warning in one.state.get("warnings") or ():
        parts.append(Text(f"warning: {printable(str(warning), 400)}", style="yellow"))
    return Group(*parts)


def _live(one: Watched, interval: float) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(panel(one), console=Console(), auto_refresh=False) as live:
        while not one.done:
            time.sleep(interval)
            if one.look():
                live.update(panel(one), refresh=True)


def _lines(one: Watched, interval: float) -> None:
    """A line for every new step; warnings once."""
    told, step = 0, object()
    while True:
        warnings = list(one.state.get("warnings") or ())
        for warning in warnings[told:]:
            print(f"warning: {printable(str(warning))}", flush=True)
        told = len(warnings)
        number = (one.step, one.outcomes.total())
        if number != step or one.done:
            print(line(one), flush=True)
            step = number
        if one.done:
            return
        time.sleep(interval)
        one.look()


def add_watch(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    parser.add_argument("run", metavar="RUN", help="a run's folder, or that of one of its stages")
    parser.add_argument("--once", action="store_true", help="print what is known now, and end")
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between looks (default: 1)")


def run_watch(args: argparse.Namespace) -> None:
    """Look until the stage is done.

    Raises:
        ForethinkError: no stage in the folder, or an interval that is not above 0.
        SystemExit: 130 after Ctrl-C, without a word.
    """
    from rich.console import Console

    if not args.interval > 0:
        raise ForethinkError(f"--interval is {args.interval:g}; give seconds above 0.")
    try:
        one = Watched(current(Path(args.run)))
        one.look()
        console = Console(highlight=False)
        if args.once:
            (console if console.is_terminal else Console(width=120, highlight=False)).print(panel(one))
        elif console.is_terminal:
            _live(one, args.interval)
        else:
            _lines(one, args.interval)
    except KeyboardInterrupt:
        raise SystemExit(130) from None

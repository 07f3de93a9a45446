"""What the tables of `make.py` are built of: cells, grids, and which runs and evaluations a table picks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Record = dict[str, Any]
NOT_YET = "*not yet run*"


def percent(value: float | None, interval: Sequence[float] | None = None, sign: str = "") -> str:
    """A share in per cent with one decimal, its interval in brackets."""
    if value is None:
        return "–"
    text = f"{100 * value:{sign}.1f}"
    return text if interval is None else f"{text} ({100 * interval[0]:{sign}.1f} … {100 * interval[1]:{sign}.1f})"


def share(cell: Record | None) -> str:
    """A share as evaluations store it: Wilson's interval where there is one, else the bootstrap's."""
    return "–" if cell is None else percent(cell["value"], cell.get("wilson") or cell.get("bootstrap"))


def number(value: float | None, decimals: int = 0) -> str:
    return "–" if value is None else f"{value:,.{decimals}f}" if abs(value) < 1e6 else f"{value:.2e}"


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, or NOT_YET without rows."""
    body = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *body]]
    return "\n".join(lines) if body else NOT_YET


def seed_of(run: Record, record: Record) -> str:
    """The seed that the evaluated model was trained with: that of the stage whose folder its name lies in."""
    model = record.get("model") or {}
    name = f"/{model.get('adapter') or model.get('name')}/"
    seeds = [str(s["seed"]) for s in run["stages"] if f"/{s['folder']}/" in name]
    return seeds[-1] if seeds else "–"


def picked(data: Record, part: str, arms: Sequence[str]) -> list[tuple[str, Record, str, Record | None]]:
    """(label, run, folder, record) of the evaluations named, or of all; None for one that is not there."""
    if not arms:
        return [
            (f"{name}/{folder}", run, folder, record)
            for name, run in data["runs"].items()
            for folder, record in run.get(part, {}).items()
        ]
    found = []
    for arm in arms:
        label, _, place = arm.rpartition("=")
        name, _, folder = place.partition("/")
        run = data["runs"].get(name, {"stages": []})
        found.append((label or place, run, folder, run.get(part, {}).get(folder)))
    return found

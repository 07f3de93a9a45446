"""The tables of ``forethink compare``, for a terminal and as Markdown: the same cells in both."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]


@dataclass(slots=True)
class Sheet:
    """A table of text: ``rows`` in groups that a line parts, the first ``words`` columns to the left."""

    title: str
    columns: tuple[str, ...]
    words: int
    groups: list[list[list[str]]] = field(default_factory=list)


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _percent(value: float | None, bounds: Sequence[float] | None = None, sign: str = "") -> str:
    if value is None:
        return "–"
    text = f"{100 * value:{sign}.1f}"
    return text if bounds is None else f"{text} ({100 * bounds[0]:{sign}.1f} … {100 * bounds[1]:{sign}.1f})"


def _share(share: Record) -> str:
    return _percent(share["value"], share.get("wilson") or share.get("bootstrap"))


def _quarters(row: Record, key: str, scale: float = 1.0, form: str = ".0f") -> str:
    found = row["watched"].get(key)
    return "–" if found is None else f"{scale * found['first']:{form}} → {scale * found['last']:{form}}"


def _cost(row: Record, key: str) -> str:
    value = row["spent"].get(key)
    return "–" if value is None else f"{value:.3g}" if key == "flops" else f"{value:,.0f}"


def _word(value: object) -> str:
    return "–" if value is None else str(value)


def took(result: Record) -> Sheet:
    """What every run was trained with and what that took: one row a run."""
    columns = (
        "run", "reward", "selector", "template", "steps", "FLOPs", "tokens", "seconds", "reward, mean", "box %",
        "degenerate %", "thought chars",
    )  # fmt: skip
    rows = [
        [
            row["label"],
            *(_word(row[key]) for key in ("reward", "selector", "template", "step")),
            *(_cost(row, key) for key in ("flops", "tokens", "seconds")),
            _quarters(row, "reward", form=".3f"),
            _quarters(row, "boxed", 100),
            _quarters(row, "groups/degenerate", 100),
            _quarters(row, "thought_characters"),
        ]
        for row in result["runs"]
    ]
    return Sheet("Training; first → last quarter of the steps", columns, 4, [rows])


def _difference(row: Record, own: Record, metric: str, baseline: str) -> str:
    if row["label"] == baseline:
        return "baseline"
    for one in row["against"] or ():
        if (one["split"], one["kind"]) == (own["split"], own["kind"]):
            return _percent(one[metric]["difference"], one[metric]["interval"], "+")
    return "–"


def came(result: Record, kind: str) -> Sheet:
    """Accuracy of every run by split, ``nested`` or ``disjoint``, and its difference to the baseline."""
    base = result["baseline"]
    columns = ("split", "run", "n", "plain", "reasoning", "box", "Δ plain", "Δ reasoning")
    groups: dict[str, list[list[str]]] = {}
    for row in result["runs"]:
        for own in [one for one in row["accuracy"] if one["kind"] == kind]:
            cells = [own["split"], row["label"], str(own["positions"]), _share(own["plain"]), _share(own["reasoning"])]
            cells += [_percent(own["box"]["value"]), *(_difference(row, own, m, base) for m in ("plain", "reasoning"))]
            groups.setdefault(own["split"], []).append(cells)
    title = f"Next-token accuracy in %, {kind} splits; Δ: points to {base}; 95 % intervals"
    return Sheet(title, columns, 2, list(groups.values()))


def _sheets(result: Record) -> list[Sheet]:
    return [sheet for sheet in (took(result), came(result, "nested"), came(result, "disjoint")) if sheet.groups]


def notes(result: Record) -> list[str]:
    """What is to be said about single runs: not trained, not paired, asked differently."""
    said = []
    for row in result["runs"]:
        own = ([f"no training: {row['untrained']}"] if row["untrained"] else []) + list(row["notes"])
        said += [f"{row['label']}: {note}" for note in own]
    return said


def show(result: Record) -> None:
    """Print the tables; the disjoint splits are left to the files."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(width=160, highlight=False)  # a file has no width
    for sheet in (took(result), came(result, "nested")):
        table = Table(title=Text(_visible(sheet.title)), title_justify="left", box=box.SIMPLE)
        for number, column in enumerate(sheet.columns):
            table.add_column(column, justify="left" if number < sheet.words else "right", overflow="fold")
        for group in sheet.groups:
            for number, cells in enumerate(group):
                made = [Text(_visible(cell)) for cell in cells]
                table.add_row(*made, end_section=number == len(group) - 1)
        if sheet.groups:
            console.print(table)
    for note in notes(result):
        console.print(_visible(note), markup=False)


def _escaped(cell: str) -> str:
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", html.escape(_visible(cell), quote=False))


def to_markdown(result: Record) -> str:
    """The tables and the notes as Markdown; nothing in a cell is markup."""
    lines = ["# Runs side by side", ""]
    for sheet in _sheets(result):
        rule = ["---"] * sheet.words + ["---:"] * (len(sheet.columns) - sheet.words)
        rows = [[_escaped(cell) for cell in cells] for group in sheet.groups for cells in group]
        lines += [f"## {_escaped(sheet.title)}", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (list(sheet.columns), rule, *rows)] + [""]
    lines += [f"- {_escaped(note)}" for note in notes(result)]
    return "\n".join(lines).rstrip() + "\n"

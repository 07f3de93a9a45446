"""The tables of a report as Markdown."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from forethink.report.page import visible
from forethink.report.samples import Record


def _cell(value: Any) -> str:
    """A value inside a Markdown table or list: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", html.escape(visible(str(value)), quote=False))


def percent(share: Mapping[str, Any] | None) -> str:
    """A share with its interval, in per cent."""
    if not share or share.get("value") is None:
        return "–"
    bounds = share.get("wilson") or share.get("bootstrap")
    text = f"{100 * share['value']:.1f}"
    return text if bounds is None else f"{text} ({100 * bounds[0]:.1f} … {100 * bounds[1]:.1f})"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *[[_cell(value) for value in row] for row in rows]]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _accuracy(evaluations: Sequence[Record]) -> list[str]:
    lines = ["## Next-token accuracy", "", "In per cent, with 95 % intervals; n positions.", ""]
    for kind, title in (("nested", "Nested splits"), ("disjoint", "Disjoint splits")):
        names = dict.fromkeys(row["split"] for one in evaluations for row in one["rows"] if row["kind"] == kind)
        rows = [
            (row["split"], one["title"], row["positions"], percent(row["plain"]), percent(row["reasoning"]),
             percent(row["box"]))
            for name in names
            for one in evaluations for row in one["rows"] if row["split"] == name and row["kind"] == kind
        ]  # fmt: skip
        lines += [f"### {title}", ""]
        lines += _table(("split", "evaluation", "n", "plain", "reasoning", "box"), rows)
    return lines


def _training(training: Sequence[Record]) -> list[str]:
    lines = ["## Training", "", "Mean over the first and over the last quarter of the steps.", ""]
    names = ("reward", "accuracy", "groups/degenerate", "thought_characters", "entropy", "loss")
    for one in training:
        rows = []
        for name in names:
            values = [value for value in one["columns"].get(name, ()) if value is not None]
            size = max(1, len(values) // 4)
            if values:
                rows.append((name, f"{sum(values[:size]) / size:.3g}", f"{sum(values[-size:]) / size:.3g}"))
        for name in ("tokens/generated", "tokens/update", "flops/total", "flops", "seconds"):
            values = [value for value in one["columns"].get(name, ()) if value is not None]
            if values:
                rows.append((f"{name}, in all", "", f"{values[-1]:.4g}"))
        lines += [f"### {_cell(one['title'])}, {one['steps'][-1]} steps", ""]
        lines += _table(("figure", "first quarter", "last quarter"), rows)
    return lines


def _pairs(pairs: Sequence[Record]) -> list[str]:
    lines = ["## Compared on the same positions", "", "In percentage points, with paired 95 % intervals.", ""]
    rows = [
        (row["split"], f"{one['ours']} − {one['theirs']}", row["positions"], _points(row["plain"]),
         _points(row["reasoning"]))
        for one in pairs
        for row in one["rows"]
    ]  # fmt: skip
    return lines + _table(("split", "evaluations", "n", "plain", "reasoning"), rows)


def _points(one: Mapping[str, Any]) -> str:
    ends = one["interval"]
    text = f"{100 * one['difference']:+.1f}"
    return text if ends is None else f"{text} ({100 * ends[0]:+.1f} … {100 * ends[1]:+.1f})"


def _ends(pair: Sequence[float | None] | None, scale: float = 1.0) -> str:
    return "–" if pair is None else " … ".join("open" if end is None else f"{scale * end:.3g}" for end in pair)


def _scaling(found: Mapping[str, Any]) -> list[str]:
    lines = ["## Scaling", "", "P(C) = A / C^alpha + P*; C counts from the start of training; 95 % intervals.", ""]
    for curve in found["curves"]:
        lines += [f"### {_cell(curve['run'])}/{_cell(curve['training'])}, {len(curve['points'])} checkpoints", ""]
        points = [
            (p["title"], p["step"],
             *(f"{p[axis]:.4g}" if axis in p else "–" for axis in ("flops", "tokens", "seconds")),
             *(_first(p["accuracy"].get(s["split"], {}).get("reasoning")) for s in curve["splits"]))
            for p in curve["points"]
        ]  # fmt: skip
        names = [f"{_cell(one['split'])}, %" for one in curve["splits"]]
        lines += _table(("checkpoint", "step", "FLOPs", "tokens", "seconds", *names), points)
        rows = [
            (f"{o['split']}, {o['metric']}, {o['axis']}", o["points"], f"{o['A']['value']:.3g}",
             f"{o['alpha']['value']:.3g} ({_ends(o['alpha']['residuals'])})",
             f"{100 * o['p_star']['value']:.1f} ({_ends(o['p_star']['residuals'], 100)})", f"{o['r2']:.3f}",
             _held(o["hold_out"]))
            for o in curve["fits"] if not o["refused"]
        ]  # fmt: skip
        if rows:
            lines += _table(("law", "n", "A", "alpha", "P* in %", "R²", "last point held out"), rows)
        refused = [f"{one['metric']}, {one['refused']}" for one in curve["fits"] if one["refused"]]
        lines += [*(f"- Not fitted ({_cell(one)})" for one in refused), *([""] if refused else [])]
    lines += [f"- No point: {_cell(one['evaluation'])} ({_cell(one['reason'])})" for one in found["left_out"]]
    return [*lines, ""]


def _held(one: Mapping[str, Any] | None) -> str:
    return "–" if one is None else f"{100 * one['predicted']:.1f} for {100 * one['observed']:.1f}"


def _first(own: Sequence[float | None] | None) -> str:
    return "–" if not own or own[0] is None else f"{100 * own[0]:.1f}"


def _patterns(found: Mapping[str, Any]) -> list[str]:
    names = list(found["keywords"])
    lines = ["## Reasoning patterns", "", "Replies with a keyword, in per cent; 95 % intervals.", ""]
    rows = [
        (row["source"], row["responses"], *(_share(row["groups"][name]) for name in names)) for row in found["rows"]
    ]
    lines += _table(("replies of", "n", *names), rows)
    for one in found["watch"]:
        rows = [
            (f"{part['from']}–{part['to']}", part["thoughts"], _number(part["characters"], ".0f"),
             *(_number(part["distinct"][n], ".0%") for n in ("1", "2", "3")),
             _number(part["distinct_thoughts"], ".0%"), _number(part["compression"], ".2f"),
             f"{part['openings'][0]['share']:.0%} {part['openings'][0]['line'][:60]}" if part["openings"] else "–")
            for part in one["windows"]
        ]  # fmt: skip
        head = ("steps", "thoughts", "characters", "1-grams", "2-grams", "3-grams", "distinct", "zlib", "opening line")
        lines += [f"### Thoughts over time: {_cell(one['label'])}", "", *_table(head, rows)]
    return lines


def _share(one: Mapping[str, Any]) -> str:
    return percent({"value": one["value"], "bootstrap": one["bootstrap"] or one["wilson"]})


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else f"{value:{form}}"


def markdown(data: Record) -> str:
    """The tables of a report, its warnings and versions as Markdown."""
    lines = [f"# {', '.join(map(_cell, data['runs']))}", ""]
    if data["evaluations"]:
        lines += _accuracy(data["evaluations"])
    if data["pairs"]:
        lines += _pairs(data["pairs"])
    if data["scaling"]["curves"]:
        lines += _scaling(data["scaling"])
    if data["patterns"]:
        lines += _patterns(data["patterns"])
    if data["training"]:
        lines += _training(data["training"])
    warnings = [
        f"- {_cell(stage['run'])}/{_cell(stage['name'])}: {_cell(text)}"
        for stage in data["stages"]
        for text in stage["warnings"] or ()
    ]
    lines += [*(f"- {_cell(note)}" for note in data["notes"]), *([""] if data["notes"] else [])]
    lines += ["## Warnings", "", *(warnings or ["None was raised."]), "", "## Stages", ""]
    rows = [
        (f"{s['run']}/{s['name']}", s["status"], s["created"], f"{s['seconds'] or 0:,.0f}", str(s["git"] or "–")[:12],
         ", ".join(f"{name} {version}" for name, version in (s["versions"] or {}).items()))
        for s in data["stages"]
    ]  # fmt: skip
    lines += _table(("stage", "status", "started", "seconds", "git", "versions"), rows)
    return "\n".join(lines)

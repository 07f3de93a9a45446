"""The report as one HTML file, and its figures as Markdown.

What a model wrote may hold anything, so none of it is ever markup: it travels as JSON inside a script element of a
type that no browser runs, with ``<``, ``>``, ``&`` and everything beyond ASCII escaped, and the page's script puts it
in place as text only. The content security policy admits this one style sheet and this one script, by their hashes,
and nothing else: no request, no frame, no other code.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from forethink.report.samples import Record

_PLACE = re.compile(r"\{\{(\w+)\}\}")


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def embed(data: Any) -> str:
    """JSON that cannot leave its script element: ASCII only, with ``<``, ``>`` and ``&`` escaped."""
    text = json.dumps(_finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def visible(text: str) -> str:
    """Text without characters that hide or reorder others: each is written as its code point, ``⟨U+202E⟩``."""
    return "".join(
        f"⟨U+{ord(c):04X}⟩" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp") else c for c in text
    )


def _asset(name: str) -> str:
    text = resources.files("forethink.report").joinpath(name).read_text(encoding="utf-8")
    return text.replace("\r\n", "\n").strip() + "\n"


def _source(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def render(data: Record) -> str:
    """The page of what :func:`~forethink.report.collect.collect` found; the same data give the same page."""
    style, script = _asset("report.css"), _asset("report.js") + _asset("figures.js")
    policy = (
        f"default-src 'none'; style-src {_source(style)}; script-src {_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {
        "policy": policy,
        "title": html.escape(visible(f"{', '.join(data['runs'])} · forethink")),
        "style": style,
        "script": script,
        "data": embed(data),
    }
    return _PLACE.sub(lambda found: parts[found[1]], _asset("report.html"))


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


def markdown(data: Record) -> str:
    """The tables of a report, its warnings and versions as Markdown."""
    lines = [f"# {', '.join(map(_cell, data['runs']))}", ""]
    if data["evaluations"]:
        lines += _accuracy(data["evaluations"])
    if data["training"]:
        lines += _training(data["training"])
    warnings = [
        f"- {_cell(stage['run'])}/{_cell(stage['name'])}: {_cell(text)}"
        for stage in data["stages"]
        for text in stage["warnings"] or ()
    ]
    lines += ["## Warnings", "", *(warnings or ["None was raised."]), "", "## Stages", ""]
    rows = [
        (f"{s['run']}/{s['name']}", s["status"], s["created"], f"{s['seconds'] or 0:,.0f}", str(s["git"] or "–")[:12],
         ", ".join(f"{name} {version}" for name, version in (s["versions"] or {}).items()))
        for s in data["stages"]
    ]  # fmt: skip
    lines += _table(("stage", "status", "started", "seconds", "git", "versions"), rows)
    return "\n".join(lines)

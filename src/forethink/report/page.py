"""The report as one HTML file.

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
from collections.abc import Mapping
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

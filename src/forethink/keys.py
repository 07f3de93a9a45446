"""Every configuration key, its default and what it means: the comments of :mod:`forethink.config`, as a recipe."""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize

from forethink import config
from forethink.recipe import config_toml


def describe_keys() -> str:
    """Every configuration key with its default and what it means, as a recipe that ``--config`` reads."""
    source = inspect.getsource(config)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    notes: dict[tuple[str, str], str] = {}
    titles: dict[str, str] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", node.name).lower()
            titles[name] = (ast.get_docstring(node) or "").split("\n", 1)[0]
            for item in node.body:
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                    lines = range(item.lineno, (item.end_lineno or item.lineno) + 1)
                    found = [comments[line] for line in lines if line in comments]
                    notes[name, item.target.id] = " ".join(found)
    shown: list[str] = []
    section = "config"
    for line in config_toml(config.Config()).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
            title = titles.get(section) or "Passed verbatim to TRL's GRPOConfig; keys that forethink sets are refused."
            shown += [line, f"# {title}"]
            continue
        note = notes.get((section, line.split(" = ", 1)[0]), "")
        shown.append(f"{line}  # {note}" if note else line)
    return "\n".join(shown) + "\n"

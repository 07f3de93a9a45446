"""What a recipe stands on: another recipe (``base``), and another run (``parent``).

``base = "start.toml"``, a path relative to the recipe that says so, reads that recipe first; this one's keys then win,
table by table. ``parent = "runs/start"`` makes finished stages of that run count as this run's own, so that many runs
share one scored corpus, its problems and a warm start. And how a resolved configuration is written as a recipe again.
"""

from __future__ import annotations

import json
import math
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.types import ForethinkError

if TYPE_CHECKING:
    from forethink.config import Config

Table = dict[str, Any]


def read_recipe(path: str | Path) -> list[tuple[Path, Table]]:
    """A recipe and those it is based on, the last base first, each without its ``base``.

    Raises:
        ForethinkError: a file is absent or no TOML, ``base`` is no path, or recipes are based on each other.
    """
    chain: list[tuple[Path, Table]] = []
    file = Path(path)
    while True:
        if any(file.resolve() == other.resolve() for other, _ in chain):
            raise ForethinkError(f"{chain[-1][0]}: base leads back to {file}; take it out of one of them.")
        table = _read(file, None if not chain else chain[-1][0])
        base = table.pop("base", None)
        chain.append((file, table))
        if base is None:
            return chain[::-1]
        if not isinstance(base, str):
            raise ForethinkError(f"{file}: base is {base!r}; name one recipe, relative to this one.")
        file = file.parent / base


def _read(path: Path, asked_by: Path | None) -> Table:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        where = "--config" if asked_by is None else f"base in {asked_by}"
        raise ForethinkError(f"{path}: no such recipe; name an existing TOML file with {where}.") from None
    except OSError as error:
        raise ForethinkError(f"{path}: cannot be read ({error.strerror}); name a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ForethinkError(f"{path}: not a TOML file ({error}); mend that line.") from None


def merge(below: Table, above: Mapping[str, Any]) -> Table:
    """Both tables as one: where both hold a table it is merged too, else the one above wins."""
    merged = dict(below)
    for key, value in above.items():
        own = merged.get(key)
        merged[key] = merge(own, value) if isinstance(own, dict) and isinstance(value, dict) else value
    return merged


def origin(chain: list[tuple[Path, Table]], key: tuple[int | str, ...]) -> Path:
    """The file that a key of the merged recipe comes from; the recipe itself where it stands in none."""
    for path, table in reversed(chain):
        found: Any = table
        for part in key:
            if not isinstance(found, dict) or part not in found:
                break
            found = found[part]
        else:
            return path
    return chain[-1][0]


def alike(old: Any, new: Any) -> bool:
    """Whether two JSON values say the same; a file or folder that is there may be named in two ways."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old.keys() == new.keys() and all(alike(old[key], new[key]) for key in old)
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(alike, old, new))
    if old != new and isinstance(old, str) and isinstance(new, str):
        try:
            return os.path.samefile(old, new)
        except (OSError, ValueError):  # one of them is no file's name
            return False
    return bool(old == new)


def first_difference(old: Any, new: Any, at: str = "") -> str:
    """Where two JSON values first differ, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *old]:
            if not alike(old.get(key), new.get(key)):
                return first_difference(old.get(key), new.get(key), f"{at}.{key}" if at else str(key))
    return f"{at} was {old!r}, now {new!r}"


def completed(settings: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """An earlier run's settings, with keys that its version did not know at their defaults, which change nothing."""
    defaults = type(config)().model_dump(mode="json")
    return {
        key: {**defaults[key], **value} if isinstance(value, dict) and isinstance(defaults.get(key), dict) else value
        for key, value in settings.items()
    }


def _of_parent(config: Config, stage: str) -> tuple[Path, str | None] | None:
    """The parent's folder of a stage that this run has not begun, and in what it differs from this configuration."""
    if config.parent is None or (Path(config.run) / stage).exists():
        return None
    if not Path(config.parent).is_dir():
        raise ForethinkError(f"{config.parent}: no such run; make the parent's stages first, or name it by parent=….")
    state = Path(config.parent) / stage / "run.json"
    if not state.is_file():
        return None
    try:
        record = json.loads(state.read_text(encoding="utf-8"))
        made = completed(record["settings"], config)
        settings = {key: value for key, value in made.items() if key not in ("stage", "seed")}
        done = record["status"] == "done"
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ForethinkError(f"{state}: cannot be read ({error!r}); make this stage again.") from None
    if not done:
        raise ForethinkError(f"{state.parent}: not finished; finish it by its own recipe first.")
    data = config.model_dump(mode="json")
    own = {key: data.get(key) for key in settings}
    return state.parent, None if alike(settings, own) else first_difference(settings, own)


def inherited(config: Config, stage: str) -> Path | None:
    """The parent's folder of a stage that it has finished as this configuration asks for; else None.

    The seed may differ: runs of several seeds share a parent.

    Raises:
        ForethinkError: there is no such parent, or it has begun the stage and not finished it.
    """
    found = _of_parent(config, stage)
    return None if found is None or found[1] is not None else found[0]


def stage_folder(config: Config, stage: str) -> Path:
    """Where a later stage reads an earlier one: this run's own folder, or the parent's where there is none.

    Raises:
        ForethinkError: as `inherited` does, and where the parent's stage was made with other settings.
    """
    found = _of_parent(config, stage)
    if found is None:
        return Path(config.run) / stage
    if found[1] is not None:
        raise ForethinkError(
            f"{found[0]}: made with another configuration ({found[1]}); run `forethink {stage}` with this recipe "
            "first, or give the parent's."
        )
    return found[0]


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # inf and nan, as TOML spells them
    text = json.dumps("none" if value is None else value, ensure_ascii=False)  # else TOML's values are JSON's,
    return text.replace("\x7f", "\\u007f")  # but TOML knows no surrogate pairs and no raw DEL


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def config_toml(config: Config) -> str:
    """The resolved configuration as TOML, every key written out; None as the string "none"."""
    data = config.model_dump(mode="json")
    lines = [f"{key} = {_toml_value(value)}" for key, value in data.items() if not isinstance(value, dict)]
    for section, table in data.items():
        if isinstance(table, dict):
            lines += ["", f"[{section}]"]
            lines += [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"

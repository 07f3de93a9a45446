"""A user's own reward, template, selector or verifier, by name."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forethink.types import ForethinkError


def load_function(spec: str) -> Callable[..., Any]:
    """A user's own reward, template or selector by name.

    Args:
        spec: ``module:function`` for something importable, or ``path/to/file.py:function``.

    Raises:
        ForethinkError: the file, the module or the function is absent, or the code fails while it is imported.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise ForethinkError(f"{spec!r}: name a function as module:function or path/to/file.py:function.")
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except ForethinkError:
        raise
    except ModuleNotFoundError as error:
        raise ForethinkError(
            f"{spec!r}: there is no module {error.name!r}; install it, or name a file as path/to/file.py:function."
        ) from None
    except Exception as error:  # whatever the user's code raises
        raise ForethinkError(
            f"{spec!r}: {place} fails on import ({type(error).__name__}: {error}); mend it."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ForethinkError(f"{spec!r}: {place} has no function {name!r}; mend the name.")
    return function


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ForethinkError(f"{path}: no such file; name an existing one as path/to/file.py:function.")
    name = f"forethink_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    assert module_spec is not None and module_spec.loader is not None  # always so for a .py file
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module  # dataclasses and pickling look a function's module up there
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module

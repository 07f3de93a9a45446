"""The import order of the package, its light modules, and the size of its files and functions."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import forethink

PACKAGE = Path(forethink.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Lower layers never import higher ones, lazy imports inside functions included. Names are the module's own or, for
# everything in a folder, the folder's.
LAYERS = [
    {"types", "flags"},
    {"recipe"},
    {"config", "rundir", "functions", "flags"},
    {"paired"},
    {"corpus", "records", "selectors", "problems", "templates", "rewards", "rescore", "keys", "spent", "questions",
     "verify"},
    {"device", "tokens", "models", "scoring", "rollout", "packing", "head", "flops", "tree_attention",
     "kernels"},
    {"training"},
    {"evaluate"},
    {"stages", "dryrun", "scaling", "powerlaw", "evaluated", "patterns", "compare", "sheets", "looking", "report",
     "watch", "watched"},
    {"demo"},
    {"cli", "__main__"},
]  # fmt: skip
# These see types, config, rundir and records, and no stage.
RUN_FOLDERS_ONLY = {"paired", "spent", "scaling", "powerlaw", "evaluated", "patterns", "compare", "sheets", "looking",
                    "report", "watch", "watched"}  # fmt: skip
LIGHT = {"types", "recipe", "config", "functions", "flags", "rundir", "corpus", "records", "selectors", "problems",
         "questions", "verify", "templates", "rewards", "rescore", "keys", "spent", "stages", "dryrun", "paired",
         "scaling", "powerlaw", "evaluated", "patterns", "compare", "sheets", "looking", "watch", "watched", "demo",
         "cli", "__main__"}  # fmt: skip
HEAVY = {"torch", "transformers", "vllm", "trl", "verl", "ray", "datasets", "peft", "accelerate", "matplotlib"}


def room(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(tree: ast.AST) -> Iterator[str]:
    """Absolute names of all imported modules below a node."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the package imports by absolute names"
            yield str(node.module)
            if node.module == "forethink":
                yield from (f"forethink.{alias.name}" for alias in node.names)


def at_module_level(tree: ast.Module) -> Iterator[str]:
    """Imports that run when the module is imported: not those in functions, nor under TYPE_CHECKING."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def typing_only(tree: ast.Module) -> set[str]:
    """Imports for annotations alone."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for statement in node.body:
                found |= set(imports(statement))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_no_higher_layer(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = room(path)
    if own == "__init__":
        assert not [name for name in imports(tree) if name.startswith("forethink.")]
        return
    used = {name.split(".")[1] for name in set(imports(tree)) - typing_only(tree) if name.startswith("forethink.")}
    used -= {"__version__"}
    if own in RUN_FOLDERS_ONLY:
        assert used <= {"types", "config", "rundir", "records", *RUN_FOLDERS_ONLY}
        return
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    assert own in level, f"{own}: a new module; say in LAYERS where it belongs"
    higher = {name for name in used if level.get(name, len(LAYERS)) > level[own]}
    assert not higher, f"{path}: imports {higher}, which stand above it"


@pytest.mark.parametrize("path", [f for f in FILES if room(f) in LIGHT], ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_light_module_imports_nothing_heavy(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not {name.split(".")[0] for name in at_module_level(tree)} & HEAVY


def test_light_modules_load_no_heavy_one_through_others() -> None:
    names = ", ".join(f"forethink.{name}" for name in sorted(LIGHT - {"__main__"}))
    code = f"import sys, {names}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_and_functions_stay_readable(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, f"{path}: {node.name} is too long"


def test_the_package_stays_small(record_property: Callable[[str, object], None]) -> None:
    """The design's aim is 30 files with something in them; this is the limit above which a room is to be merged."""
    count = sum(path.stat().st_size > 0 for path in FILES)
    record_property("source_files", count)
    assert count <= 90

"""Every recipe is read by the configuration, and says nothing that it does not mean."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from forethink import cli
from forethink.config import load_config
from forethink.demo import RECIPE
from forethink.questions import TASK, make_task
from forethink.recipe import config_toml
from forethink.rewards import load_reward
from forethink.selectors import load_selector
from forethink.templates import load_template

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = [*sorted(FOLDER.rglob("*.toml")), RECIPE]


def name_of(path: Path) -> str:
    """A recipe's name as the list of recipes has it."""
    return path.relative_to(FOLDER).as_posix() if path.is_relative_to(FOLDER) else path.name


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_is_read(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    load_template(config.template.name)
    load_reward(config.reward)
    load_selector(config.problems.selector)
    load_template(config.questions.template)
    source = config.questions.source or ""
    if source.startswith(TASK):
        pytest.importorskip("reasoning_gym")
        assert make_task(source, config.questions.options, 1, 0)[0]["answer"]
    assert config.problems.max_context >= config.problems.min_context
    assert config.train.problems % config.train.micro_batch == 0 or config.train.problems < config.train.micro_batch
    written = tmp_path / "config.toml"
    written.write_text(config_toml(config), encoding="utf-8")
    assert load_config(written) == config


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_recipes_hold_no_path_of_a_machine(path: Path) -> None:
    config = load_config(path)
    assert not Path(config.run).is_absolute() and config.run.startswith("runs/")
    paths = (config.corpus.path, config.questions.source, config.questions.held_out, *config.tasks.path)
    assert all(path is None or not Path(path).is_absolute() for path in paths)


def test_every_recipe_writes_to_its_own_folder() -> None:
    runs = [load_config(path).run for path in RECIPES]
    assert len(set(runs)) == len(runs)


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.toml")), ids=name_of)
def test_every_recipe_is_in_the_list(path: Path) -> None:
    assert f"`{name_of(path)}`" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_papers_recipe_has_a_figure_beside_every_value() -> None:
    path = FOLDER / "paper_14b.toml"
    lines = path.read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if re.match(r"\w+ = ", line) and not line.startswith("run = ")]
    count = sum(len(table) if isinstance(table, dict) else 1 for table in tomllib.loads("\n".join(lines)).values())
    assert len(values) == count - 1
    assert all(re.search(r"  # \S", line) for line in values)


def test_the_papers_recipe_holds_the_papers_values() -> None:
    config = load_config(FOLDER / "paper_14b.toml")
    assert (config.rollout.group, config.rollout.temperature, config.rollout.max_tokens) == (8, 0.8, 8192)
    train = config.train
    assert (train.steps, train.problems, train.learning_rate, train.clip) == (1000, 256, 1e-6, 0.2)
    assert (train.weight_decay, train.dynamic_sampling_from, train.ntp_weight) == (0.01, 500, 0.0)
    assert config.score.top_k == 16 and config.eval.thresholds == (0.5, 1.0, 1.5)


def _documented() -> list[list[str]]:
    """Every `forethink` command in a shell block of the documentation."""
    root = FOLDER.parent
    pages = [root / "README.md", *sorted((root / "docs").glob("*.md"))]
    blocks = [
        b for page in pages for b in re.findall(r"^```sh\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S)
    ]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command[1:] for command in commands if command and command[0] == "forethink"]


def _runs(parsed: argparse.Namespace) -> list[str]:
    """The run folders that a command was given: one or several, by the command."""
    return list(parsed.runs) if hasattr(parsed, "runs") else [parsed.run]


@pytest.mark.parametrize("arguments", _documented(), ids=" ".join)
def test_documented_commands_are_understood(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    name, *rest = arguments
    assert name in cli.COMMANDS
    if name == "keys":
        return
    if not cli.COMMANDS[name].recipe:  # those that read finished runs
        parsed = cli._parser(name).parse_intermixed_args(rest)
        assert all(run.startswith("runs/") for run in _runs(parsed))
    else:
        config = cli._config(cli._parser(name).parse_intermixed_args(rest))
        assert config.run.startswith("runs/")


@pytest.mark.parametrize("name", [name for name in cli.COMMANDS if name != "keys"])
def test_the_examples_of_help_are_understood(name: str) -> None:
    program, own, *rest = shlex.split(cli.COMMANDS[name].example)
    assert (program, own) == ("forethink", name)
    arguments = cli._parser(name).parse_intermixed_args(rest)
    if cli.COMMANDS[name].recipe:
        assert cli._config(arguments).run.startswith("runs/")
    else:  # those that read finished runs
        assert all(run.startswith("runs/") for run in _runs(arguments))

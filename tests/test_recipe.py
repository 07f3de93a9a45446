"""What recipes stand on: bases, and parents whose finished stages are shared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from forethink import stages
from forethink.config import load_config
from forethink.recipe import config_toml, inherited, stage_folder
from forethink.rundir import RunDir
from forethink.types import ForethinkError
from trainers import prepare, train_settings


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_recipe_stands_on_its_base(tmp_path: Path) -> None:
    write(
        tmp_path / "far" / "bottom.toml", 'seed = 1\n[train]\nsteps = 7\nproblems = 8\n[corpus]\nfield = ["a", "b"]\n'
    )
    write(tmp_path / "middle.toml", 'base = "far/bottom.toml"\n[train]\nsteps = 9\n[trl]\nx = {a = 1, b = 2}\n')
    top = write(
        tmp_path / "near" / "top.toml", 'base = "../middle.toml"\n[corpus]\nfield = ["c"]\n[trl]\nx = {b = 3}\n'
    )
    config = load_config(top, ["train.problems=4"])
    assert (config.seed, config.train.steps, config.train.problems) == (1, 9, 4)
    assert config.corpus.field == ("c",)  # lists are replaced, tables are merged
    assert config.trl == {"x": {"a": 1, "b": 3}}
    whole = write(tmp_path / "whole.toml", config_toml(config))
    assert load_config(whole) == config  # what a run folder holds needs no base


def test_bases_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    for text, words in (
        ('base = "b.toml"', r"b\.toml: no such recipe; name an existing TOML file with base in .*a\.toml"),
        ('base = "a.toml"', "base leads back to"),
        ("base = 3", r"a\.toml: base is 3; name one recipe"),
    ):
        with pytest.raises(ForethinkError, match=words):
            load_config(write(a, text))
    write(a, 'base = "b.toml"')
    write(b, 'base = "./a.toml"')
    with pytest.raises(ForethinkError, match=r"b\.toml: base leads back to .*a\.toml"):
        load_config(a)
    # A mistake is named in the file where it stands.
    write(b, "[train]\nstepz = 3\n")
    with pytest.raises(ForethinkError, match=r"b\.toml: unknown key 'train\.stepz'"):
        load_config(a)
    write(a, 'base = "b.toml"\n[train]\nsteps = "many"\n')
    write(b, "[train]\nsteps = 3\n")
    with pytest.raises(ForethinkError, match=r"a\.toml: 'train\.steps' is 'many'"):
        load_config(a)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory, tiny_llama, smollm2_tokenizer) -> Path:
    """A run with problems and a warm start, both finished."""
    run = tmp_path_factory.mktemp("home") / "start"
    prepare(run, tiny_llama, smollm2_tokenizer)
    config = train_settings(run)
    shutil.move(run / "problems", run / "made")
    for stage, sections in (("problems", ("problems", "model")), ("warmup", ("model", "warmup"))):
        RunDir(run / stage, stage, config, sections).finish()
    shutil.copytree(run / "made", run / "problems", dirs_exist_ok=True)
    shutil.copytree(run.parent / "policy", run / "warmup" / "model")
    return run


def test_training_takes_problems_and_warm_start_of_the_parent(parent: Path) -> None:
    child = parent.parent / "child"
    config = train_settings(child, f"parent={parent}", "train.steps=1", "seed=5")
    assert stages.problems(config) == parent / "problems" and stages.warmup(config) == parent / "warmup"
    folder = stages.train(config)
    assert sorted(path.name for path in child.iterdir()) == ["train"]
    inputs = json.loads((folder / "run.json").read_text())["inputs"]
    assert str(parent / "problems" / "train.parquet") in inputs
    assert str(parent / "warmup" / "model" / "model.safetensors") in inputs


def test_a_named_start_asks_for_no_warm_start_of_the_parent(parent: Path) -> None:
    settings = [f"parent={parent}", "train.steps=1", "warmup.examples=7"]
    with pytest.raises(ForethinkError, match=r"warmup\.examples was"):
        stages.train(train_settings(parent.parent / "unnamed", *settings))
    start = parent / "warmup" / "model"
    folder = stages.train(train_settings(parent.parent / "named", *settings, f"train.start={start}"))
    assert str(start / "model.safetensors") in json.loads((folder / "run.json").read_text())["inputs"]


def test_a_runs_own_stage_goes_before_the_parents(parent: Path) -> None:
    child = parent.parent / "own"
    (child / "problems").mkdir(parents=True)
    config = train_settings(child, f"parent={parent}")
    assert stage_folder(config, "problems") == child / "problems" and inherited(config, "problems") is None
    assert stage_folder(config, "warmup") == parent / "warmup"
    assert stage_folder(config, "score") == child / "score"  # neither has it


def test_a_parent_made_by_an_earlier_version_is_taken(parent: Path) -> None:
    state = parent / "warmup" / "run.json"
    text = state.read_text()
    record = json.loads(text)
    del record["settings"]["warmup"]["replay"]  # a key of later
    try:
        state.write_text(json.dumps(record))
        child = parent.parent / "later"
        assert inherited(train_settings(child, f"parent={parent}"), "warmup") == parent / "warmup"
        assert inherited(train_settings(child, f"parent={parent}", "warmup.replay=0.5"), "warmup") is None
    finally:
        state.write_text(text)


def test_a_file_may_be_named_in_two_ways(parent: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, corpus, other = parent.parent / "twice", parent.parent / "corpus.jsonl", parent.parent / "other.jsonl"
    for file in (corpus, other):
        file.touch()
    given = [f"parent={parent}", f"corpus.path={corpus}"]
    RunDir(parent / "score", "score", train_settings(parent, *given[1:]), ("corpus",)).finish()
    monkeypatch.chdir(parent)
    for name in (str(corpus), "../corpus.jsonl", f"../../{parent.parent.name}/./corpus.jsonl"):
        assert inherited(train_settings(child, given[0], f"corpus.path={name}"), "score") == parent / "score"
    for name in ("../other.jsonl", "../absent.jsonl", "none"):
        config = train_settings(child, given[0], f"corpus.path={name}")
        with pytest.raises(ForethinkError, match=r"corpus\.path was '.*corpus\.jsonl', now"):
            stage_folder(config, "score")
    RunDir(parent / "score", "score", train_settings(parent, "corpus.path=../corpus.jsonl"), ("corpus",))
    with pytest.raises(ForethinkError, match=r"corpus\.path was"):
        RunDir(parent / "score", "score", train_settings(parent, "corpus.path=../other.jsonl"), ("corpus",))
    shutil.rmtree(parent / "score")


def test_what_the_parent_made_otherwise_is_not_taken(parent: Path) -> None:
    child = parent.parent / "other"
    config = train_settings(child, f"parent={parent}", "problems.selector=random")
    assert inherited(config, "problems") is None  # `forethink problems` makes its own
    with pytest.raises(
        ForethinkError, match=r"problems\.selector was 'threshold', now 'random'\); run `forethink prob"
    ):
        stages.train(config)
    with pytest.raises(ForethinkError, match="no such run; make the parent's stages first"):
        stages.train(train_settings(child, f"parent={parent.parent / 'absent'}"))
    state = parent / "warmup" / "run.json"
    record = json.loads(state.read_text())
    try:
        state.write_text(json.dumps(record | {"status": "running"}))
        with pytest.raises(ForethinkError, match="warmup: not finished"):
            stages.warmup(train_settings(child, f"parent={parent}"))
    finally:
        state.write_text(json.dumps(record))

"""Recipes: what is read, what is refused, and that what is written reads back."""

from __future__ import annotations

import math
import string
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from forethink.config import Config, load_config
from forethink.functions import load_function
from forethink.recipe import config_toml
from forethink.types import ForethinkError


def test_defaults_files_and_overrides(tmp_path: Path):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('seed = 3\n[train]\nsteps = 7\nlearning_rate = 1e-5\n[corpus]\nfield = ["a", "b"]\n')
    config = load_config(recipe, ["train.steps=9", "train.steps=11", "trl.report_to=none", "run=runs/x"])
    assert (config.seed, config.train.steps, config.train.learning_rate) == (3, 11, 1e-5)
    assert config.corpus.field == ("a", "b")
    assert config.trl == {"report_to": "none"}  # TRL's own word: passed on as it is
    assert load_config() == Config()


@pytest.mark.parametrize(
    ("override", "section", "key", "value"),
    [
        ("run=2030-01-31", None, "run", "2030-01-31"),  # a date to TOML, a folder to us
        ("run=/data/my runs/é", None, "run", "/data/my runs/é"),
        ('corpus.separator="\\n"', "corpus", "separator", "\n"),
        ("corpus.path=a=b.jsonl", "corpus", "path", "a=b.jsonl"),
        ("problems.per_document=none", "problems", "per_document", None),
        ("problems.upper=inf", "problems", "upper", math.inf),
        ('corpus.field=["q", "a"]', "corpus", "field", ("q", "a")),
    ],
)
def test_override_values(override: str, section: str | None, key: str, value: object):
    config = load_config(None, [override])
    assert getattr(getattr(config, section) if section else config, key) == value


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.stepz=3"], "unknown key 'train.stepz'"),
        (["trian.steps=3"], "unknown key 'trian'"),
        (["train.steps=many"], "'train.steps' is 'many'"),
        (["train.steps=1.5"], "'train.steps' is 1.5"),
        (["train.steps=0"], "'train.steps' is 0"),
        (["train=3"], "'train' is 3"),
        (["rollout.engine=magic"], "'rollout.engine' is 'magic'"),
        (["corpus.field=text"], "'corpus.field' is 'text'"),
        (["train.steps"], "section.key=value"),
        (["seed=1", "seed.x=1"], "'seed' is a value, not a section"),
    ],
)
def test_bad_overrides_are_one_sentence(overrides: list[str], words: str):
    with pytest.raises(ForethinkError) as caught:
        load_config(None, overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path):
    with pytest.raises(ForethinkError, match="no such recipe"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ForethinkError, match="cannot be read"):
        load_config(tmp_path)
    for text in (b"[train\n", b"run = '\xff'\n"):
        (tmp_path / "bad.toml").write_bytes(text)
        with pytest.raises(ForethinkError, match=r"bad\.toml: not a TOML file"):
            load_config(tmp_path / "bad.toml")
    (tmp_path / "bad.toml").write_text("[train]\nsteps = '5 apples'\n")
    with pytest.raises(ForethinkError, match=r"bad\.toml: 'train\.steps' is '5 apples'"):
        load_config(tmp_path / "bad.toml")


def test_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Config().train.steps = 3  # type: ignore[misc]


_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: text != "none")
_float = st.floats(allow_nan=False)
_trl = st.dictionaries(
    st.text(string.printable + "é\x7f😀", max_size=6),
    st.recursive(
        st.booleans() | st.integers(-(2**40), 2**40) | _float | _text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
        max_leaves=5,
    ),
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@example("x", None, math.inf, None, [], {"a": math.inf, "b": [-math.inf]})
@given(_text, st.none() | _text, _float, st.none() | st.integers(1, 2**31), st.lists(_text, max_size=3), _trl)
def test_written_configuration_reads_back(run, path, upper, budget, fields, trl):
    data = {"run": run, "corpus": {"path": path, "field": tuple(fields)}, "trl": trl}
    config = Config.model_validate({**data, "problems": {"upper": upper, "per_document": budget}})
    assert Config.model_validate(tomllib.loads(config_toml(config))) == config


def test_written_configuration_names_every_key():
    written = tomllib.loads(config_toml(Config()))
    assert set(written) == set(Config.model_fields)
    for section, model in Config():
        if section in {"run", "parent", "seed", "trl"}:
            continue
        assert set(written[section]) == set(type(model).model_fields)


def test_load_function(tmp_path: Path):
    assert load_function("math:sqrt") is math.sqrt
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Box:\n    n: int\ndef double(x):\n    return Box(2 * x).n\nnumber = 3\n"
    )
    assert load_function(f"{file}:double")(4) == 8


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sqrt", "module:function"),
        (":f", "module:function"),
        ("math:", "module:function"),
        ("no_such_module_here:f", "no module 'no_such_module_here'"),
        ("math:no_such", "no function 'no_such'"),
        ("math:pi", "no function 'pi'"),
        ("absent.py:f", "absent.py: no such file"),
        ("broken.py:f", "SyntaxError"),
        ("raises.py:f", "ZeroDivisionError"),
        ("needs.py:f", "no module 'no_such_module_here'"),
    ],
)
def test_bad_functions_are_one_sentence(spec: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("def f(:\n")
    Path("raises.py").write_text("1 / 0\n")
    Path("needs.py").write_text("import no_such_module_here\n")
    with pytest.raises(ForethinkError) as caught:
        load_function(spec)
    assert words in str(caught.value)

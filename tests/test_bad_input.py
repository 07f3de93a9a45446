"""Ten kinds of bad input: each gives one clear sentence on stderr and exit code 2, and no traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from forethink import cli


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tiny_llama, smollm2_tokenizer) -> str:
    """A tiny random policy in a folder."""
    folder = tmp_path_factory.mktemp("policy")
    tiny_llama.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command in an empty folder, and return its one sentence."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert cli.main(list(arguments)) == 2
        error = capsys.readouterr().err
        lines = error.splitlines()
        assert len(lines) == 1, error
        assert lines[0].startswith("forethink: ") and lines[0].endswith(".")
        assert "Traceback" not in error
        return lines[0].removeprefix("forethink: ")

    return run


def score(policy: str, corpus: str, *more: str) -> list[str]:
    return ["score", "--model", policy, "--corpus", corpus, "--run", "r", "model.device=cpu", *more]


def jsonl(path: str, *records: object) -> str:
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_missing_field(refused, policy: str) -> None:
    file = jsonl("c.jsonl", {"problem": "1+1", "solution": "2"}, {"problem": "1+2"})
    sentence = refused(*score(policy, file, "--field", "problem", "--field", "solution"))
    assert "c.jsonl: line 2" in sentence and "'solution'" in sentence and "--field" in sentence


def test_empty_file(refused, policy: str) -> None:
    Path("c.jsonl").touch()
    assert "c.jsonl: the file is empty" in refused(*score(policy, "c.jsonl"))


def test_bytes_that_are_not_utf8(refused, policy: str) -> None:
    Path("c.txt").write_bytes(b"first line\ncaf\xe9 au lait\n")
    sentence = refused(*score(policy, "c.txt"))
    assert "c.txt: line 2" in sentence and "0xe9" in sentence and "UTF-8" in sentence


def test_broken_json_line(refused, policy: str) -> None:
    Path("c.jsonl").write_text('{"text": "good"}\n{"text": "bad\n')
    sentence = refused(*score(policy, "c.jsonl"))
    assert "c.jsonl: line 2" in sentence and "JSON" in sentence


@pytest.mark.parametrize("command", [name for name, command in cli.COMMANDS.items() if command.recipe])
def test_unknown_key(refused, command: str) -> None:
    assert "'train.stepz'" in refused(command, "train.stepz=4")


@pytest.mark.parametrize("command", ["fit", "patterns", "report"])
def test_no_run_to_look_at(refused, command: str) -> None:
    assert "runs/absent" in refused(command, "runs/absent")


def test_unknown_key_in_a_recipe(refused) -> None:
    Path("r.toml").write_text("[rollout]\ntemprature = 0.8\n")
    sentence = refused("train", "--config", "r.toml")
    assert "r.toml" in sentence and "'rollout.temprature'" in sentence and "forethink keys" in sentence


def test_wrong_type(refused) -> None:
    sentence = refused("train", "train.steps=many")
    assert "'train.steps'" in sentence and "'many'" in sentence


def test_absent_recipe(refused) -> None:
    assert "absent.toml" in refused("score", "--config", "absent.toml")


def test_absent_model(refused) -> None:
    file = jsonl("c.jsonl", {"text": "some text"})
    sentence = refused(*score("no/such-model", file))
    assert "no/such-model" in sentence and "smollm2" in sentence


def test_absent_corpus(refused, policy: str) -> None:
    assert "absent.jsonl" in refused(*score(policy, "absent.jsonl"))
    assert "--corpus" in refused("score", "--model", policy, "--run", "r2", "model.device=cpu")


def test_tokenizer_without_a_byte_map(refused, policy: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "some", "text"])}
    backend = Tokenizer(models.WordPiece(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    shutil.copytree(
        policy, "words", ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*", "vocab*", "merges*")
    )
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained("words")
    sentence = refused(*score("words", jsonl("c.jsonl", {"text": "some text"})))
    assert "words" in sentence and "gives no bytes for its tokens" in sentence


def test_no_position_left(refused, policy: str) -> None:
    file = jsonl("c.jsonl", {"text": "A short text of a few words, and then a few words more."})
    assert cli.main(score(policy, file, "score.short_context=2")) == 0
    common = ["--run", "r", "--model", policy, "score.short_context=2", "problems.min_context=4"]
    sentence = refused("problems", *common, "problems.threshold=1000")
    assert "no position is left after selection" in sentence and "problems.threshold" in sentence
    counts = json.loads(Path("r/problems/dropped.json").read_text())
    assert counts["not selected"] > 0
    assert cli.main(["problems", *common, "problems.threshold=0"]) == 0  # the mended command works in the same folder


def test_a_folder_of_another_configuration(refused, policy: str) -> None:
    file = jsonl("c.jsonl", {"text": "A short text of a few words."})
    assert cli.main(score(policy, file)) == 0
    sentence = refused(*score(policy, file, "score.top_k=8"))
    assert "belongs to another configuration" in sentence and "score.top_k" in sentence
    jsonl("c.jsonl", {"text": "Another text under the same name."})
    assert "belongs to another configuration" in refused(*score(policy, file))


def test_a_folder_that_is_no_run(refused, policy: str) -> None:
    Path("r/score").mkdir(parents=True)
    Path("r/score/thesis.tex").write_text("mine")
    assert "r/score" in refused(*score(policy, jsonl("c.jsonl", {"text": "some text"})))
    assert Path("r/score/thesis.tex").read_text() == "mine"


@pytest.mark.parametrize(("command", "names"), [
    ("problems", "forethink score"), ("warmup", "forethink problems"), ("train", "forethink problems"),
    ("eval", "forethink problems"), ("rescore", "samples.jsonl"),
])  # fmt: skip
def test_stages_say_what_must_run_before(refused, policy: str, command: str, names: str) -> None:
    assert names in refused(command, "--run", "empty", "--model", policy, "model.device=cpu")


@pytest.mark.parametrize(("override", "names"), [
    ("problems.selector=entropie", "threshold"), ("problems.selector=absent.py:choose", "absent.py"),
])  # fmt: skip
def test_an_unknown_selector_is_named(refused, policy: str, override: str, names: str) -> None:
    assert cli.main(score(policy, jsonl("c.jsonl", {"text": "A short text of a few words."}))) == 0
    assert names in refused("problems", "--run", "r", "--model", policy, override)

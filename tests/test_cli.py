"""The command line: what it prints, how it reads its arguments, and the stages it joins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forethink import __version__, cli
from forethink.config import Config, load_config
from forethink.keys import describe_keys
from forethink.records import problems_metadata, scored_metadata
from forethink.types import ForethinkError

HEAVY = ("torch", "transformers", "trl", "datasets", "pydantic", "numpy")


def parsed(*arguments: str) -> Config:
    """The configuration that a command line asks for."""
    return cli._config(cli._parser(arguments[0]).parse_intermixed_args(arguments[1:]))


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
from forethink import cli
for name in cli.COMMANDS:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            cli.main([name, "--help"])
        except SystemExit as end:
            assert end.code == 0
    assert "example:" in text.getvalue() and "Reads " in text.getvalue(), name
cli.main(["--help"]), cli.main(["--version"])
print("loaded:", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.rstrip().endswith("loaded:")
    assert f"forethink {__version__}" in result.stdout


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in cli.COMMANDS)
    assert cli.main([]) == 2


def test_an_unknown_command_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["scoer"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("forethink: no command 'scoer'") and error.count("\n") == 1


def test_flags_stand_for_their_keys() -> None:
    config = parsed(
        "score", "--run", "2030-01-31", "--corpus", "a b.jsonl", "--field", "problem", "--field", "solution",
        "--separator", r"\n--\t", "--model", "5", "--adapter", "x", "--seed", "7",
    )  # fmt: skip
    assert config.run == "2030-01-31" and config.seed == 7
    assert config.corpus.path == "a b.jsonl" and config.corpus.field == ("problem", "solution")
    assert config.corpus.separator == "\n--\t"
    assert config.model.name == "5" and config.model.adapter == "x"


def test_flags_of_eval_stand_for_their_keys() -> None:
    config = parsed(
        "eval", "--name", "after", "--checkpoint", "m", "--against", "a", "eval.samples=4", "--against", "b"
    )
    assert (config.eval.name, config.eval.model, config.eval.samples) == ("after", "m", 4)
    assert config.eval.against == ("a", "b")


def test_recipe_then_flags_then_overrides(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text('run = "recipe"\nseed = 1\n[train]\nsteps = 3\n')
    config = parsed("train", "train.steps=5", "--config", str(recipe), "--run", "flag", "seed=2", "--seed", "9")
    assert (config.run, config.seed, config.train.steps) == ("flag", 2, 5)


@pytest.mark.parametrize("value", ['a"b', "a\\b", "ü €", "none-such"])
def test_flags_pass_any_text(value: str) -> None:
    assert parsed("score", "--run", value).run == value


def test_keys_print_a_recipe_of_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "keys.toml"
    recipe.write_text(describe_keys(), encoding="utf-8")
    assert load_config(recipe) == Config()


def test_keys_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys"]) == 0
    text = capsys.readouterr().out
    assert "[warmup]\n# Supervised training on thoughts made of" in text
    assert "skip_box_rate = 0.9  # skipped from this box rate on; None: never" in text


def test_ctrl_c_is_one_line_and_130(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise KeyboardInterrupt

    assert cli._guarded(work) == 130
    assert capsys.readouterr().err.strip() == "forethink: stopped; the same command goes on where it was."


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        cli._guarded(lambda: 1 / 0)


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")


@needs_full
def test_a_full_disk_under_stdout_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "forethink", "keys"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.startswith("forethink: the disk is full") and result.stderr.count("\n") == 1


@needs_full
def test_a_full_disk_is_seen_through_what_torch_makes_of_it() -> None:
    import torch

    with pytest.raises(Exception) as caught, open("/dev/full", "wb", buffering=0) as full:
        torch.save(torch.zeros(1 << 18), full)
    assert cli.disk_full(caught.value)


def test_other_errors_are_no_full_disk() -> None:
    assert not cli.disk_full(FileNotFoundError(2, "No such file or directory"))
    assert not cli.disk_full(ForethinkError("x"))


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m forethink keys | true"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.stderr == ""


def test_an_unknown_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["score", "--no-such-flag"])
    assert end.value.code == 2
    assert "--no-such-flag" in capsys.readouterr().err


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tiny_llama, smollm2_tokenizer) -> str:
    """A tiny random policy in a folder."""
    folder = tmp_path_factory.mktemp("policy")
    tiny_llama.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return str(folder)


SMALL = ("problems.threshold=0", "problems.min_context=4", "score.short_context=2", "problems.per_document=3",
         "rollout.max_tokens=4", "rollout.group=2", "eval.positions=4", "eval.thresholds=[0.0]", "eval.bootstrap=100",
         "model.dtype=float32", "model.device=cpu")  # fmt: skip


def test_eval_of_a_corpus_scores_it_first(
    tmp_path: Path, policy: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    records = [
        {"q": f"How many birds are left of {i + 3} on the roof?", "a": f"There are {i} left."} for i in range(6)
    ]
    Path("held out.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    base = ["--run", "r", "--model", policy, "--corpus", "held out.jsonl", "--field", "q", "--field", "a", *SMALL]
    assert cli.main(["eval", *base, "--name", "before"]) == 0
    own = tmp_path / "r" / "eval_corpus" / "held-out.jsonl"
    assert (own / "score" / "run.json").exists() and (own / "problems" / "validation.parquet").exists()
    assert not (tmp_path / "r" / "score").exists()
    scored = scored_metadata(own / "score")["fingerprint"]  # one tokenizer: problems take the scored ids as they are
    assert scored == problems_metadata(own / "problems", "validation")["fingerprint"]
    positions = (tmp_path / "r" / "before" / "positions.jsonl").read_text().splitlines()
    assert len(positions) == 4
    capsys.readouterr()
    # Another checkpoint stands on the same problems: nothing is scored again.
    stamp = (own / "score" / "run.json").stat().st_mtime_ns
    assert cli.main(["eval", *base, "--name", "after", "--checkpoint", policy, "--against", "r/before"]) == 0
    assert (own / "score" / "run.json").stat().st_mtime_ns == stamp
    assert "done: r/after" in capsys.readouterr().out
    # Saved completions under another reward, and under one that asks the policy.
    common = ["--run", "r", "--samples", "r/before/samples.jsonl", "--problems", str(own / "problems"), *SMALL]
    assert cli.main(["rescore", *common, "--reward", "first_token"]) == 0
    assert (tmp_path / "r" / "rescore" / "before-first_token" / "samples.jsonl").exists()
    assert cli.main(["rescore", *common, "--reward", "information_gain"]) == 2
    assert "logprob_thought" in capsys.readouterr().err
    assert cli.main(["rescore", *common, "--reward", "information_gain", "--model", policy]) == 0

"""Saved completions scored again: the new rewards, the figures, and what is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from forethink.config import load_config
from forethink.records import write_problems
from forethink.rescore import run_rescore, summarise
from forethink.rewards import load_reward, outcome, score_group
from forethink.rundir import read_jsonl
from forethink.templates import read
from forethink.types import Finish, ForethinkError, PolicyScores, Problem


def problem(number: int, *tokens: bytes) -> Problem:
    ends = tuple(len(b"".join(tokens[: i + 1])) for i in range(len(tokens)))
    ids, text = tuple(range(len(tokens))), b"".join(tokens)
    split = "train" if number < 2 else "validation"
    return Problem(f"d:{number}", "d", number, split, b"so", (1, 2), text, ids, ends, 1.0, 1.0, 1.0, -1.0, b" a")


PROBLEMS = [problem(0, b" the", b" end"), problem(1, b"\xc3", b"\xa9"), problem(2, b"\n", b"The")]
TEXTS = {
    (0, "d:0"): [rb"\boxed{ the end}", rb"\boxed{ the}", rb"\boxed{the}", rb"none"],
    (0, "d:1"): [b"\\boxed{\xc3\xa9}", b"\\boxed{\xa9\xff}", b"\xf0", b"\\boxed{a}"],
    (1, "d:2"): [rb"\boxed{\n}"] * 4,
    (1, "d:0"): [rb"\boxed{ a}", rb"\boxed{}", rb"\boxed{", rb"\boxed{ an}"],
}


def record(step: int, name: str, sample: int, text: bytes) -> dict:
    task = next(p for p in PROBLEMS if p.id == name)
    answer = read(text, finish=Finish.STOP, tokens=len(text))
    return {
        "step": step, "problem": name, "sample": sample, "text": text.decode(errors="backslashreplace"),
        "bytes": base64.b64encode(text).decode(), "prompt_tokens": 9, "tokens": len(text), "finish": "stop",
        "status": answer.status.value, "prediction": base64.b64encode(answer.prediction).decode(),
        "thought": answer.thought, "outcome": outcome(answer, task).value,
        "reward": score_group(load_reward(load_config().reward), [answer], task)[0],
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with problems and samples."""
    write_problems(tmp_path / "problems" / "train.parquet", PROBLEMS[:2], {})
    write_problems(tmp_path / "problems" / "validation.parquet", PROBLEMS[2:], {})
    lines = [
        json.dumps(record(step, name, sample, text))
        for (step, name), texts in TEXTS.items()
        for sample, text in enumerate(texts)
    ]
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def rewards(path: Path) -> list[float | None]:
    return [record["reward"] for record in read_jsonl(path / "samples.jsonl")]


def test_the_same_reward_gives_the_same_numbers(run):
    path = run_rescore(load_config(None, [f"run={run}"]))
    assert path == run / "rescore" / "train-prefix_match"
    records = list(read_jsonl(path / "samples.jsonl"))
    assert rewards(path) == [1, 1, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    assert [r["reward_before"] for r in records] == rewards(path)
    before = list(read_jsonl(run / "train" / "samples.jsonl"))
    new = ("reward_before", "right_if_stripped")
    assert [{k: v for k, v in r.items() if k not in new} for r in records] == before


def test_another_reward_and_the_figures(run):
    path = run_rescore(load_config(None, [f"run={run}", "reward.name=first_token"]))
    assert rewards(path) == [0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]
    first, second = read_jsonl(path / "metrics.jsonl")
    assert first == {
        "step": 0, "completions": 8, "groups": 2, "reward": 1 / 8, "reward_before": 3 / 8, "right": 3 / 8,
        "wrong": 3 / 8, "missing": 2 / 8, "cut_off": 0.0, "all_right": 0.0, "all_wrong": 0.0, "signal": 0.5,
        "right_if_stripped": 1 / 8,
    }  # fmt: skip
    assert (second["all_right"], second["all_wrong"], second["signal"]) == (0.5, 0.5, 0.0)
    result = json.loads((path / "run.json").read_text())["result"]
    assert (result["completions"], result["groups"], result["reward"]) == (16, 4, 5 / 16)


def test_policy_scores_come_from_a_scorer(run):
    def scorer(task, answers, texts, fields):
        assert fields == {"first_token_probability"}
        assert [read(text, finish=Finish.STOP).prediction for text in texts] == [a.prediction for a in answers]
        return [PolicyScores(first_token_probability=len(a.prediction) / 10) for a in answers]

    settings = load_config(None, [f"run={run}", "reward.name=conditional_dense"])
    with pytest.raises(ForethinkError, match="first_token_probability"):
        run_rescore(settings)
    assert not (run / "rescore").exists()
    path = run_rescore(settings, scorer=scorer)
    assert rewards(path) == [1, 1, 0.3, 0, 1, 0.2, 0, 0.1, 1, 1, 1, 1, 0, 0, 0, 0]


def test_a_reward_file_and_a_length_budget(run, tmp_path):
    own = tmp_path / "own.py"
    own.write_text("def few(answer, problem, *, group):\n    return float(len(group))\n")
    settings = load_config(
        None, [f"run={run}", f"reward.name={own}:few", "reward.length_weight=0.5", "reward.length_budget=32"]
    )
    path = run_rescore(settings)
    assert path.name.endswith("own.py-few-length")
    assert rewards(path)[0] == 0.5 * 4 + 0.5 * (1 - len(TEXTS[0, "d:0"][0]) / 32)
    own.write_text("def few(answer, problem, *, group):\n    return 0.0\n")
    with pytest.raises(ForethinkError, match="another configuration"):
        run_rescore(settings)


def test_a_killed_run_is_made_again_and_a_finished_one_kept(run):
    settings = load_config(None, [f"run={run}"])
    path = run_rescore(settings)
    whole = {name: (path / name).read_bytes() for name in ("samples.jsonl", "metrics.jsonl")}
    state = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps({**state, "status": "running"}))
    (path / "samples.jsonl").write_bytes(whole["samples.jsonl"][:700])
    run_rescore(settings)
    assert {name: (path / name).read_bytes() for name in whole} == whole
    times = (path / "samples.jsonl").stat().st_mtime_ns
    run_rescore(settings)
    assert (path / "samples.jsonl").stat().st_mtime_ns == times


def test_a_problem_drawn_twice_in_a_step_makes_two_groups(run):
    texts = [rb"\boxed{ the}", rb"\boxed{ a}", rb"\boxed{ a}", rb"\boxed{ a}"]
    lines = [json.dumps(record(0, "d:0", i % 2, text)) for i, text in enumerate(texts)]
    (run / "train" / "samples.jsonl").write_text("\n".join(lines) + "\n")
    path = run_rescore(
        load_config(None, [f"run={run}", "reward.name=conditional_dense"]),
        scorer=lambda task, answers, texts, fields: [PolicyScores(first_token_probability=0.5)] * len(answers),
    )
    assert rewards(path) == [1.0, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"problem": "d:9"}, "line 1: no problem 'd:9'"),
        ({"status": "guessed"}, "line 1: not a sample"),
        ({"prediction": "%%%"}, "line 1: not a sample"),
        ({"tokens": None}, "line 1: not a sample"),
        ({"status": ...}, "line 1: no field 'status'"),
        ({"sample": ...}, "line 1: no field 'problem' or 'sample'"),
    ],
)
def test_lines_that_are_no_samples_are_named(run, change, words):
    line = {**record(0, "d:0", 0, rb"\boxed{ the}"), **change}
    line = {key: value for key, value in line.items() if value is not ...}
    (run / "train" / "samples.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ForethinkError, match=words):
        run_rescore(load_config(None, [f"run={run}"]))
    assert not (run / "rescore").exists()


def test_absent_and_empty_files_are_named(run):
    settings = load_config(None, [f"run={run}"])
    with pytest.raises(ForethinkError, match="no such file"):
        run_rescore(settings, samples=run / "absent.jsonl")
    with pytest.raises(ForethinkError, match="no such problems"):
        run_rescore(settings, problems=run / "absent")
    (run / "train" / "samples.jsonl").write_text("")
    with pytest.raises(ForethinkError, match="holds no sample"):
        run_rescore(settings)


def test_unscored_answers_are_left_out_of_the_mean():
    group = [
        {"outcome": "right", "reward": 1.0, "reward_before": 1.0, "right_if_stripped": False},
        {"outcome": "wrong", "reward": None, "reward_before": 0.0, "right_if_stripped": True},
    ]
    figures = summarise([group])
    assert (figures["reward"], figures["reward_before"], figures["signal"]) == (1.0, 0.5, 0.0)

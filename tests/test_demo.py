"""The demonstration: its corpus, what it chooses to show, and its stages on a tiny policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forethink import cli
from forethink.demo import quarters, telling_group, write_corpus


def test_the_corpus_is_cpythons_topics_shortest_first(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    path = tmp_path / "corpus.jsonl"
    count = write_corpus(path)
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert count == len(records) == len(topics)
    assert {record["topic"]: record["text"] for record in records} == topics
    lengths = [len(record["text"]) for record in records]
    assert lengths == sorted(lengths)
    stamp = path.stat().st_mtime_ns
    assert write_corpus(path) == count and path.stat().st_mtime_ns == stamp  # a second run finds the same file


def test_quarters_are_means_of_the_first_and_the_last() -> None:
    assert quarters({"reward": value} for value in (0.0, 0.2, 9.0, 9.0, 9.0, 9.0, 0.4, 0.8)) == (
        0.1,
        pytest.approx(0.6),
    )
    assert quarters([{"reward": 1.0}] * 3) is None
    assert quarters([{"reward": None}, *[{"reward": 0.5}] * 4]) == (0.5, 0.5)


def sample(step: int, problem: str, right: bool) -> dict[str, Any]:
    return {"step": step, "problem": problem, "outcome": "right" if right else "wrong"}


@pytest.mark.parametrize(("groups", "shown"), [
    ([(1, "a", "rrww"), (2, "b", "rwww")], "a"),  # half and half tells most
    ([(1, "a", "rrww"), (2, "b", "wrwr")], "b"),  # the later of two
    ([(1, "a", "rrrr"), (2, "b", "rwww"), (3, "c", "wwww")], "b"),
    ([(1, "a", "rrrr"), (3, "c", "wwww")], "c"),  # none with a signal: the last
])  # fmt: skip
def test_the_group_shown_holds_right_and_wrong_answers(groups: list[tuple[int, str, str]], shown: str) -> None:
    samples = [sample(step, problem, letter == "r") for step, problem, letters in groups for letter in letters]
    group = telling_group(samples)
    assert {record["problem"] for record in group} == {shown} and len(group) == 4


def test_no_sample_shows_no_group() -> None:
    assert telling_group([]) == []


def test_the_stages_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_llama, smollm2_tokenizer
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_llama.save_pretrained("policy")
    smollm2_tokenizer.save_pretrained("policy")
    command = [
        "demo", "--run", "d", "--model", "policy", "model.dtype=float32", "model.device=cpu", "corpus.limit=8",
        "problems.per_document=3", "problems.max_context=32", "rollout.group=2", "rollout.max_tokens=4",
        "warmup.skip_box_rate=0", "warmup.probe_positions=2", "train.steps=4", "train.problems=2", "train.refill=0",
        "train.precision=fp32", "eval.positions=4", "eval.bootstrap=100",
    ]  # fmt: skip
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    rows = ("held-out positions, the same in every row", "after warm start", "after RPT")
    for part in ("1/7 score", "7/7 eval", *rows, "first quarter of steps", "One position", "true text", "look next"):
        assert part in out, part
    assert not Path("d/warmup/model").exists()  # skipped, so the policy itself stands in the middle row
    assert cli.main(command) == 0  # finished stages are kept: only the report is printed again
    assert "held-out positions, the same in every row" in capsys.readouterr().out

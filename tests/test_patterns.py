"""Reasoning patterns and the collapse watch against shares counted by hand."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import pytest

from forethink import cli
from forethink.patterns import (
    KEYWORDS,
    collapse_watch,
    count_patterns,
    diversity,
    groups_in,
    pattern_table,
    samples_of,
)
from forethink.types import ForethinkError


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("Alternatively, it ends here.", {"transition"}),
        ("Let me THINK\n differently.", {"transition"}),
        ("Wait, the initial answer was 3", {"reflection"}),
        ("he awaits; waiting, waiter", set()),
        ("Let us break this down, or break\tdown", {"breakdown"}),
        ("It is probably something like x", {"hypothesis"}),
        ("improbably so", set()),
        ("a, b, etc. follow", {"divergent"}),
        ("sketch. fetc.", set()),
        ("neither option", set()),
        ("either one; Finally, we conclude", {"divergent", "deduction"}),
        ("concluded conclusions", set()),
        ("wait_for(1) wait2", {"reflection"}),
        ("", set()),
    ],
)
def test_a_response_shows_the_groups_of_its_keywords(text: str, groups: set[str]) -> None:
    assert groups_in(text) == groups


def write(folder: Path, texts: list[str], steps: list[int] | None = None) -> Path:
    """A log of responses: two to a document, the text being the thought."""
    folder.mkdir(parents=True)
    lines = [
        {"step": 0 if steps is None else steps[i], "problem": f"d{i // 2}:7", "text": text, "thought": text}
        for i, text in enumerate(texts)
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "samples.jsonl"


BEFORE = ["wait", "probably", "wait, finally", "none", "none", "none", "none", "none"]
AFTER = ["probably", "probably wait", "something like", "options", "finally", "finally", "none", "none"]


def test_shares_and_changes_are_those_counted_by_hand(tmp_path: Path) -> None:
    files = [write(tmp_path / "before", BEFORE), write(tmp_path / "after", AFTER)]
    first, second = pattern_table([count_patterns(file) for file in files])
    assert {name: one["count"] for name, one in first["groups"].items()} == {
        "transition": 0, "reflection": 2, "breakdown": 0, "hypothesis": 1, "divergent": 0, "deduction": 1,
    }  # fmt: skip
    assert first["responses"] == second["responses"] == 8 and first["documents"] == 4
    assert first["groups"]["reflection"]["value"] == 0.25
    # Wilson for 2 of 8: centre (0.25 + z²/16) / (1 + z²/8), half width z·sqrt(0.25·0.75/8 + z²/256) / (1 + z²/8)
    assert first["groups"]["reflection"]["wilson"] == pytest.approx([0.0715, 0.5907], abs=1e-3)
    assert second["groups"]["hypothesis"]["change"] == pytest.approx(2.0)  # 1 of 8 → 3 of 8
    assert second["groups"]["reflection"]["change"] == pytest.approx(-0.5)
    assert second["groups"]["deduction"]["change"] == pytest.approx(1.0)
    assert second["groups"]["divergent"]["change"] is None  # from nothing
    assert first["groups"]["hypothesis"]["change"] is None  # the reference itself


def test_the_bootstrap_takes_documents_whole(tmp_path: Path) -> None:
    alike = ["wait"] * 2 + ["none"] * 2  # both responses of a document agree
    apart = ["wait", "none"] * 2  # every document has the same share
    rows = [
        pattern_table([count_patterns(write(tmp_path / name, texts))])[0]["groups"]["reflection"]
        for name, texts in (("alike", alike), ("apart", apart))
    ]
    assert rows[0]["wilson"] == rows[1]["wilson"]
    assert rows[0]["bootstrap"] == [0.0, 1.0]
    assert rows[1]["bootstrap"] == [0.5, 0.5]


def test_next_token_reasoning_against_problem_solving_by_hand(tmp_path: Path) -> None:
    """Questions solved are the reference; every document and question has the same share, so no draw changes it."""
    solved = ["let us break down", "finally", "finally, probably", "break this down, finally"] * 3
    questions = [
        {"problem": f"chain_sum:0:{i // 4}", "text": text, "thought": text, "step": 0} for i, text in enumerate(solved)
    ]
    (tmp_path / "solve").mkdir()
    log = tmp_path / "solve" / "samples.jsonl"
    log.write_text("".join(json.dumps(line) + "\n" for line in questions))
    thoughts = ["probably", "something like this, finally"] * 4  # two to a document
    reasoning = count_patterns(write(tmp_path / "predict", thoughts))
    first, second = pattern_table([count_patterns(log), reasoning])
    assert (first["responses"], first["documents"]) == (12, 3)  # three questions of one task, not one document
    assert (second["responses"], second["documents"]) == (8, 4)
    shares = {name: (first["groups"][name]["value"], second["groups"][name]["value"]) for name in KEYWORDS}
    assert shares == {
        "transition": (0, 0), "reflection": (0, 0), "breakdown": (0.5, 0), "hypothesis": (0.25, 1),
        "divergent": (0, 0), "deduction": (0.75, 0.5),
    }  # fmt: skip
    groups = second["groups"]
    changes = {name: groups[name]["change"] for name in ("hypothesis", "deduction", "breakdown")}
    assert changes == pytest.approx({"hypothesis": 3.0, "deduction": -1 / 3, "breakdown": -1.0})
    assert groups["hypothesis"]["change_interval"] == pytest.approx([3.0, 3.0])
    assert groups["deduction"]["change_interval"] == pytest.approx([-1 / 3, -1 / 3])
    assert groups["transition"]["change"] is None and groups["transition"]["change_interval"] is None


def test_diversity_is_counted_by_hand() -> None:
    found = diversity(["a b c\nx", "a b c", "a b d", "", " \n"])
    assert found["thoughts"] == 3 and found["empty"] == 2
    # words: a b c x a b c a b d; pairs: ab bc cx ab bc ab bd; triples: abc bcx abc abd
    assert found["distinct"] == {"1": 5 / 10, "2": 4 / 7, "3": 3 / 4}
    assert found["distinct_thoughts"] == 1.0
    assert found["openings"][0] == {"line": "a b c", "share": 2 / 3}
    raw = b"a b c\nx\na b c\na b d"
    assert found["compression"] == len(raw) / len(zlib.compress(raw, 9))
    assert diversity([])["compression"] is None


def test_the_watch_sees_thoughts_become_one(tmp_path: Path) -> None:
    varied = [f"thought number {i} goes its {i * i} own way" for i in range(40)]
    file = write(tmp_path / "train", varied + ["the same words again"] * 60, [1] * 20 + [2] * 20 + [3] * 30 + [4] * 30)
    windows = collapse_watch(file, windows=4)
    assert [(one["from"], one["to"], one["responses"]) for one in windows] == [(1, 1, 20), (2, 2, 20), (3, 3, 30),
                                                                              (4, 4, 30)]  # fmt: skip
    assert {one["thoughts"] for one in windows} == {20}  # equal numbers, so that the figures compare
    assert windows[0]["distinct_thoughts"] == 1.0 and windows[3]["distinct_thoughts"] == 1 / 20
    assert windows[3]["compression"] > 2 * windows[0]["compression"]
    assert windows[3]["openings"] == [{"line": "the same words again", "share": 1.0}]
    assert [(one["from"], one["to"]) for one in collapse_watch(file, windows=2)] == [(1, 2), (3, 4)]


def test_a_run_stands_for_its_training_and_evaluations(tmp_path: Path) -> None:
    for name in ("after", "train", "before"):
        write(tmp_path / "run" / name, ["x"])
    found = [file.parent.name for file in samples_of(tmp_path / "run")]
    assert found == ["train", "after", "before"]
    assert samples_of(tmp_path / "run" / "after") == [tmp_path / "run" / "after" / "samples.jsonl"]
    with pytest.raises(ForethinkError, match=r"holds no samples\.jsonl"):
        samples_of(tmp_path)


def test_the_command_writes_patterns_json_and_prints_hostile_text_harmlessly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = "\x1b[2J[bold]x[/nonsense] \u202e\x00 wait"
    write(tmp_path / "run" / "train", [hostile] * 4, [1, 1, 2, 2])
    assert cli.main(["patterns", str(tmp_path / "run"), "--out", str(tmp_path / "p.json")]) == 0
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed and "\u202e" not in printed and "[bold]" in printed
    result = json.loads((tmp_path / "p.json").read_text())
    assert result["rows"][0]["groups"]["reflection"]["count"] == 4
    assert len(result["watch"][0]["windows"]) == 2


def test_a_log_without_responses_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ForethinkError, match="no response"):
        count_patterns(write(tmp_path / "empty", []))
    (tmp_path / "other.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ForethinkError, match="line 1 is no response"):
        count_patterns(tmp_path / "other.jsonl")

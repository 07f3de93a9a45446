"""Runs side by side: shares, quarters and paired intervals that were computed by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forethink import cli
from forethink.compare import compare_runs, places, quarters, reward_words
from forethink.evaluate.tables import tabulate
from forethink.sheets import notes, to_markdown
from forethink.types import ForethinkError

Record = dict[str, Any]


def write_eval(folder: Path, right: list[int], model: str, plain: list[bool] | None = None, **other: Any) -> Path:
    """A finished evaluation: two positions a document, two samples a position, ``right`` of them right."""
    folder.mkdir(parents=True)
    positions = [
        {"problem": f"d{i // 2}:{i}", "document": f"d{i // 2}", "entropy": 1.0, "splits": ["above 0.5"],
         "band": "> 0.5", "plain": plain[i] if plain else False, "samples": 2, "right": r, "wrong": 2 - r,
         "missing": 0, "cut_off": 0, "boxed": 2, "agree": 0, "stripped": 0, "tokens": 20, "inexpressible": None}
        for i, r in enumerate(right)
    ]  # fmt: skip
    (folder / "positions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in positions))
    result = {
        "model": {"name": model, "adapter": None}, "thresholds": [0.5], "samples": 2, "template": "v0",
        "temperature": 0.8, "max_tokens": 48, "per_split": False, "perplexity": 3.0,
        "rows": tabulate(positions, [0.5], 2, 500, 0),
    }  # fmt: skip
    (folder / "eval.json").write_text(json.dumps(result | other))
    (folder / "run.json").write_text(json.dumps({"stage": "eval", "created": other.get("created", "2026-01-01")}))
    return folder


def write_run(run: Path, right: list[int], reward: Record | None = None, **other: Any) -> Path:
    """Eight steps of training with known figures, its problems, and the evaluation ``after`` of its model."""
    train = run / "train"
    train.mkdir(parents=True)
    settings = {
        "reward": {"name": "prefix_match", "length_weight": 0.0, "length_budget": 48} | (reward or {}),
        "train": {"ntp_weight": 0.0}, "template": {"name": "v0"},
    }  # fmt: skip
    inputs = {str(run / "problems" / "train.parquet"): "0"}
    (train / "run.json").write_text(json.dumps({"stage": "train", "settings": settings, "inputs": inputs}))
    lines = [
        {"step": s, "flops/total": s * 1e12, "tokens/generated": 100 * s, "tokens/update": 10 * s, "seconds": 2.0 * s,
         "reward": s / 10, "accuracy": 0.1, "boxed": 0.5 + s / 20, "groups/degenerate": 0.8 - s / 20,
         "thought_characters": 10.0 * s}
        for s in range(1, 9)
    ]  # fmt: skip
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "problems").mkdir()
    selected = {"settings": {"problems": {"selector": "threshold", "threshold": 0.5}}}
    (run / "problems" / "run.json").write_text(json.dumps(selected))
    write_eval(run / "after", right, str(train / "model"), **other)
    return run


def difference(result: Record, label: str, metric: str = "reasoning") -> Record:
    row = next(row for row in result["runs"] if row["label"] == label)
    return dict(row["against"][0][metric])


def test_paired_intervals_are_those_computed_by_hand(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", [0, 0, 1, 1])
    alike = write_run(
        tmp_path / "alike", [1, 1, 2, 2]
    )  # every position half better: no draw of documents changes that
    apart = write_run(tmp_path / "apart", [0, 0, 2, 2], plain=[True] * 4)
    gone = write_run(tmp_path / "gone", [2, 2, 1, 1])
    result = compare_runs([base, alike, apart, gone], resamples=4000)
    assert result["baseline"] == "base" and result["runs"][0]["against"] is None
    assert difference(result, "alike") == {"ours": 0.75, "theirs": 0.25, "difference": 0.5, "interval": [0.5, 0.5]}
    # Documents differ by 0 and by 1/2. Two drawn of two: 0, 1/4, 1/2 with probabilities 1/4, 1/2, 1/4, so that 2.5 %
    # and 97.5 % lie at the ends.
    assert difference(result, "apart") == {"ours": 0.5, "theirs": 0.25, "difference": 0.25, "interval": [0.0, 0.5]}
    assert difference(result, "apart", "plain")["interval"] == [1.0, 1.0]  # right everywhere against nowhere
    # Its reasoning, right in every reply of one document and in none of the other, less a plain accuracy of nought.
    less = difference(result, "apart", "reasoning_less_plain")
    assert less == {"ours": 0.5, "theirs": 0.0, "difference": 0.5, "interval": [0.0, 1.0]}
    assert difference(result, "gone")["interval"] == [0.0, 1.0] and difference(result, "gone")["difference"] == 0.5


def test_an_interval_inside_its_ends(tmp_path: Path) -> None:
    """Six documents, one of them better by 1: k ~ Binomial(6, 1/6) of six draws take it, the difference is k / 6."""
    base = write_run(tmp_path / "base", [0] * 12)
    one = write_run(tmp_path / "one", [2, 2, *[0] * 10])
    # P(k ≤ 2) = 0.9377 and P(k ≤ 3) = 0.9913: the 97.5 % quantile is 3/6; P(k = 0) = 0.335: the 2.5 % quantile is 0.
    assert difference(compare_runs([base, one], resamples=4000), "one")["interval"] == [0.0, 0.5]
    turned = compare_runs([base, one], baseline=one, resamples=4000)
    assert turned["baseline"] == "one" and difference(turned, "base")["interval"] == [-0.5, 0.0]


def test_what_a_run_was_and_what_it_took(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", [0, 0, 1, 1])
    mixed = write_run(tmp_path / "mixed", [1, 1, 2, 2], {"name": "dense", "length_weight": 0.25})
    first, second = compare_runs([base, mixed])["runs"]
    assert (first["reward"], first["selector"], first["template"]) == ("prefix_match", "threshold 0.5", "v0")
    assert second["reward"] == "0.75·dense + 0.25·length(48)"
    assert first["step"] == 8 and first["spent"] == {"flops": 8e12, "tokens": 880.0, "seconds": 16.0}
    # Quarters of eight steps: steps 1 and 2, steps 7 and 8.
    assert first["watched"]["groups/degenerate"] == pytest.approx({"first": 0.725, "last": 0.425})
    assert first["watched"]["thought_characters"] == {"first": 15.0, "last": 75.0}
    assert first["watched"]["boxed"] == pytest.approx({"first": 0.575, "last": 0.875})
    nested = first["accuracy"][0]
    assert (nested["split"], nested["positions"], nested["documents"]) == ("above 0.5", 4, 2)
    assert nested["reasoning"]["value"] == 0.25 and nested["reasoning"]["bootstrap"] == [0.0, 0.5]  # 0 and 1/2
    assert nested["box"]["value"] == 1.0


def test_quarters_by_hand() -> None:
    lines = [{"x": float(i)} for i in range(1, 10)]  # nine steps: two a quarter
    assert quarters(lines, "x") == {"first": 1.5, "last": 8.5}
    assert quarters(lines[:3], "x") == {"first": 1.0, "last": 3.0}
    assert quarters([{"x": 1.0}, {"x": float("nan")}, {}], "x") == {"first": 1.0, "last": 1.0}
    assert quarters(lines, "y") is None


def test_rewards_in_words() -> None:
    assert (
        reward_words({"reward": {"name": "semantic"}, "train": {"ntp_weight": 0.1}}, "train") == "semantic + 0.1·NTP"
    )
    assert reward_words({}, "ntp") == "ntp"


def test_a_checkpoint_counts_what_was_taken_up_to_it(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [0, 0, 1, 1])
    write_eval(run / "half", [0, 0, 1, 1], str(run / "train" / "checkpoint-4"))
    row = compare_runs([run / "half"])["runs"][0]
    assert row["step"] == 4 and row["spent"]["flops"] == 4e12
    assert row["watched"]["thought_characters"] == {"first": 10.0, "last": 40.0}


def test_a_folder_of_a_run_or_of_an_evaluation(tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", [0, 0, 1, 1]), write_run(tmp_path / "b", [1, 1, 1, 1])
    write_eval(a / "before", [0, 0, 0, 0], "smollm2", created="2026-02-02")
    found = places([a, b, a / "before"], None)
    assert [place.evaluation for place in found] == [a / "after", b / "after", a / "before"]  # most have "after"
    write_eval(b / "before", [0, 0, 0, 0], "smollm2", created="2026-02-02")
    assert [place.evaluation for place in places([a, b], None)] == [a / "before", b / "before"]  # the newest of two
    assert [place.evaluation for place in places([a, b], "after")] == [a / "after", b / "after"]
    rows = compare_runs([a / "after", a / "before"])["runs"]
    assert [row["label"] for row in rows] == ["after", "before"]
    assert rows[0]["untrained"] is None and rows[1]["reward"] is None
    assert rows[1]["untrained"] == "smollm2 is no checkpoint of a training run"


def test_runs_that_cannot_be_paired_say_why(tmp_path: Path) -> None:
    base = write_run(tmp_path / "base", [0, 0, 1, 1])
    fewer = write_run(tmp_path / "fewer", [0, 0])
    other = write_run(tmp_path / "other", [0, 0, 1, 1], max_tokens=64)
    bare = write_run(tmp_path / "bare", [0, 0, 1, 1])
    (bare / "after").rename(bare / "elsewhere")
    result = compare_runs([base, fewer, other, bare], name="after")
    told = {row["label"]: row for row in result["runs"]}
    assert told["fewer"]["against"] is None and "evaluated on other positions" in told["fewer"]["notes"][0]
    assert told["other"]["notes"] == ["asked with max_tokens=64, the baseline with 48"]
    assert told["other"]["against"] is not None
    assert told["bare"]["notes"] == [f"not paired: {bare} has no evaluation 'after' (it has elsewhere)"]
    assert told["bare"]["accuracy"] == [] and told["bare"]["step"] == 8  # its training is shown all the same
    assert len(notes(result)) == 3


def test_the_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_run(tmp_path / "runs" / "base", [0, 0, 1, 1])
    better = write_run(tmp_path / "runs" / "a|b*[bold]", [1, 1, 2, 2])
    out, page = tmp_path / "c.json", tmp_path / "c.md"
    assert cli.main(["compare", str(base), str(better), "--out", str(out), "--markdown", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "+50.0 (+50.0 … +50.0)" in printed and "threshold 0.5" in printed and "a|b*[bold]" in printed
    result = json.loads(out.read_text())
    assert difference(result, "a|b*[bold]")["interval"] == [0.5, 0.5]
    # Plain: 0 of 4, Wilson up to z² / (4 + z²) = 0.490. Reasoning: documents of 1/2 and of 1.
    cells = [r"a\|b\*\[bold\]", "4", "0.0 (0.0 … 49.0)", "75.0 (50.0 … 100.0)", "100.0"]
    cells += ["+0.0 (+0.0 … +0.0)", "+50.0 (+50.0 … +50.0)"]
    assert f"| above 0.5 | {' | '.join(cells)} |" in page.read_text().splitlines()
    assert page.read_text() == to_markdown(result)
    assert cli.main(["compare", str(base), str(better)]) == 0
    assert (base / "compare.json").is_file()


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", [0, 0, 1, 1])
    for arguments, words in (
        ([str(tmp_path / "absent")], "no such run"),
        ([str(run / "train")], "no finished evaluation"),
        ([str(run), str(run)], "named twice"),
        ([str(run), "--resamples", "5"], "at least 100"),
        ([str(run), "--baseline", str(tmp_path / "absent")], "no such run"),
    ):
        assert cli.main(["compare", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    with pytest.raises(ForethinkError, match="cannot be read"):
        (run / "after" / "eval.json").write_text("{")
        compare_runs([run])

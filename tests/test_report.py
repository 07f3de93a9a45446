"""The report: what it gathers from run folders, how it samples, and that nothing a model wrote becomes markup."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from forethink.config import load_config
from forethink.paired import compare
from forethink.records import write_problems, write_scored
from forethink.report.collect import collect, curves
from forethink.report.command import add_report, run_report
from forethink.report.documents import token_texts
from forethink.report.figures import write_figures
from forethink.report.markdown import markdown
from forethink.report.page import embed, render, visible
from forethink.report.samples import completion
from forethink.rundir import RunDir, write_atomic
from forethink.types import ForethinkError, Problem, ScoredDocument
from report_run import STEPS, write_large

HOSTILE = {
    "markup": '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script><!--',
    "bidi": "safe \u202egnihton\u202c \u2066x\u2069 \u200b|\ufeff \u2028 \u2029",
    "nul": "a\x00b\x07c\x1b[31md\x7f",
    "surrogates": "lone \ud800 and \udfff swapped \udc00\ud800",
    "long": "x" * 100_000,
}
WORDS = ["The", " sum", " of", " é", " and", " <b>", " is", " x", ".", "\n"]


def scored(name: str, words: Sequence[str] = WORDS) -> ScoredDocument:
    """A document whose é is cut between two tokens."""
    pieces = [piece for word in words for piece in ([b" \xc3", b"\xa9"] if word == " é" else [word.encode()])]
    ends = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces))]
    entropy = [float("nan"), *(0.4 * i for i in range(1, len(pieces)))]
    ids = [hash_id(piece) for piece in pieces]
    return ScoredDocument(
        name, b"".join(pieces), ids, ends, entropy, entropy, entropy, [-1, *ids[1:]],
        [float("nan"), *(-0.5 for _ in ids[1:])], [True] + [False] * (len(ids) - 1),
    )  # fmt: skip


def hash_id(piece: bytes) -> int:
    return int.from_bytes(hashlib.sha256(piece).digest()[:2])


def problem(document: ScoredDocument, index: int, split: str) -> Problem:
    start = document.byte_ends[index - 1]
    ends = tuple(end - start for end in document.byte_ends[index:])
    ids = document.token_ids
    return Problem(
        f"{document.id}:{index}", document.id, index, split, document.text[:start], tuple(ids[:index]),
        document.text[start:], tuple(ids[index:]), ends, 1.2, 1.1, 2.2, -0.7, b" arg",
    )  # fmt: skip


def sample(name: str, number: int, text: str | bytes, outcome: str = "wrong", step: int = 0) -> dict[str, Any]:
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return {
        "step": step, "problem": name, "sample": number, "text": data.decode("utf-8", "backslashreplace"),
        "bytes": base64.b64encode(data).decode(), "prompt_tokens": 9, "tokens": 7, "finish": "stop",
        "status": "boxed", "prediction": base64.b64encode(b" sum").decode(),
        "thought": data.decode("utf-8", "replace").split("\\boxed")[0], "outcome": outcome,
        "reward": float(outcome == "right"),
    }  # fmt: skip


def share(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "wilson": [low, high], "bootstrap": None}


def row(split: str, kind: str, plain: float, reasoning: float) -> dict[str, Any]:
    return {
        "split": split, "kind": kind, "above": 0.5, "up_to": None, "positions": 40, "documents": 4,
        "plain": share(plain, plain - 0.1, plain + 0.1),
        "reasoning": share(reasoning, reasoning - 0.1, reasoning + 0.1),
        "box": share(0.9, 0.8, 0.95), "agree": share(0.3, 0.2, 0.4), "pass_at": {"1": share(0.3, 0.2, 0.4)},
        "outcomes": {"right": 0.3, "wrong": 0.6, "missing": 0.1, "cut_off": 0.0}, "completion_tokens": 21.5,
    }  # fmt: skip


def stage(top: Path, name: str, kind: str, *, done: bool = True, warnings: Sequence[str] = ()) -> Path:
    run = RunDir(top / name, kind, load_config(None, [f"run={top}"]), ("corpus", "model"), {"corpus.jsonl": "ab" * 32})
    run.dropped({"duplicate": 2})
    for warning in warnings:
        run.warn(warning)
    if done:
        run.finish({"documents": 2})
    return run.path


def write_run(top: Path, extra: Sequence[str | bytes] = (), warnings: Sequence[str] = ()) -> Path:
    """A small run in the stages' real formats: two documents, two evaluations, a training run still going."""
    documents = [scored("d0"), scored("d1", [*WORDS[:-1], "!"])]
    write_scored(stage(top, "score", "score") / "shards" / "00000.parquet", documents, {"proxy": "tiny"})
    folder = stage(top, "problems", "problems")
    write_problems(folder / "validation.parquet", [problem(documents[0], i, "validation") for i in (1, 4, 6)], {})
    write_problems(folder / "train.parquet", [problem(documents[1], i, "train") for i in (2, 7)], {})
    for name, right in (("eval-start", 0.2), ("eval-trained", 0.4)):
        place = stage(top, name, "eval")
        texts = [f"{name} says\nthen \\boxed{{ sum}}", *(extra if name == "eval-trained" else ())]
        samples = [sample("d0:1", i, text, "right" if i == 0 else "wrong") for i, text in enumerate(texts)]
        write_atomic(place / "samples.jsonl", "".join(json.dumps(s) + "\n" for s in samples))
        position = {"problem": "d0:1", "plain": False, "argmax": base64.b64encode(b" it").decode(), "logprob": -1.0}
        write_atomic(place / "positions.jsonl", json.dumps(position) + "\n")
        rows = [row("easy", "nested", 0.5, right), row("0.5–1.0", "disjoint", 0.6, right)]
        result = {
            "model": {"name": f"runs/{name}", "adapter": None}, "problems": {"file": ""}, "template": "v0",
            "temperature": 0.8, "samples": len(texts), "documents": 1, "perplexity": 9.5, "rows": rows, "against": [],
        }  # fmt: skip
        write_atomic(place / "eval.json", json.dumps(result))
    train = stage(top, "train", "train", done=False, warnings=warnings)
    metrics = [
        {"step": i, "reward": i / 40, "accuracy": i / 40, "outcome/right": i / 40, "outcome/wrong": 1 - i / 40,
         "outcome/missing": 0.0, "outcome/cut_off": 0.0, "groups/degenerate": 0.5, "groups/all_right": 0.2,
         "groups/all_wrong": 0.3, "thought_characters": 40 + i, "entropy": 0.2, "tokens/generated": 100 * i,
         "tokens/update": 80 * i, "flops/total": 1e12 * i, "flops/rollout": 5e11 * i, "flops/update": 5e11 * i,
         "step_seconds": 2.0, "seconds": 2.0 * i, "loss": float("nan")}
        for i in range(1, 21)
    ]  # fmt: skip
    write_atomic(train / "metrics.jsonl", "".join(json.dumps(m) + "\n" for m in metrics))
    samples = [sample("d1:2", i, f"train {i} \\boxed{{ sum}}", step=3) for i in range(4)]
    write_atomic(train / "samples.jsonl", "".join(json.dumps(s) + "\n" for s in samples))
    return top


class Tags(HTMLParser):
    """The page as a parser sees it: its elements with attributes, and the JSON in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[int, str] = {}
        self.open = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = True

    def handle_endtag(self, tag: str) -> None:
        self.open = False

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside[len(self.tags) - 1] = self.inside.get(len(self.tags) - 1, "") + data

    def body(self, tag: str) -> list[str]:
        return [self.inside[i] for i, (name, _) in enumerate(self.tags) if name == tag]


def data_of(page: str) -> Any:
    tags = Tags(page)
    place = next(i for i, (_, attributes) in enumerate(tags.tags) if attributes.get("id") == "data")
    return json.loads(tags.inside[place])


def test_documents_positions_and_completions_are_gathered(tmp_path: Path) -> None:
    data = collect([write_run(tmp_path / "run")])
    assert data["runs"] == ["run"]
    assert data["sources"] == [
        {"label": "eval-start", "kind": "eval"},
        {"label": "eval-trained", "kind": "eval"},
        {"label": "train", "kind": "train"},
    ]  # fmt: skip
    held = next(one for one in data["documents"] if one["id"] == "d0")
    assert held["tokens"][:6] == ["The", " sum", " of", " ", "é", " and"]
    assert held["entropy"][:2] == [None, 0.4] and held["argmax"][0] is None and held["argmax"][1] == " sum"
    first = held["positions"][0]
    assert (first["token"], first["from"], first["split"], first["argmax"]) == (1, 0, "validation", " arg")
    assert "".join(first["target"]) == "".join(held["tokens"][1:])
    assert first["completions"]["0"][0]["answer"] == " sum"
    assert first["completions"]["1"][0]["text"].startswith("eval-trained says")
    assert first["plain"]["0"] == {"right": False, "argmax": " it", "logprob": -1.0}
    trained = next(one for one in data["documents"] if one["id"] == "d1")
    assert [c["step"] for c in trained["positions"][0]["completions"]["2"]] == [3] * 4
    assert data["notes"] == []


def test_stages_bring_their_configuration_and_warnings(tmp_path: Path) -> None:
    data = collect([write_run(tmp_path / "run", warnings=["90% of groups give no gradient"])])
    by_name = {one["name"]: one for one in data["stages"]}
    assert set(by_name) == {"score", "problems", "eval-start", "eval-trained", "train"}
    assert (
        by_name["train"]["warnings"] == ["90% of groups give no gradient"] and by_name["train"]["status"] == "running"
    )
    assert by_name["score"]["inputs"] == {"corpus.jsonl": "ab" * 32}
    assert by_name["score"]["dropped"] == {"duplicate": 2}
    assert "forethink" in by_name["score"]["versions"] and "[corpus]" in by_name["score"]["config"]


def test_tokens_cut_inside_a_character() -> None:
    text = "a€b".encode() + b"\xff"
    assert token_texts(text, [1, 2, 4, 5, 6]) == ["a", "", "€", "b", "\udcff"]
    assert token_texts(text, [4, 5], 1) == ["€", "b"]


def test_a_thought_is_a_part_of_its_completion() -> None:
    made = completion(sample("d:1", 0, "so it goes \\boxed{ sum}"))
    assert made["thought"] == [0, 11] and made["answer"] == " sum" and "cut" not in made
    made = completion(sample("d:1", 0, b"\xc3 then \\boxed{x}"))
    assert made["text"].startswith("\udcc3 then") and made["thought"] == "\ufffd then "
    made = completion(sample("d:1", 0, "y" * 5000), limit=1000)
    assert len(made["text"]) == 1000 and made["cut"] == 4000


def test_long_logs_are_drawn_with_few_points(tmp_path: Path) -> None:
    lines = [{"step": i, "reward": i % 2, "seconds": float(i)} for i in range(1, 2001)]
    write_atomic(tmp_path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    drawn = curves(tmp_path)
    assert drawn is not None and drawn["every"] == 4 and len(drawn["steps"]) == 500
    assert set(drawn["columns"]["reward"]) == {0.5}  # the mean of four steps
    assert drawn["columns"]["seconds"][:2] == [4.0, 8.0]  # the last of them


def test_a_small_budget_samples_and_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", extra=["z" * 100_000])
    data = collect([run], budget=30_000)
    assert any(note.startswith("1 very long completions are cut") for note in data["notes"])
    assert len(json.dumps(data["documents"])) <= 30_100
    data = collect([run], budget=4_000)
    assert any(note.startswith("Documents are sampled: ") for note in data["notes"])


def test_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    data = collect(runs)
    assert data["runs"] == ["a/run", "b/run"]
    assert [one["title"] for one in data["evaluations"]][:2] == ["a/run/eval-start", "a/run/eval-trained"]
    held = next(one for one in data["documents"] if one["id"] == "d0")
    assert len(held["positions"][0]["completions"]) == 4


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with pytest.raises(ForethinkError, match="no run folder"):
        collect([tmp_path / "absent"])
    with pytest.raises(ForethinkError, match="one stage"):
        collect([run / "train"])
    with pytest.raises(ForethinkError, match="named twice"):
        collect([run, run])
    (run / "eval-start" / "eval.json").write_text("{")
    with pytest.raises(ForethinkError, match=r"eval\.json: cannot be read"):
        collect([run])


def test_the_page_admits_its_own_style_and_script_only(tmp_path: Path) -> None:
    page = render(collect([write_run(tmp_path / "run")]))
    tags = Tags(page)
    policy = next(a["content"] for _, a in tags.tags if a.get("http-equiv") == "Content-Security-Policy") or ""
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for text in (tags.body("style")[0], tags.body("script")[-1]):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" in policy
    assert {name for name, _ in tags.tags} <= {
        "html", "head", "meta", "title", "style", "body", "header", "div", "h1", "nav", "button", "noscript", "p",
        "main", "script",
    }  # fmt: skip
    for _, attributes in tags.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href", "style")}
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|fetch\(", tags.body("script")[-1]
    )


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_completions_stay_data(tmp_path: Path, kind: str) -> None:
    text = HOSTILE[kind]
    plain = Tags(render(collect([write_run(tmp_path / "plain")])))
    warnings = [] if kind == "surrogates" else [text[:200]]  # run.json is UTF-8, which has no lone surrogates
    page = render(collect([write_run(tmp_path / "run", extra=[text + "\\boxed{ sum}"], warnings=warnings)]))
    page.encode("utf-8")  # no lone surrogate is left in the file
    assert [name for name, _ in Tags(page).tags] == [name for name, _ in plain.tags]
    data = data_of(page)
    held = next(one for one in data["documents"] if one["id"] == "d0")
    raw = (text + "\\boxed{ sum}").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
    assert held["positions"][0]["completions"]["1"][1]["text"] == raw
    assert next(one for one in data["stages"] if one["name"] == "train")["warnings"] == warnings


def test_a_run_may_have_any_name(tmp_path: Path) -> None:
    page = render(collect([write_run(tmp_path / "<b>{{data}}&\u202e")]))
    tags = Tags(page)
    assert tags.body("title")[0].startswith("<b>{{data}}&⟨U+202E⟩")
    assert "b" not in {name for name, _ in tags.tags}


def test_embedded_json_is_ascii_and_finite() -> None:
    text = embed({"a": [float("nan"), float("inf"), 1.5], "<": "</script>&\u2028\u2029\ud800"})
    assert text.isascii() and not set(text) & set("<>&")
    assert json.loads(text) == {"a": [None, None, 1.5], "<": "</script>&\u2028\u2029\ud800"}


def test_markdown_shows_figures_and_no_markup(tmp_path: Path) -> None:
    text = markdown(collect([write_run(tmp_path / "run", warnings=["<img src=x> | `a` \u202e"])]))
    assert "| easy | eval-trained | 40 | 50.0 (40.0 … 60.0) | 40.0 (30.0 … 50.0) | 90.0 (80.0 … 95.0) |" in text
    assert "| reward | 0.075 | 0.45 |" in text
    assert "&lt;img src=x&gt; \\| \\`a\\` ⟨U+202E⟩" in text
    assert visible("a\x00b") == "a⟨U+0000⟩b"


def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    parser = argparse.ArgumentParser()
    add_report(parser)
    run_report(parser.parse_args([str(run), "--markdown", str(tmp_path / "r.md")]))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and (tmp_path / "r.md").read_text(encoding="utf-8").startswith("# run")
    assert f"done: {run / 'report.html'}" in capsys.readouterr().out
    run_report(parser.parse_args([str(run), "--out", str(tmp_path / "again.html")]))
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page  # the same run, the same page


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_large(tmp_path_factory.mktemp("large") / "run")


@pytest.fixture(scope="module")
def found(large: Path) -> dict[str, Any]:
    return collect([large])


def test_a_law_is_fitted_where_it_can_be_and_refused_with_a_reason_elsewhere(found: dict[str, Any]) -> None:
    curve = found["scaling"]["curves"][0]
    assert (curve["run"], curve["stage"], curve["training"]) == ("run", "train", "train")
    assert [point["step"] for point in curve["points"]] == list(STEPS)
    assert curve["points"][0]["flops"] == pytest.approx(6 * 2.1e14) and curve["points"][0]["seconds"] == 186
    easy = next(
        one for one in curve["fits"] if (one["split"], one["axis"], one["metric"]) == ("easy", "flops", "reasoning")
    )
    assert easy["refused"] is None and easy["points"] == 6 and easy["r2"] > 0.9
    lows, highs = easy["curve"]["low"], easy["curve"]["high"]
    assert all(low <= mean <= high for low, mean, high in zip(lows, easy["curve"]["accuracy"], highs, strict=True))
    plain = [one for one in curve["fits"] if one["metric"] == "plain"]
    assert len(plain) == 9 and all("flat" in one["refused"] for one in plain)
    assert [one["evaluation"] for one in found["scaling"]["left_out"]] == ["before"]


def test_two_points_are_shown_without_a_law(tmp_path: Path) -> None:
    run = write_large(tmp_path / "run", documents=6, samples=2)
    for step in STEPS[:-2]:
        (run / f"step-{step:03}" / "eval.json").unlink()
    curve = collect([run])["scaling"]["curves"][0]
    assert len(curve["points"]) == 2 and all("2 different amounts" in one["refused"] for one in curve["fits"])


def test_reinforced_and_plain_training_have_curves_of_their_own(tmp_path: Path) -> None:
    run = write_large(tmp_path / "run", documents=6, samples=2)
    folder = run / "train"
    (run / "ntp").mkdir()
    for name in ("metrics.jsonl", "run.json"):
        text = (folder / name).read_text(encoding="utf-8").replace('"stage": "train"', '"stage": "ntp"')
        (run / "ntp" / name).write_text(text, encoding="utf-8")
    for step in STEPS[:3]:
        file = run / f"step-{step:03}" / "eval.json"
        file.write_text(file.read_text(encoding="utf-8").replace("/train/", "/ntp/"), encoding="utf-8")
    curves = collect([run])["scaling"]["curves"]
    assert sorted((one["stage"], len(one["points"])) for one in curves) == [("ntp", 3), ("train", 3)]


def test_pairs_are_what_compare_says(large: Path, found: dict[str, Any]) -> None:
    assert len(found["pairs"]) == 21
    one = next(pair for pair in found["pairs"] if (pair["ours"], pair["theirs"]) == ("step-120", "before"))
    whole = compare(large / "step-120", large / "before", resamples=1000)
    for ours, theirs in zip(one["rows"], whole["rows"], strict=True):
        assert ours["split"] == theirs["split"]
        assert ours["reasoning"]["difference"] == pytest.approx(theirs["reasoning"]["difference"], rel=1e-4)
        assert ours["reasoning"]["interval"] == pytest.approx(theirs["reasoning"]["interval"], rel=1e-4)


def test_runs_on_other_positions_are_not_paired(tmp_path: Path) -> None:
    runs = [write_large(tmp_path / name / "run", documents=n, samples=2) for name, n in (("a", 6), ("b", 8), ("c", 6))]
    names = {(pair["theirs"][0], pair["ours"][0]) for pair in collect(runs)["pairs"]}
    assert names == {("a", "a"), ("b", "b"), ("a", "c")}  # 14 on a's positions: each against the first alone


def test_patterns_and_the_collapse_watch(found: dict[str, Any]) -> None:
    rows = found["patterns"]["rows"]
    assert [row["source"] for row in rows][:2] == ["before", "step-006"] and rows[-1]["source"] == "train"
    assert rows[0]["groups"]["hypothesis"]["value"] == 1.0  # every thought says "probably"
    assert rows[0]["groups"]["breakdown"]["value"] == 0.0
    watch = next(one for one in found["patterns"]["watch"] if one["label"] == "train")
    assert len(watch["windows"]) == 12 and watch["windows"][-1]["to"] == STEPS[-1]


def test_a_position_holds_the_likeliest_tokens_of_every_model(found: dict[str, Any]) -> None:
    position = next(p for one in found["documents"] for p in one["positions"] if p["plain"])
    top = position["plain"]["0"]["top"]
    assert [share for _, share in top] == [0.41, 0.22, 0.09, 0.05, 0.03] and top[0][0] == position["plain"]["0"][
        "argmax"
    ]


def test_the_page_of_a_usual_run_is_small(found: dict[str, Any]) -> None:
    assert len(render(found).encode()) < 5_000_000


def test_markdown_holds_every_table(found: dict[str, Any]) -> None:
    text = markdown(found)
    for head in ("## Next-token accuracy", "## Compared on the same positions", "## Scaling", "## Reasoning patterns",
                 "### Thoughts over time: train", "## Training", "## Warnings", "## Stages"):  # fmt: skip
        assert f"{head}\n" in text or f"\n{head}" in text
    assert "| easy, reasoning, flops | 6 |" in text and "Not fitted (plain, easy against flops: " in text
    assert "| easy | step-120 − before | 168 |" in text


def test_figures_are_files_and_the_same_run_gives_the_same(found: dict[str, Any], tmp_path: Path) -> None:
    data = dict(found, evaluations=[{**one, "title": one["title"] + " $x_1$ <b>"} for one in found["evaluations"]])
    files = write_figures(data, tmp_path / "a")
    names = {file.name for file in files}
    assert {f"{name}.{kind}" for name in ("accuracy", "patterns", "training-train", "collapse-train",
            "scaling-run-train-reasoning", "scaling-run-train-plain") for kind in ("svg", "png")} == names  # fmt: skip
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files if file.suffix == ".png")
    assert "$x_1$ &lt;b&gt;" in (tmp_path / "a" / "accuracy.svg").read_text(encoding="utf-8")
    for file in write_figures(data, tmp_path / "b"):
        assert file.read_bytes() == (tmp_path / "a" / file.name).read_bytes()

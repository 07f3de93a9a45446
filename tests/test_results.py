"""The results page equals what its generator makes of the committed summaries; run folders become summaries."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forethink import cli
from forethink.config import load_config
from forethink.models import load_model
from forethink.rundir import RunDir
from forethink.training.checkpoints import save_model, with_lora

ROOT = Path(__file__).parents[1]
COLLECT = str(ROOT / "results" / "collect.py")
ADAPTER = str(ROOT / "results" / "adapter.py")
PAGE = ROOT / "docs" / "results.md"


def _load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"results_{name}", ROOT / "results" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make, collect = _load("make"), _load("collect")


def test_the_page_is_what_the_summaries_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert make.rewrite(page) == page, "run `make results` and commit docs/results.md"
    assert page.count("<!-- table ") == page.count("<!-- end -->") == len(make._BLOCK.findall(page)) > 5


def test_a_figure_changed_by_hand_is_put_right() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert "35.9 (32.0 … 39.9)" in page
    assert make.rewrite(page.replace("35.9 (32.0 … 39.9)", "45.9 (42.0 … 49.9)")) == page


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem)
def test_a_committed_summary_names_no_path_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w:./~])~?/\w+/\w", text)
    assert set(json.loads(text)) == {"note", "runs"}


def test_every_summary_is_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for path in (ROOT / "results").glob("*.json"):
        assert re.search(rf"<!-- table \w+ {path.stem}\b", page), f"{path.name}: no table of docs/results.md shows it"


def test_paths_are_cut() -> None:
    cut = collect.cutter(Path("/home/me/work"))
    assert cut("/home/me/work/runs/a/train/model") == "runs/a/train/model"
    assert cut("run=/home/me/work/runs/a seed=1") == "run=runs/a seed=1"
    assert cut("--corpus /data/big/notes.jsonl") == "--corpus notes.jsonl"
    assert cut("'/data/my notes.jsonl'") == "'my notes.jsonl'"
    assert (
        cut("--corpus ../../data/notes.jsonl --config recipes/a.toml")
        == "--corpus notes.jsonl --config recipes/a.toml"
    )
    assert cut("owner/name and runs/a/b, 1/2, https://a.b/c/d") == "owner/name and runs/a/b, 1/2, https://a.b/c/d"


SMALL = ("problems.threshold=0", "problems.min_context=4", "score.short_context=2", "problems.per_document=3",
         "rollout.max_tokens=4", "rollout.group=2", "eval.positions=6", "eval.thresholds=[0.0, 0.5, 1.0]",
         "eval.bootstrap=100", "model.dtype=float32", "model.device=cpu")  # fmt: skip


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Any, smollm2_tokenizer: Any) -> Path:
    """results/small.json of a real run: two evaluations, one held against the other, and a training cut short."""
    top = tmp_path_factory.mktemp("place")
    policy, corpus, run = top / "policy", top / "held out.jsonl", top / "runs" / "small"
    tiny_llama.save_pretrained(policy)
    smollm2_tokenizer.save_pretrained(policy)
    lines = [
        json.dumps({"text": f"How many birds are left of {i + 3} on the roof? There are {i} left."}) for i in range(6)
    ]
    corpus.write_text("\n".join(lines) + "\n", encoding="utf-8")
    base = [sys.executable, "-m", "forethink", "eval", "--run", str(run), "--model", str(policy), *SMALL]
    base += ["--corpus", str(corpus)]
    again = ["--name", "after", "--checkpoint", str(policy), "--against", str(run / "before")]
    for more in (["--name", "before"], again):
        subprocess.run([*base, *more], check=True, capture_output=True)
    training = RunDir(run / "train", "train", load_config(None, [f"run={run}", "seed=3"]), ("train",), {})
    training.append("metrics", [{"step": 1, "flops/update": 5.0}, {"step": 2, "flops/update": 9.0, "loss": 1.0}])
    command = [
        sys.executable,
        COLLECT,
        "small",
        str(run),
        "--note",
        "A note.",
        "--out",
        str(top),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return top / "small.json"


def test_a_real_run_becomes_a_summary(summary: Path) -> None:
    text = summary.read_text(encoding="utf-8")
    assert str(summary.parent) not in text and "/tmp" not in text
    data = json.loads(text)
    run = data["runs"]["small"]
    stages = {one["folder"]: one for one in run["stages"]}
    assert {"before", "after", "train", "eval_corpus/held-out.jsonl/score"} <= set(stages)
    assert stages["train"]["status"] == "running" and stages["train"]["so_far"] == {"step": 2, "flops/update": 9.0}
    assert stages["before"]["git"] and stages["before"]["machine"]["cores"] and stages["before"]["seconds"] > 0
    original = json.loads((summary.parent / "runs" / "small" / "after" / "eval.json").read_text(encoding="utf-8"))
    for kept, row in zip(run["evals"]["after"]["rows"], original["rows"], strict=True):
        assert kept["split"] == row["split"] and kept["positions"] == row["positions"]
        if row["positions"]:  # a disjoint band may be empty
            assert kept["plain"]["value"] == pytest.approx(row["plain"]["value"], rel=1e-5)
    assert run["evals"]["after"]["rows"][0]["positions"] == 6
    assert run["evals"]["after"]["against"][0]["folder"] == "runs/small/before"


def test_tables_of_a_real_run(summary: Path) -> None:
    folder = summary.parent
    value = json.loads(summary.read_text())["runs"]["small"]["evals"]["before"]["rows"][0]
    table = make.render('accuracy small "as it comes=small/before" "never=small/none"', folder)
    first = f"| as it comes | – | plain | {make.share(value['plain'])}; n = {value['positions']} |"
    assert first in table and "| never | – | – | *not yet run* |" in table
    assert table.count("\n") == 4
    paired = make.render("differences small", folder)
    assert "reasoning less the other's plain" in paired  # a column of summaries that have it
    assert "| small/after | before | – | easy |" in paired and "+0.0 (+0.0 … +0.0)" in paired
    cost = make.render("cost small", folder)
    assert "| small/train (running) | train | 3 | 2 | 9 | – |" in cost
    commands = make.render("commands small", folder)
    run_command = f"forethink eval --run runs/small --model policy {shlex.join(SMALL)} --corpus 'held out.jsonl'"
    assert f"{run_command} --name before\n" in commands and str(folder) not in commands
    assert re.search(r"^Machine: \w+ \w+, \d+ cores\.$", commands, re.M)
    assert make.render("note small", folder) == "A note."


def test_a_table_shows_several_summaries(summary: Path, tmp_path: Path) -> None:
    data = json.loads(summary.read_text())
    (tmp_path / "one.json").write_text(summary.read_text())
    (tmp_path / "two.json").write_text(json.dumps(data | {"runs": {"other": data["runs"]["small"]}}))
    table = make.render("accuracy one+two+none a=small/before b=other/before", tmp_path)
    rows = table.splitlines()[2:]
    assert [row.replace("| b |", "| a |") for row in rows[2:]] == rows[:2] and rows[2].startswith("| b |")
    (tmp_path / "three.json").write_text(summary.read_text())
    with pytest.raises(SystemExit, match="two summaries have a run of one name"):
        make.render("accuracy one+three", tmp_path)


def test_tables_of_patterns(summary: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "small"
    shutil.copytree(summary.parent / "runs" / "small", run)
    records = [json.loads(line) for line in (run / "after" / "samples.jsonl").read_text().splitlines()]
    said = [
        one | {"step": i + 1, "text": "Wait, either way it flies. " + one["text"]} for i, one in enumerate(records)
    ]
    (run / "train" / "samples.jsonl").write_text("".join(json.dumps(one) + "\n" for one in said))
    assert cli.main(["patterns", str(run / "after"), str(run / "train"), "--out", str(run / "patterns.json")]) == 0
    subprocess.run(
        [sys.executable, COLLECT, "small", str(run), "--out", str(tmp_path)], check=True, capture_output=True
    )
    table = make.render("patterns small", tmp_path).splitlines()
    assert table[0].startswith("| responses of | n | transition, % | reflection, % |")
    assert table[2].startswith(f"| after | {len(records)} | 0.0 (0.0 … ") and table[3].count("| 100.0 (") == 2
    grown = [row.split(" | ") for row in make.render("diversity small", tmp_path).splitlines()[2:]]
    assert {row[0] for row in grown} == {"| small"} and sum(int(row[2]) for row in grown) == len(records)
    assert grown[0][1].startswith("1–") and all(float(row[5]) <= 100 for row in grown)
    assert (
        make.render("patterns small other", tmp_path) == make.render("diversity small other", tmp_path) == make.NOT_YET
    )


@pytest.mark.parametrize("kind", sorted(set(make.KINDS) - {"accuracy", "differences", "cost", "commands", "note"}))
def test_what_a_run_has_not_given_is_not_yet_run(summary: Path, kind: str) -> None:
    assert make.render(f"{kind} small", summary.parent) == make.NOT_YET
    assert make.render(f"{kind} nothing", summary.parent) == make.NOT_YET


def test_other_documents_are_expected_within_a_wider_interval(tmp_path: Path) -> None:
    def record(samples: int, plain: float, reasoning: float, bootstrap: list[float] | None) -> dict[str, Any]:
        shares = {"plain": plain, "reasoning": reasoning}
        row = {name: {"value": value, "wilson": None, "bootstrap": bootstrap} for name, value in shares.items()}
        return {"samples": samples, "rows": [{"split": "easy", "kind": "nested", "positions": 9} | row]}

    there = {"a": record(4, 0.30, 0.30, [0.20, 0.40]), "b": record(1, 0.99, 0.00, [0.98, 1.00])}
    other = {"a": record(4, 0.44, 0.45, None), "b": record(1, 0.95, 0.00, None), "c": record(1, 0.5, 0.5, None)}
    runs = {"here": {"stages": [], "evals": there}, "there": {"stages": [], "evals": other}}
    (tmp_path / "made.json").write_text(json.dumps({"note": "", "runs": runs}))
    pairs = [f'"{one}=here/{one}=there/{one}"' for one in "ab"]
    lines = make.render(
        f"unseen made {' '.join(pairs)} absent=here/c=there/c one=there/c=here/a", tmp_path
    ).splitlines()
    # 0.3 ± 0.1·√2; a share does not pass 1, and an arm asked once has no reasoning accuracy to hold to.
    assert lines[2:] == [
        "| a | plain | 30.0 → 15.9 … 44.1: 44.0 |",
        "| a | reasoning | 30.0 → 15.9 … 44.1: 45.0 **outside** |",
        "| b | plain | 99.0 → 97.6 … 100.0: 95.0 **outside** |",
        "| absent | – | *not yet run* |",
        "| one | plain | – |",
    ]


def test_tables_of_laws_tasks_questions_and_comparisons(tmp_path: Path) -> None:
    span = {"value": 0.5, "wilson": [0.25, 0.75], "bootstrap": None}
    law = {"refused": None, "split": "easy", "axis": "flops", "points": 6, "r2": 0.98,
           "A": {"value": 2.0, "residuals": [1.0, None]}, "alpha": {"value": 0.3, "residuals": None},
           "p_star": {"value": 0.6, "residuals": [0.5, 0.7]}, "hold_out": {"predicted": 0.41, "observed": 0.4},
           }  # fmt: skip
    refused = {"refused": "too few points", "split": "hard", "axis": "flops", "points": 3}
    noise = {"refused": "hard against tokens: noise", "r2": 0.4321, "split": "hard", "axis": "tokens", "points": 6}
    row = {"task": "quiz", "mode": "plain", "category": "law", "n": 8, "accuracy": span, "chance": 0.1, "lm_eval": 0.5}
    stage = {"folder": "tune/train", "stage": "train", "seed": 7}
    asked = {
        "model": {"name": "runs/r/tune/train/model"},
        "questions": 40,
        "accuracy": span,
        "greedy": span,
        "box": span,
        "against": [{key: {"difference": 0.25, "interval": [-0.1, 0.5]} for key in ("accuracy", "greedy", "box")}],
    }
    side = {"label": "dense", "reward": "dense", "selector": "random 0.2", "spent": {"flops": 1e12},
            "accuracy": [{"split": "easy", "kind": "nested", "reasoning": span}],
            "against": [{"split": "easy", "kind": "nested", "reasoning": {"difference": 0.02, "interval": [0, 0.04]}}],
            }  # fmt: skip
    quiz = {"rows": [row | {"category": "all", "n": 9}, row]}
    run = {"stages": [stage], "evals": {}, "fit": {"fits": [law, refused, noise]}, "tasks": {"quiz": quiz},
           "questions": {"tune/after": asked}, "compare": {"runs": [side]}}  # fmt: skip
    (tmp_path / "x.json").write_text(json.dumps({"note": "", "runs": {"r": run}}))
    fit = make.render("fit x", tmp_path)
    assert "| r | easy | flops | 6 | 2 (1 … open) | 0.3 | 60 (50 … 70) | 0.980 | 41.0 for 40.0 |" in fit
    assert "| r | hard | flops | 3 | – | – | – | – | too few points |" in fit
    assert "| r | hard | tokens | 6 | – | – | – | 0.432 | noise |" in fit
    tasks = make.render("tasks x", tmp_path)
    assert "| r/quiz | quiz, plain | 9 | 50.0 (25.0 … 75.0) | 10.0 | 50.0 |" in tasks and "| 8 |" not in tasks
    assert "| quiz | law | 8 | 50.0 |" in make.render('categories x "q=r/quiz"', tmp_path)
    after = make.render("questions x after=r/tune/after", tmp_path).splitlines()[-1]
    assert after.startswith("| after | 7 | 40 | 50.0 (25.0 … 75.0) |")
    assert after.endswith("| +25.0 (-10.0 … +50.0) | +25.0 (-10.0 … +50.0) |")
    family = make.render("family x", tmp_path)
    assert "| dense | dense, random 0.2 | 1.00e+12 | easy 50.0 (25.0 … 75.0) | easy +2.0 (+0.0 … +4.0) |" in family


def test_collecting_nothing_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, COLLECT, "x", str(tmp_path / "none"), "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode and "no such run" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "x.json").exists()


def test_a_small_adapter_is_the_same_but_for_rounding(tmp_path, tiny_llama, smollm2_tokenizer) -> None:
    adapted = with_lora(copy.deepcopy(tiny_llama), 4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_model(adapted, smollm2_tokenizer, tmp_path / "model")
    command = [sys.executable, ADAPTER]
    subprocess.run([*command, str(tmp_path / "model"), "small", "--out", str(tmp_path)], check=True)
    whole, small = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("model", "small"))
    assert whole.keys() == small.keys()
    assert all(torch.equal(small[name], whole[name].to(torch.bfloat16)) for name in whole)
    config = json.loads((tmp_path / "small" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "smollm2" and str(tmp_path) not in json.dumps(config)
    tiny_llama.save_pretrained(tmp_path / "base")
    first, second = (
        load_model(str(tmp_path / "base"), adapter=str(tmp_path / name), dtype="float32")
        for name in ("model", "small")
    )
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.allclose(mine, theirs, atol=1e-2) for mine, theirs in pairs)
    assert subprocess.run([*command, str(tmp_path), "none"], check=False).returncode == 1

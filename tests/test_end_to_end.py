"""The whole path from the command line with the real SmolLM2: a corpus file in, an evaluated model out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethink import cli
from forethink.demo import Figures, write_corpus
from forethink.records import read_problems
from forethink.rundir import read_jsonl

pytestmark = [pytest.mark.model, pytest.mark.slow]

RECIPE = """
run = "run"
seed = 3
[corpus]
path = "corpus.jsonl"
limit = 12
[model]
name = "MODEL"
[problems]
per_document = 20
max_context = 64
validation = 0.25
[rollout]
group = 4
max_tokens = 40
[warmup]
examples = 112
batch = 8
micro_batch = 8
probe_every = 100
probe_positions = 4
[train]
steps = 2
problems = 4
save_every = 1
dynamic_sampling_from = 99  # groups without a right answer train too, by what the dense reward makes of them
[reward]
name = "dense"
[eval]
positions = 8
samples = 4
bootstrap = 200
"""


def test_a_corpus_becomes_an_evaluated_model(
    smollm2_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.toml").write_text(RECIPE.replace("MODEL", smollm2_folder))
    assert write_corpus(Path("corpus.jsonl")) > 50
    for command in (
        ["score"], ["problems"], ["eval", "--name", "before"], ["warmup"], ["train"],
        ["eval", "--name", "after", "--checkpoint", "run/train/model", "--against", "run/before"],
    ):  # fmt: skip
        assert cli.main([*command, "--config", "recipe.toml"]) == 0, command

    train, held_out = (read_problems(Path("run/problems"), split) for split in ("train", "validation"))
    assert train and held_out
    assert {p.document for p in train}.isdisjoint({p.document for p in held_out})
    assert all(p.entropy > 0.5 and len(p.context_ids) <= 64 for p in (*train, *held_out))

    before, after = Figures.of(Path("run/before")), Figures.of(Path("run/after"))
    assert before.positions == after.positions == 8
    assert before.plain > 0.1  # the real model knows some of what comes next
    assert before.box < 0.3 and after.box > 0.3  # the warm start teaches the form
    positions = [
        [row["problem"] for row in read_jsonl(Path(f"run/{name}/positions.jsonl"))] for name in ("before", "after")
    ]
    assert positions[0] == positions[1]

    steps = list(read_jsonl(Path("run/train/metrics.jsonl")))
    assert [step["grad_norm"] > 0 for step in steps] == [True, True]
    samples = list(read_jsonl(Path("run/train/samples.jsonl")))
    assert len(samples) == 2 * 4 * 4
    assert all((sample["reward"] == 1) == (sample["outcome"] == "right") for sample in samples)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {
        p.name for p in Path("run/train/model").iterdir()
    }
    assert json.loads(Path("run/train/run.json").read_text())["status"] == "done"

    # Finished stages do nothing: the same command again leaves every file as it is.
    stamps = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    for command in (["score"], ["problems"], ["warmup"], ["train"]):
        assert cli.main([*command, "--config", "recipe.toml"]) == 0
    assert {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()} == stamps

"""The training stage: what it writes, what it refuses, and that a killed run ends in the same weights."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forethink.config import Model
from forethink.models import fingerprint, load_model, load_tokenizer
from forethink.records import read_problems, write_problems
from forethink.rescore import rescore
from forethink.rewards import load_reward
from forethink.rundir import read_jsonl
from forethink.training.checkpoints import newest_checkpoint, save_model, starting_point, with_lora
from forethink.training.train import Stage, run_stage, run_train
from forethink.types import ForethinkError
from trainers import make_problems, prepare, train_in_child, train_settings

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["trainers", "forethink.training.grpo", "forethink.training.train"])


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_llama, smollm2_tokenizer) -> Path:
    """A folder with the policy, a reward and a run that has problems."""
    folder = tmp_path_factory.mktemp("home")
    prepare(folder / "whole", tiny_llama, smollm2_tokenizer)
    return folder


def start(config, environment=None) -> multiprocessing.Process:
    child = CHILDREN.Process(target=train_in_child, args=(config, environment))
    child.start()
    return child


def new_run(home: Path, name: str) -> Path:
    shutil.copytree(home / "whole" / "problems", home / name / "problems")
    return home / name


@pytest.fixture(scope="module")
def whole(home) -> tuple[Path, float]:
    """A run that nobody disturbed, and how many seconds it took."""
    began = time.monotonic()
    child = start(train_settings(home / "whole"))
    child.join()
    assert child.exitcode == 0
    return home / "whole" / "train", time.monotonic() - began


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def test_a_run_folder_tells_the_run(home, whole, tiny_llama) -> None:
    folder, _ = whole
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "done" and len(record["inputs"]) > 3
    metrics = list(read_jsonl(folder / "metrics.jsonl"))
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    for line in metrics:
        shares = [line[f"outcome/{kind}"] for kind in ("right", "wrong", "missing", "cut_off")]
        assert sum(shares) == pytest.approx(1)
        assert line["groups/degenerate"] == line["groups/all_right"] + line["groups/all_wrong"]
        assert line["flops/total"] == sum(line.get(f"flops/{kind}", 0) for kind in ("rollout", "update", "scores"))
        assert line["learning_rate"] == 1e-3 and line["grad_norm"] > 0 and line["groups/signal"] > 0
        assert line["entropy"] > 1 and line["tokens_per_second"] > 0 and line["step_seconds"] > 0
    totals = [line["tokens/generated"] for line in metrics]
    samples = list(read_jsonl(folder / "samples.jsonl"))
    assert totals[-1] == sum(line["tokens"] for line in samples) and totals == sorted(totals)
    assert [line["step"] for line in samples] == [step for step in range(1, 7) for _ in range(16)]
    assert not list(folder.rglob("*.bin")) and not (folder / "checkpoints").exists()
    moved = weights(folder)["model.norm.weight"]
    assert not torch.equal(moved, tiny_llama.model.norm.weight)
    assert torch.equal(load_model(str(folder / "model"), dtype="float32").model.norm.weight, moved)
    assert fingerprint(load_tokenizer(str(folder / "model"))) == fingerprint(load_tokenizer(str(home / "policy")))


def test_its_samples_can_be_scored_again(home, whole) -> None:
    problems = {problem.id: problem for problem in read_problems(home / "whole" / "problems")}
    reward = load_reward(train_settings(home / "whole").reward)
    lines = [line for group in rescore(whole[0] / "samples.jsonl", problems, reward) for line in group]
    assert len(lines) == 96
    assert all(line["reward"] == line["reward_before"] for line in lines)
    assert len({line["reward"] for line in lines}) > 2


def test_finished_work_is_kept_and_other_settings_are_refused(home, whole) -> None:
    before = (whole[0] / "metrics.jsonl").stat().st_mtime_ns
    assert run_train(train_settings(home / "whole")) == whole[0]
    assert (whole[0] / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(ForethinkError, match="another configuration"):
        run_train(train_settings(home / "whole", "train.learning_rate=2e-3"))


def test_a_run_killed_three_times_ends_in_the_same_weights(home, whole) -> None:
    run, seconds = new_run(home, "killed"), whole[1]
    rng = random.Random(1)
    for _ in range(3):
        child = start(train_settings(run))
        began = time.monotonic()
        while child.is_alive() and not (run / "train" / "samples.jsonl").exists():
            time.sleep(0.01)  # at least once it is killed in its first steps, not while it loads
        time.sleep(max(0.0, rng.uniform(0.1, 0.9) * seconds - (time.monotonic() - began)) * 0.7)
        child.kill()
        child.join()
    child = start(train_settings(run))
    child.join()
    assert child.exitcode == 0
    folder = run / "train"
    mine, theirs = weights(folder), weights(whole[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    for log in ("metrics", "samples"):
        pair = [list(read_jsonl(place / f"{log}.jsonl")) for place in (folder, whole[0])]
        clocks = {"seconds", "step_seconds", "tokens_per_second", "update_seconds"}
        for mine_line, their_line in zip(*pair, strict=True):
            assert {k: v for k, v in mine_line.items() if k not in clocks} == {
                k: v for k, v in their_line.items() if k not in clocks
            }


def test_a_checkpoint_torn_while_it_was_saved_is_not_used(home, whole) -> None:
    run = new_run(home, "torn")
    child = start(train_settings(run))
    place = run / "train" / "checkpoints"
    while child.is_alive() and not (place / "checkpoint-4" / "complete").exists():
        time.sleep(0.001)
    child.kill()
    child.join()
    (place / "checkpoint-4" / "complete").unlink()
    (place / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    child = start(train_settings(run))
    child.join()
    assert child.exitcode == 0
    mine, theirs = weights(run / "train"), weights(whole[0])
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_an_interrupt_leaves_a_checkpoint_to_go_on_from(home) -> None:
    run = new_run(home, "interrupted")
    child = start(train_settings(run, "train.steps=400"))  # long enough to be met in the middle of it
    while child.is_alive() and not (run / "train" / "checkpoints" / "checkpoint-2" / "complete").exists():
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGINT)
    child.join()
    assert child.exitcode == 130
    assert not (run / "train" / "model").exists()
    assert newest_checkpoint(run / "train" / "checkpoints") is not None


def test_a_limit_makes_every_pass_one_over_the_same_few_problems(home) -> None:
    run = new_run(home, "limit")
    few = ("train.limit=2", "train.problems=2", "train.steps=3", "train.dynamic_sampling_from=none")
    run_train(train_settings(run, *few))
    seen: dict[int, set[str]] = {}
    for record in read_jsonl(run / "train" / "samples.jsonl"):
        seen.setdefault(record["step"], set()).add(record["problem"])
    assert len(seen) == 3 and len(seen[1]) == 2 and seen[1] == seen[2] == seen[3]


def test_an_adapter_is_saved_and_loads_as_one(home) -> None:
    run = new_run(home, "lora")
    config = train_settings(run, "train.lora_rank=4", "train.steps=2", "train.precision=bf16")
    assert run_train(config) == run / "train"
    files = {path.name for path in (run / "train" / "model").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= files
    assert "model.safetensors" not in files
    merged = load_model(config.model.name, adapter=str(run / "train" / "model"), dtype="float32")
    plain = load_model(config.model.name, dtype="float32")
    pairs = zip(merged.named_parameters(), plain.parameters(), strict=True)
    assert {name for (name, one), other in pairs if not torch.equal(one, other)} == {
        name for name, _ in plain.named_parameters() if "proj" in name
    }


def test_where_training_starts(tmp_path: Path, capsys) -> None:
    policy = Model(name="policy", adapter="adapter")
    assert starting_point(policy, None) == ("policy", "adapter")
    assert starting_point(policy, "some/model") == ("some/model", None)  # the policy's adapter is not for it
    (tmp_path / "config.json").write_text("{}")
    on_another = tmp_path / "on_another"
    on_another.mkdir()
    for named, base, said in (
        ("policy", "policy", ""),
        (str(tmp_path), str(tmp_path), ""),
        ("gone", "policy", "gone"),
    ):
        (on_another / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": named}))
        assert starting_point(policy, str(on_another)) == (base, str(on_another))
        assert said in capsys.readouterr().err
    (on_another / "adapter_config.json").write_text("{")
    with pytest.raises(ForethinkError, match="cannot be read"):
        starting_point(policy, str(on_another))


def test_lora_of_the_same_rank_goes_on_with_the_warm_starts_adapter(home, tiny_llama, smollm2_tokenizer) -> None:
    run = new_run(home, "lora-on-lora")
    place = run / "warmup" / "model"
    torch.manual_seed(3)
    warm = with_lora(copy.deepcopy(tiny_llama), 4)
    for name, parameter in warm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_model(warm, smollm2_tokenizer, place)
    config = train_settings(run, "train.lora_rank=4", "train.steps=2", "train.precision=fp32", "rollout.max_tokens=4")
    seen = {}

    class Look(Stage):
        def _train_and_save(self, trainer: Any, tokenizer: Any) -> None:
            seen.update({name: p.clone() for name, p in trainer.engine.model.named_parameters()})
            super()._train_and_save(trainer, tokenizer)

    assert run_stage(Look, config, run / "train") == run / "train"
    start = load_model(config.model.name, adapter=str(place), dtype="float32")
    assert all(torch.equal(seen[name], p) for name, p in start.named_parameters())  # sampled from it merged
    assert "model.safetensors" not in {path.name for path in (run / "train" / "model").iterdir()}
    begun, ended = (load_file(folder / "adapter_model.safetensors") for folder in (place, run / "train" / "model"))
    assert begun.keys() == ended.keys()
    # Adam at the test's learning rate moves a weight by at most that a step: these are the warm start's own weights.
    moved = max(float((begun[name] - ended[name]).abs().max()) for name in begun)
    assert 0 < moved <= 2.5 * config.train.learning_rate + 1e-6


def test_a_cut_adapter_to_go_on_with_is_one_sentence(home, tiny_llama, smollm2_tokenizer) -> None:
    run = new_run(home, "cut")
    save_model(with_lora(copy.deepcopy(tiny_llama), 4), smollm2_tokenizer, run / "warmup" / "model")
    file = run / "warmup" / "model" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ForethinkError, match="no LoRA adapter for"):
        run_train(train_settings(run, "train.lora_rank=4"))


def test_the_warm_start_is_taken_where_there_is_one(home, tiny_llama, smollm2_tokenizer) -> None:
    run = new_run(home, "warm")
    place = run / "warmup" / "model"
    tiny_llama.save_pretrained(place)
    smollm2_tokenizer.save_pretrained(place)
    folder = run_train(train_settings(run, "train.steps=1", "train.dynamic_sampling_from=0", "train.refill=1"))
    inputs = json.loads((folder / "run.json").read_text())["inputs"]
    assert str(place / "model.safetensors") in inputs


def test_what_cannot_be_trained_is_refused_in_a_sentence(home, tmp_path, smollm2_tokenizer) -> None:
    with pytest.raises(ForethinkError, match="no such problems"):
        run_train(train_settings(home / "nothing"))
    run = new_run(home, "refused")
    with pytest.raises(ForethinkError, match=r"\[trl\]: 'beta' is set by forethink itself"):
        run_train(train_settings(run, "trl.beta=0.1"))
    with pytest.raises(ForethinkError, match=r"\[trl\]: .* has no 'bta'"):
        run_train(train_settings(run, "trl.bta=0.1"))
    with pytest.raises(ForethinkError, match=r"train\.problems is 512, but there are only \d+ problems"):
        run_train(train_settings(run, "train.problems=512"))
    with pytest.raises(ForethinkError, match=r"rollout\.group is 1"):
        run_train(train_settings(run, "rollout.group=1"))
    other = home / "other" / "problems" / "train.parquet"
    write_problems(other, make_problems(smollm2_tokenizer), {"fingerprint": "another"})
    with pytest.raises(ForethinkError, match="made with another tokenizer"):
        run_train(train_settings(home / "other"))
    write_problems(home / "empty" / "problems" / "train.parquet", [], {"fingerprint": "x"})
    with pytest.raises(ForethinkError, match="training split is empty"):
        run_train(train_settings(home / "empty"))

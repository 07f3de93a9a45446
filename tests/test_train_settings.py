"""What training does without a model: TRL's settings, the order of problems, and the alarms."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainerState

from forethink.config import load_config
from forethink.device import computes_in_bf16, multiplies_bf16
from forethink.rundir import RunDir, read_jsonl
from forethink.training.progress import Progress
from forethink.training.settings import grpo_settings, training_order


def test_trl_options_pass_through_and_sizes_fit(tmp_path) -> None:
    config = load_config(
        None, ["trl.optim=adamw_torch", "trl.adam_beta2=0.95", "train.problems=12", "train.micro_batch=5"]
    )
    settings = grpo_settings(config, tmp_path, cpu=True)
    assert settings.optim == "adamw_torch" and settings.adam_beta2 == 0.95
    assert settings.per_device_train_batch_size == 4 * 8  # 4 is the largest part of 12 that 5 problems hold
    assert settings.gradient_accumulation_steps == settings.steps_per_generation == 3
    assert settings.loss_type == "dapo" and settings.num_iterations == 1 and settings.beta == 0


@pytest.mark.parametrize("avx512, amx, fast", [(False, False, False), (True, False, True), (False, True, True)])
def test_bf16_is_used_where_the_processor_multiplies_it(avx512, amx, fast, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    for precision, autocast in (("auto", fast), ("bf16", True), ("fp32", False), ("pure_bf16", False)):
        config = load_config(None, [f"train.precision={precision}"])
        assert grpo_settings(config, tmp_path, cpu=True).bf16 is autocast
    assert load_config().train.precision == load_config().ntp.precision == "auto"
    assert computes_in_bf16("pure_bf16", "cpu") and computes_in_bf16("auto", "cpu") is fast
    assert not multiplies_bf16("mps")


def test_every_pass_takes_every_problem_once() -> None:
    order = training_order(10, steps=7, problems=3, seed=0)
    assert len(order) == 21
    assert len(set(order[:9])) == 9 and len(set(order[9:18])) == 9  # nine of ten a pass: steps are whole
    assert order[:9] != order[9:18]
    assert training_order(10, steps=9, problems=3, seed=0)[:21] == order  # a longer run begins alike
    assert training_order(10, steps=7, problems=3, seed=1) != order


def test_alarms_are_raised_once_and_survive_a_resume(tmp_path, capsys) -> None:
    config = load_config(None, [f"run={tmp_path}"])
    run = RunDir(tmp_path / "train", "train", config, ("train",))
    log = {
        "groups/degenerate": 1.0, "groups/signal": 0.0, "thought_characters": 90.0, "distinct_thoughts": 0.5,
        "reward": 0.0, "accuracy": 0.0, "step_seconds": 1.0,
    }  # fmt: skip

    def tell(watch: Progress, step: int, **changed: float) -> None:
        watch.on_log(None, TrainerState(global_step=step, max_steps=30), None, logs=log | changed)

    watch = Progress(run, 0.9)
    for step in range(1, 8):
        tell(watch, step)
    assert not run.record["warnings"]  # ten steps are not together yet
    watch = Progress(run, 0.9)  # as after a resume
    for step in range(8, 13):
        tell(watch, step)
    assert len(run.record["warnings"]) == 1 and "step 10: 100% of groups give no gradient" in run.record["warnings"][0]
    tell(watch, 13, distinct_thoughts=0.05, thought_characters=29.0)
    tell(watch, 14, distinct_thoughts=0.04, thought_characters=20.0)
    assert len(run.record["warnings"]) == 3
    assert "only 5% of thoughts are distinct" in run.record["warnings"][1]
    assert "thoughts have shrunk from 90 to 29 characters" in run.record["warnings"][2]
    assert [line["step"] for line in read_jsonl(run.path / "metrics.jsonl")] == list(range(1, 15))
    assert "step 1/30" in capsys.readouterr().err

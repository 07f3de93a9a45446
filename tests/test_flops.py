"""FLOPs as counted against torch's own counter, on the kernel it can count (the mathematical attention)."""

from __future__ import annotations

import copy
import json
from collections import Counter

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback

from forethink import kernels
from forethink.flops import Flops
from forethink.models import fingerprint
from forethink.packing import forward_pack, pack
from forethink.records import write_scored
from forethink.rollout import transformers_engine
from forethink.rollout.transformers_engine import TransformersEngine
from forethink.training import forward
from forethink.training.ntp import run_ntp
from forethink.training.warmup import run_warmup
from trainers import configure, make_problems, prepare, scored, trainer_of


def counted(function) -> int:
    """torch counts the operations of matrix products; its CPU flash kernel is not among them, so that one is off."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        function()
    return counter.get_total_flops()


@pytest.fixture(autouse=True)
def plain_tensors(monkeypatch):
    """torch's counter sees torch's own operations, and not the compiled kernels, which do the same."""
    monkeypatch.setattr(kernels, "takes", lambda *tensors, **options: False)


@pytest.fixture(params=["tiny_llama", "tiny_gemma"])
def model(request):
    return copy.deepcopy(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def one_pack(smollm2_tokenizer):
    problems = make_problems(smollm2_tokenizer)
    sequences = [[*p.context_ids, *p.target_ids] for p in problems]
    (tree,) = pack(sequences, [len(p.context_ids) for p in problems])
    return tree


def sizes(tree) -> tuple[int, int, int]:
    return len(tree.ids_t), len(tree.ids_t) ** 2, len(tree.targets)


def test_forward_of_a_pack(model, one_pack) -> None:
    with torch.no_grad():
        real = counted(lambda: forward_pack(model, one_pack))
    assert Flops.of(model).forward(*sizes(one_pack)) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_and_backward_of_a_pack(model, one_pack, frozen) -> None:
    if frozen:  # as under LoRA: gradients go through every product, but not to its weights
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("q_proj" in name)
    real = counted(lambda: forward_pack(model, one_pack)[0].sum().backward())
    assert Flops.of(model).train(*sizes(one_pack)) == pytest.approx(real, rel=0.05)


def test_a_rollout(model, smollm2_tokenizer) -> None:
    prompts = [list(p.context_ids) for p in make_problems(smollm2_tokenizer, documents=2)[:3]]
    engine = TransformersEngine(model, smollm2_tokenizer, group=3, max_tokens=10, fixed_length=True)
    engine.generate(prompts, ["a", "b", "c"], 0)  # the first call compares its ways of decoding
    assert engine.share_prompts
    found: list = []
    real = counted(lambda: found.extend(engine.generate(prompts, ["a", "b", "c"], 0)))
    lengths = [[len(c.token_ids) for c in group] for group in found]
    assert Flops.of(model).decode([len(p) for p in prompts], lengths) == pytest.approx(real, rel=0.05)


class Counted(TrainerCallback):
    """torch's count and the trainer's own, step by step, everything that happens in a step included."""

    def __init__(self, trainer) -> None:
        self.trainer = trainer
        self.steps: list[tuple[int, dict[str, int]]] = []

    def on_step_begin(self, *_, **__) -> None:
        self.before = Counter(self.trainer.spent)
        self.counter = FlopCounterMode(display=False)
        self.counter.__enter__()

    def on_step_end(self, *_, **__) -> None:
        self.counter.__exit__(None, None, None)
        parts = {k: v - self.before[k] for k, v in self.trainer.spent.items() if k.startswith("flops/")}
        self.steps.append((self.counter.get_total_flops(), parts))


REWARD = """
def long(answer, problem, *, scores):
    return float(len(answer.thought) % 7) + scores.logprob_plain


long.asks = frozenset({"logprob_plain"})
"""


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_steps_of_reinforcement(model, lora_rank, tmp_path, smollm2_tokenizer) -> None:
    """Rollouts that end early, groups dropped and refilled, the policy's scores, the update and its plain text."""
    (tmp_path / "reward.py").write_text(REWARD)
    engine = TransformersEngine(copy.deepcopy(model), smollm2_tokenizer, group=4, max_tokens=12, batch=8)
    problems = make_problems(smollm2_tokenizer, documents=3)
    trainer, _ = trainer_of(
        tmp_path, model, smollm2_tokenizer, problems, engine, f"reward.name={tmp_path / 'reward.py'}:long",
        "train.steps=3", "train.problems=4", "train.micro_batch=2", "train.ntp_weight=0.1",
        "train.dynamic_sampling_from=2", "train.refill=1", f"train.lora_rank={lora_rank}", order=range(12),
    )  # fmt: skip
    watch = Counted(trainer)
    trainer.add_callback(watch)
    with sdpa_kernel(SDPBackend.MATH):
        trainer.train()
    (_, second, third) = watch.steps  # in the first step, packing and the engine compare themselves with plain passes
    for real, parts in (second, third):
        assert all(parts[f"flops/{kind}"] > 0 for kind in ("rollout", "scores", "update"))
        assert sum(parts.values()) == pytest.approx(real, rel=0.05)
    # Random answers are all wrong: the third step drops its groups and samples as many more.
    assert third[1]["flops/rollout"] > 1.8 * second[1]["flops/rollout"]


def test_a_whole_run_of_the_plain_baseline(model, tmp_path, smollm2_tokenizer) -> None:
    run = tmp_path / "run"
    prepare(run, model, smollm2_tokenizer)
    documents = [scored(smollm2_tokenizer, number) for number in range(4)]
    write_scored(run / "score" / "0.parquet", documents, {"fingerprint": fingerprint(smollm2_tokenizer)})
    config = configure(
        run, f"model.name={tmp_path / 'policy'}", "ntp.precision=fp32", "ntp.batch=64", "ntp.window=24",
        "ntp.amount=5e9",
    )  # fmt: skip
    real = counted(lambda: run_ntp(config))
    told = json.loads((run / "ntp" / "run.json").read_text())["result"]["flops"]
    assert told == pytest.approx(real, rel=0.05)


def test_a_whole_warm_start(model, tmp_path, smollm2_tokenizer, monkeypatch) -> None:
    """Candidates, probes and updates, less the three comparisons with a plain pass that a process begins with."""
    checks: list[int] = []

    def weighed(check):
        def run(*args):
            with FlopCounterMode(display=False) as counter:  # the outer counter goes on beside this one
                found = check(*args)
            checks.append(counter.get_total_flops())
            return found

        return run

    for place, check in ((transformers_engine, "check_groups"), (forward, "check_packing")):
        monkeypatch.setattr(place, check, weighed(getattr(place, check)))
    run = tmp_path / "run"
    prepare(run, model, smollm2_tokenizer)
    config = configure(
        run, f"model.name={tmp_path / 'policy'}", "model.dtype=float32", "rollout.group=4", "rollout.max_tokens=12",
        "warmup.examples=24", "warmup.batch=4", "warmup.micro_batch=4", "warmup.probe_positions=6",
        "warmup.probe_every=3",
    )  # fmt: skip
    real = counted(lambda: run_warmup(config))
    result = json.loads((run / "warmup" / "run.json").read_text())["result"]
    assert result["flops"] == sum(result[f"flops/{kind}"] for kind in ("rollout", "candidates", "update"))
    assert result["tokens"] == result["tokens/generated"] + result["tokens/update"]
    # Of groups; of trees, by the policy that names candidates and by the one that is trained.
    assert len(checks) == 3 and all(checks)
    assert result["flops"] == pytest.approx(real - sum(checks), rel=0.05)

"""The warm start's examples: thoughts in the form, and what the untouched policy says to other prompts."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from forethink.models import load_model
from forethink.rollout import make_engine
from forethink.rundir import RunDir
from forethink.training import probe
from forethink.training.warmup import _Stage
from trainers import prepare, train_settings


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_llama, smollm2_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("home")
    prepare(folder / "run", tiny_llama, smollm2_tokenizer)
    return folder


def stage(home: Path, name: str, *overrides: str) -> _Stage:
    config = train_settings(home / "run", "warmup.examples=12", "warmup.probe_positions=2", *overrides)
    return _Stage(config, RunDir(home / name, "warmup", config, ("warmup",)), home / "run" / "problems")


def test_replies_of_the_untouched_policy_stand_among_the_thoughts(home, smollm2_tokenizer) -> None:
    bare, mixed = (stage(home, f"replay{replay}", f"warmup.replay={replay}").examples() for replay in (0.0, 0.5))
    thoughts = [example for number, example in enumerate(mixed) if number % 3 != 2]
    replies = [example for number, example in enumerate(mixed) if number % 3 == 2]
    assert thoughts == bare and len(replies) == len(bare) // 2 > 3

    config = train_settings(home / "run")
    rollout = config.rollout.model_copy(update={"group": 1, "temperature": 1.0})
    policy = load_model(config.model.name, dtype=config.model.dtype, device=config.model.device)
    engine = make_engine(rollout, policy, smollm2_tokenizer, stop=lambda _: False)
    names = [f"replay {number}" for number in range(len(replies))]
    own = engine.generate([example.ids[: example.start] for example in replies], names, config.seed)
    assert [example.ids[example.start :] for example in replies] == [one.token_ids for (one,) in own]
    assert {len(example.ids) - example.start for example in replies} != {1}


def test_a_probe_before_the_examples_does_not_change_them(home) -> None:
    fresh, probed = (stage(home, name, "warmup.replay=0.5") for name in ("fresh", "probed"))
    probed.probe(0)
    assert fresh.examples() == probed.examples()


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
def test_candidates_are_the_models_own_in_any_order_of_contexts(name, request, monkeypatch) -> None:
    model = request.getfixturevalue(name)
    rng = random.Random(0)
    documents = [[rng.randrange(1000) for _ in range(40)] for _ in range(3)]
    contexts = [document[:end] for document in documents for end in (1, 7, 20, 39)]
    rng.shuffle(contexts)
    monkeypatch.setattr(probe, "_AT_ONCE", 5)
    found = probe.candidates(model, contexts, 3, Counter())
    for context, own in zip(contexts, found, strict=True):
        top = model(input_ids=torch.tensor([context])).logits[0, -1].softmax(-1).topk(3)
        assert own.ids == tuple(top.indices.tolist())
        assert own.probabilities == pytest.approx(top.values.tolist(), rel=1e-4)

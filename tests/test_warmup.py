"""The warm start's examples: thoughts in the form, and what the untouched policy says to other prompts."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from forethink.models import load_model
from forethink.rollout import make_engine
from forethink.rundir import RunDir
from forethink.training import probe
from forethink.training.checkpoints import starting_point
from forethink.training.warmup import _Stage, run_warmup
from forethink.types import ForethinkError
from trainers import prepare, train_settings


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_llama, smollm2_tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("home")
    prepare(folder / "run", tiny_llama, smollm2_tokenizer, documents=12)
    return folder


def stage(home: Path, name: str, *overrides: str) -> _Stage:
    config = train_settings(home / "run", "warmup.examples=12", "warmup.probe_positions=2", *overrides)
    run = RunDir(home / name, "warmup", config, ("warmup",))
    return _Stage(config, run, home / "run" / "problems", *starting_point(config.model, config.warmup.start))


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


FIXED = (
    "warmup.lora_rank=2", "rollout.max_tokens=4", "warmup.examples=12", "warmup.batch=4", "warmup.micro_batch=4",
    "warmup.probe_positions=2",
)  # fmt: skip


def warm(home: Path, name: str, *overrides: str) -> Path:
    """A short warm start in a run of its own, on the same problems; its model's folder."""
    shutil.copytree(home / "run", home / name)
    return run_warmup(train_settings(home / name, *FIXED, *overrides)) / "model"


def test_a_stopped_warm_start_asks_for_nothing_again(home, monkeypatch) -> None:
    sizes = (
        "warmup.examples=60", "warmup.batch=1", "warmup.micro_batch=1", "warmup.probe_every=20", "warmup.replay=0.1",
        "warmup.skip_box_rate=none",
    )  # fmt: skip
    whole = warm(home, "whole_run", *sizes)
    begun = _Stage.probe

    def stopped(self, step: int):
        if step == 60:
            raise KeyboardInterrupt
        return begun(self, step)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(_Stage, "probe", stopped)
        warm(home, "stopped", *sizes)
    probed: list[int] = []
    monkeypatch.setattr(_Stage, "probe", lambda self, step: (probed.append(step), begun(self, step))[1])
    monkeypatch.setattr(_Stage, "_made", lambda self: pytest.fail("the examples are made again"))
    config = train_settings(home / "stopped", *FIXED, *sizes)
    resumed = run_warmup(config) / "model"
    assert probed == [60, 66]  # checkpoints are kept every 50 steps
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, resumed))
    assert all(torch.equal(one[key], two[key]) for key in one)
    ours, theirs = (json.loads((folder.parent / "run.json").read_text())["result"] for folder in (resumed, whole))
    for result in (ours, theirs):
        del result["seconds"]
    assert ours == theirs
    assert not (resumed.parent / "checkpoints").exists()


def test_a_second_warm_start_goes_on_with_the_firsts_adapter(home, capsys) -> None:
    first = warm(home, "first", "warmup.learning_rate=1e-2")
    name = train_settings(home / "run").model.name
    begun = {"warmup.start": str(first), "warmup.skip_box_rate": "none"}
    again = [f"{key}={value}" for key, value in begun.items()]
    still = warm(home, "still", *again, "warmup.learning_rate=1e-30")
    second = warm(home, "second", *again, "warmup.learning_rate=1e-2")
    one, same, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, still, second))
    assert all(torch.allclose(one[key], same[key], atol=1e-6) for key in one)
    assert any(not torch.allclose(one[key], two[key], atol=1e-4) for key in one)
    # The second one's candidates are the warmed policy's own, not those of the policy below the adapter.
    for folder in (first, second):
        made = stage(home, f"asked {folder.parent.parent.name}", f"warmup.start={folder}", "model.dtype=float32")
        policy = load_model(name, adapter=str(folder), dtype="float32", device="cpu")
        contexts = [[*made.bos, *problem.context_ids] for problem in made.problems[:4]]
        own = [made.table[policy(input_ids=torch.tensor([ids])).logits[0, -1].argmax()] for ids in contexts]
        assert [made.table[c.ids[0]] for c in made._candidates(made.problems[:4], 1)] == own


def test_a_warm_start_is_skipped_by_its_starts_box_rate_unless_told_otherwise(home, capsys) -> None:
    first = warm(home, "skipping", "warmup.skip_box_rate=0")
    assert not first.exists() and "warm start skipped" in capsys.readouterr().out
    assert warm(home, "never", "warmup.skip_box_rate=none").exists()


def test_an_adapter_of_another_rank_is_refused_or_merged(home) -> None:
    first = warm(home, "rank2")
    with pytest.raises(ForethinkError, match=r"set warmup\.lora_rank to its rank, to go on with it, or to 0"):
        warm(home, "rank3", f"warmup.start={first}", "warmup.lora_rank=3", "warmup.skip_box_rate=none")
    with pytest.raises(ForethinkError, match=str(first)):
        warm(home, "rank4", f"model.adapter={first}", "warmup.lora_rank=4", "warmup.skip_box_rate=none")
    whole = warm(home, "whole", f"warmup.start={first}", "warmup.lora_rank=0", "warmup.skip_box_rate=none")
    assert (whole / "model.safetensors").exists()

"""The dry run's formulas, held against the real packing, a real model's memory and a real run's own count."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forethink import cli
from forethink.config import load_config
from forethink.dryrun import count_flops, count_memory, group_packs, lengths_of, model_sizes, sampled_groups
from forethink.packing import pack
from forethink.types import ForethinkError
from trainers import prepare, train_settings

RECIPES = Path(__file__).parents[1] / "recipes"
PAPER = str(RECIPES / "paper_14b.toml")


def test_the_papers_recipe_is_dry_run_without_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--dry-run", "--config", PAPER, "--gpus", "64"]) == 0
    text = capsys.readouterr().out
    assert "14.77 billion weights" in text and "1000 steps of 256 problems, 8 completions each" in text
    assert "completions of 8192" in text and "GPU-hours" in text and "hours on 64 GPU(s)" in text
    assert not Path("runs/paper_14b").exists()


def test_the_papers_figures_by_hand() -> None:
    """Qwen2.5-14B: 48 layers of 5,120; attention 40 heads over 8 of 128; feed-forward 13,824."""
    config = load_config(PAPER)
    sizes = model_sizes(config)
    layer = 5120 * (5120 + 2 * 1024) + 5120 * 5120 + 3 * 5120 * 13824
    norms = (2 * 48 + 1) * 5120
    assert sizes.flops.body == 2 * 48 * layer
    assert sizes.parameters == 48 * layer + 2 * 152064 * 5120 + norms  # Qwen's biases, 344,064, are left out
    assert sizes.cache == 2 * 2 * 48 * 1024
    assert sizes.flops.pair == 4 * 48 * 40 * 128 and sizes.flops.head == 2 * 152064 * 5120
    lengths = lengths_of(config, prompt=2000, response=1000)
    flops = count_flops(config, sizes, lengths, degenerate=0.5)
    # 500 steps of 256 groups, half of them with a signal; then four refills allowed, one needed.
    assert flops["sampled"] == 500 * 256 + 500 * 512 and flops["trained"] == 500 * 128 + 500 * 256
    assert flops["generated"] == flops["sampled"] * 8 * 1000
    linear = 2 * 48 * layer * (2000 + 8 * 999) + 2 * 152064 * 5120 * (1 + 8 * 999)
    pairs = 2000 * 2000 + 8 * (999 * 2000 + 1000 * 999 // 2)
    assert flops["rollout"] + flops["discarded"] == flops["sampled"] * (linear + 4 * 48 * 40 * 128 * pairs)
    assert flops["scores"] == flops["entropy"] == 0
    assert flops["total"] == flops["rollout"] + flops["discarded"] + flops["update"]


@pytest.mark.parametrize("prompt", [5, 100, 400, 3000])
@pytest.mark.parametrize("response", [1, 40, 300, 2000])
@pytest.mark.parametrize("hidden", [48, 576, 5120])
def test_trees_are_those_of_the_packing(prompt: int, response: int, hidden: int) -> None:
    group = 6
    sequences = [[*range(prompt), *range(10000 * (i + 1), 10000 * (i + 1) + response)] for i in range(group)]
    packs = pack(sequences, [prompt] * group, 4096, True, 2 * hidden)
    assert group_packs(prompt, response, group, hidden) == [(len(p.ids_t), len(p.members)) for p in packs]


@pytest.mark.parametrize(
    ("overrides", "degenerate", "expected"),
    [
        (["train.dynamic_sampling_from=none"], 0.5, (16, 8)),
        (["train.dynamic_sampling_from=0", "train.refill=2"], 0.5, (32, 16)),
        (["train.dynamic_sampling_from=0", "train.refill=2"], 0.75, (48, 12)),
        (["train.dynamic_sampling_from=0", "train.refill=0"], 0.25, (16, 12)),
        (["train.dynamic_sampling_from=8"], 0.5, (16, 8)),
        (["train.dynamic_sampling_from=0"], 0.0, (16, 16)),
    ],
)
def test_refilling_samples_more(overrides: list[str], degenerate: float, expected: tuple[float, float]) -> None:
    config = load_config(None, ["train.problems=16", *overrides])
    assert sampled_groups(config, 7, degenerate) == expected


def test_a_finished_run_counted_the_same(tmp_path: Path, tiny_llama: Any, smollm2_tokenizer: Any) -> None:
    """FLOPs of a real run against the formula at that run's mean lengths and share of groups without signal."""
    from forethink.training.train import run_train

    run = tmp_path / "run"
    prepare(run, tiny_llama, smollm2_tokenizer)
    config = train_settings(run, "train.micro_batch=1")
    folder = run_train(config)
    spent = json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    groups = defaultdict(list)
    for line in lines:
        groups[line["step"], line["problem"]].append(line["reward"])
    degenerate = np.mean([len(set(rewards)) == 1 for rewards in groups.values()])
    lengths = lengths_of(
        config, round(np.mean([line["prompt_tokens"] for line in lines])), round(np.mean([x["tokens"] for x in lines]))
    )
    sizes = model_sizes(config)
    flops = count_flops(config, sizes, lengths, float(degenerate))
    assert degenerate < 1  # a random policy on some processors has none
    assert flops["sampled"] == len(groups) == config.train.steps * config.train.problems
    assert flops["generated"] == pytest.approx(spent["tokens/generated"], rel=0.02)
    # The engine shares the prefixes of a document's problems, and counts that; the formula knows nothing of it.
    assert spent["flops/rollout"] <= flops["rollout"] + flops["discarded"] <= 1.12 * spent["flops/rollout"]
    assert flops["update"] == pytest.approx(spent["flops/update"], rel=0.05)
    assert flops["updated"] == pytest.approx(spent["tokens/update"], rel=0.05)


def test_memory_of_a_real_model(tmp_path: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(tmp_path)
    config = load_config(None, [f"model.name={tmp_path}", "train.precision=fp32", "rollout.batch=16"])
    sizes = model_sizes(config)
    weights = sum(p.numel() for p in tiny_llama.parameters())
    assert sizes.parameters == sizes.trained == weights and sizes.source == str(tmp_path)
    ids = torch.arange(200)[None]
    cache = tiny_llama(ids, use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert 2 * sizes.cache * 200 == held  # fp32 here, bf16 in `cache`
    kept: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in tiny_llama.parameters()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        tiny_llama.base_model(ids, use_cache=False).last_hidden_state.sum()
    assert 0.5 < 2 * sizes.activations * 200 / sum(kept.values()) < 2
    memory = count_memory(config, sizes, lengths_of(config))
    assert memory["master weights"] == memory["gradients"] == memory["weights that sample"] == 4 * weights
    assert memory["Adam's two moments"] == 8 * weights and memory["bf16 copy under autocast"] == 0
    lengths = lengths_of(config)
    rows = 2 * lengths.longest_prompt + 16 * lengths.longest_response  # two groups of eight at once
    assert memory["keys and values"] == 2 * sizes.cache * rows


def test_lora_trains_few_weights(tmp_path: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(tmp_path)
    whole = model_sizes(load_config(None, [f"model.name={tmp_path}"]))
    few = model_sizes(load_config(None, [f"model.name={tmp_path}", "train.lora_rank=4"]))
    assert few.parameters == whole.parameters and few.trained < whole.trained / 10


def test_rewards_that_ask_the_policy_cost_something(tmp_path: Path, tiny_llama: Any) -> None:
    tiny_llama.save_pretrained(tmp_path)
    config = load_config(None, [f"model.name={tmp_path}", "reward.name=information_gain"])
    sizes, lengths = model_sizes(config), lengths_of(config)
    flops = count_flops(config, sizes, lengths, 0.5, corpus_tokens=1000)
    assert flops["scores"] > 0
    assert flops["entropy"] == sizes.flops.forward(1000, 1000 * config.score.window, 1000)


def test_lengths_are_bounded_by_the_recipe() -> None:
    config = load_config(PAPER)
    lengths = lengths_of(config)
    assert 3800 < lengths.prompt <= 4096 and lengths.response == 8192  # the paper's longest prompt and response
    assert lengths_of(config, 10**6, 10**6) == lengths
    assert lengths_of(config, 100, 50).prompt == 100 and lengths_of(config, 100, 50).longest_response == 8192


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--model", "no/such-model"], "or write its sizes into the recipe, as [dry_run] shape"),
        (["dry_run.shape={layers=2}"], "'hidden' is missing"),
        (["--config", PAPER, "dry_run.shape.depth=3"], "'depth' is unknown"),
        (["--config", PAPER, "--degenerate", "1"], "--degenerate is a share"),
        (["--config", PAPER, "--gpus", "0"], "--gpus is 0"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "--dry-run", *arguments]) == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_a_bad_shape_is_a_forethink_error() -> None:
    with pytest.raises(ForethinkError, match="vocabulary"):
        model_sizes(load_config(None, ["dry_run.shape={layers=2, hidden=8, heads=2, kv_heads=1, intermediate=8}"]))

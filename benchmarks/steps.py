"""The training step and its update beside TRL's, with memory and the two gradients' cosine."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.common import Size, compared, policy, problems, prompts, rollout_bound, tokenizer_of
from benchmarks.trainers import sample
from benchmarks.worker import Worker
from forethink.flops import Flops


def _pairs(sides: Mapping[str, Worker], pairs: int, **request: Any) -> list[dict[str, dict[str, Any]]]:
    """Steps in turn, A B A B …: every pair's answers by side."""
    for side in sides.values():
        side.wait()
    return [{name: side.ask(**request) for name, side in sides.items()} for _ in range(pairs)]


def _summary(pairs: list[dict[str, dict[str, Any]]], what: str = "") -> dict[str, Any]:
    """Medians, ratios and peak memory of whole steps, or of ``what`` in them."""
    by_side = {name: [pair[name] for pair in pairs] for name in pairs[0]}
    result = compared({n: [a[f"{what}seconds"] for a in own] for n, own in by_side.items()}, "ours", "stock")
    result["peak_gib"] = {name: max(a[f"{what}peak_gib"] for a in own) for name, own in by_side.items()}
    result["sampled_tokens"] = {name: [a["tokens"] for a in own] for name, own in by_side.items()}
    return result


def _useful(size: Size) -> float:
    """Operations the update cannot do without: three passes over each prompt once and over all completions.

    A third of the least: forward, and backward for inputs and for weights. The head runs on completion tokens; a pair
    of tokens counts where one sees the other.
    """
    model = policy(size, torch.bfloat16)
    cost = Flops.of(model)
    step = (size.longest - size.shortest) / max(size.problems - 1, 1)
    total = 0
    for i in range(size.problems):
        p, r, g = size.shortest + round(i * step), size.tokens, size.group
        total += cost.forward(p + g * r, p * p // 2 + g * r * p + g * r * r // 2, g * r)
    return 3.0 * total


def step(size: Size, line: Mapping[str, float]) -> dict[str, Any]:
    """The part ``step``: rollout, reward and update; and the update in it, which is all but the sampling.

    Before them a pair with natural endings and some groups without signal; after them, ours alone with full lengths
    and such groups, beside the steps of TRL above: it trains all groups, so its time does not hang on their rewards.
    """
    share = round(size.degenerate, 2)
    with Worker("ours", size) as ours, Worker("stock", size) as stock:
        sides = {"ours": ours, "stock": stock}
        for side in sides.values():
            side.wait()
        first = ours.ask(mode="step")["seconds"]  # compiles
        if size.device != "cpu":  # on a CPU, TRL's first step differs by seconds, and takes many minutes
            stock.ask(mode="step")
        natural = _pairs(sides, 1, mode="natural", degenerate=share)
        whole = _pairs(sides, size.pairs, mode="step")
        dull = [ours.ask(mode="step", degenerate=share)["seconds"] for _ in range(size.pairs)]
    steps, updates = _summary(whole), _summary(whole, "update_")
    operations = _useful(size)
    least = operations / (line["bf16_tflops"] * 1e12)
    updates |= {
        "useful_operations": operations,
        "roofline_fraction": {name: least / taken for name, taken in updates["median_seconds"].items()},
    }
    return {
        "step_speedup": steps["ratio"],
        "update_speedup": updates["ratio"],
        "step": {**steps, "first_seconds": first},
        "update": updates,
        "step_degenerate": {
            **compared({"ours": dull, "stock": steps["seconds"]["stock"]}, "ours", "stock"), "degenerate_groups": share
        },
        "step_natural": {**_summary(natural), "degenerate_groups": share},
    }  # fmt: skip


def gradient(size: Size, line: Mapping[str, float]) -> dict[str, Any]:
    """The part ``gradient``: cosine of the two gradients in fp32 on the same completions of four problems."""
    del line
    small = replace(size, problems=min(4, size.problems))
    gradients = {}
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "given.json"
        sample(small, given)
        for side in ("ours", "stock"):
            path = str(Path(folder) / f"{side}.safetensors")
            with Worker(side, small, given=str(given), precision="fp32") as worker:
                worker.ask(mode="update", gradient=path)
            gradients[side] = load_file(path)
    ours, stock = gradients["ours"], gradients["stock"]
    if ours.keys() != stock.keys():
        raise RuntimeError(f"gradients of other parameters: {sorted(ours.keys() ^ stock.keys())[:3]}")
    dot, mine, theirs = (
        sum(float((a[name].double() * b[name].double()).sum()) for name in ours)
        for a, b in ((ours, stock), (ours, ours), (stock, stock))
    )
    return {
        "gradient_cosine": dot / (mine * theirs) ** 0.5,
        "gradient": {"problems": small.problems, "norms": {"ours": mine**0.5, "stock": theirs**0.5}},
    }


def rollout(size: Size, line: Mapping[str, float]) -> dict[str, Any]:
    """The part ``rollout``: ours, ``generate``, and vLLM where its interpreter is named, in turn."""
    tokenizer = tokenizer_of(size)
    model = policy(size, torch.bfloat16)
    lengths = [len(prompt) for prompt in prompts(problems(size, tokenizer), tokenizer)]
    bound = rollout_bound(model, lengths, size.group, size.tokens, line)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"engine": Worker("engine", size), "generate": Worker("generate", size)}
        if size.vllm is not None:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            sides["vllm"] = Worker("vllm", size, python=size.vllm, folder=folder)
        del model
        for side in sides.values():
            side.wait()
        for side in sides.values():
            side.ask(go=True)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        for _ in range(size.pairs):
            for name, side in sides.items():
                answers[name].append(side.ask(go=True))
        for side in sides.values():
            side.__exit__()
    taken = {name: [a["seconds"] for a in own] for name, own in answers.items()}
    ours = statistics.median(taken["engine"])
    result: dict[str, Any] = {
        "tokens_per_second": {
            name: statistics.median([a["tokens"] / a["seconds"] for a in own]) for name, own in answers.items()
        },
        "peak_gib": {name: max(a["peak_gib"] for a in own) for name, own in answers.items()},
        "prompt_tokens": sum(lengths),
        "least_seconds": bound["seconds"],
        "operations": bound["operations"],
        "mfu": bound["operations"] / ours / (line["bf16_tflops"] * 1e12),
    }
    top = {"rollout_roofline_fraction": bound["seconds"] / ours}
    for name in set(taken) - {"engine"}:
        result[name] = compared(taken, "engine", name)
        top[f"rollout_vs_{name}"] = result[name]["ratio"]
    return {**top, "rollout": result}

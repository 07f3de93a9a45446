"""Evaluation of many positions of one document, beside its least cost and beside a loop over positions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.common import (
    Size,
    alternate,
    clock,
    document_problems,
    policy,
    prompts,
    seconds,
    tokenizer_of,
)
from forethink.device import keep_memory
from forethink.evaluate.accuracy import plain_pass
from forethink.rollout.decoders import GroupDecoder
from forethink.rollout.transformers_engine import TransformersEngine
from forethink.tokens import document_start
from forethink.types import Problem

LOOPED = 8  # positions that the loop runs; its time is scaled to all


class _Watch:
    """Tells the engine's decoding from its prefill."""

    def __init__(self, device: str) -> None:
        self.device, self.prefill, self._plain = device, 0.0, GroupDecoder.arrange

    def __enter__(self) -> _Watch:
        def arrange(decoder: GroupDecoder, keep: Any, asked: Any, group: int) -> torch.Tensor:
            begin = clock(self.device)
            out = self._plain(decoder, keep, asked, group)
            self.prefill += clock(self.device) - begin
            return out

        GroupDecoder.arrange = arrange  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        GroupDecoder.arrange = self._plain  # type: ignore[method-assign]


def _loop(model: Any, asked: list[list[int]], chosen: list[Problem], size: Size, pad: int) -> None:
    """Plain arg-max and one sampled completion, position by position, as a short script would do it."""
    step = max(len(asked) // LOOPED, 1)
    with torch.inference_mode():
        for prompt, problem in list(zip(asked, chosen, strict=True))[::step]:
            model(input_ids=torch.tensor([problem.context_ids], device=size.device)).logits[0, -1].argmax()
            ids = torch.tensor([prompt], device=size.device)
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=0.8, top_k=0,
                min_new_tokens=size.tokens, max_new_tokens=size.tokens, pad_token_id=pad,
            )  # fmt: skip


def run(size: Size, line: Mapping[str, float]) -> dict[str, Any]:
    """The part: figures and what stands at the top level of the results."""
    del line
    keep_memory(size.device)
    tokenizer, model = tokenizer_of(size), policy(size, torch.bfloat16)
    chosen = document_problems(size, tokenizer)
    asked, names = prompts(chosen, tokenizer), [problem.id for problem in chosen]
    engine = TransformersEngine(
        model, tokenizer, group=1, max_tokens=size.tokens, batch=size.positions, fixed_length=True
    )
    document = torch.tensor([chosen[-1].context_ids], device=size.device)
    decoding: list[float] = []

    def whole() -> float:
        with _Watch(size.device) as watch:
            plain = seconds(lambda: plain_pass(model, chosen, document_start(tokenizer)), size.device)
            sampled = seconds(lambda: engine.generate(asked, names, 0), size.device)
        decoding.append(sampled - watch.prefill)
        return plain + sampled

    @torch.inference_mode()
    def prefill() -> None:
        model(input_ids=document, use_cache=False, logits_to_keep=1)

    taken = alternate({"evaluation": whole, "prefill": lambda: seconds(prefill, size.device)}, size.pairs)
    ratios = [
        all_ / (once + decoded)
        for all_, once, decoded in zip(taken["evaluation"], taken["prefill"], decoding[1:], strict=True)
    ]
    pad = tokenizer.pad_token_id
    scale = len(asked) / len(asked[:: max(len(asked) // LOOPED, 1)])
    loop = scale * seconds(lambda: _loop(model, asked, chosen, size, pad), size.device)
    ratio = statistics.median(ratios)
    return {
        "evaluation_cost_ratio": ratio,
        "evaluation": {
            "positions": size.positions, "document_tokens": size.document, "seconds": taken,
            "decoding_seconds": decoding[1:], "ratios": ratios, "loop_seconds": loop,
            "loop_over_ours": loop / statistics.median(taken["evaluation"]),
        },
    }  # fmt: skip

"""The three ways to sample that are compared, each in a process of its own: same prompts, same lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.common import Size, clock, memory, policy, problems, prompts, reset_peak, tokenizer_of
from benchmarks.worker import Channel

TEMPERATURE = 0.8


def _serve(size: Size, channel: Channel, work: Callable[[int], int]) -> None:
    """Sample at every request and say how long it took; ``work`` takes a seed and returns the tokens it made."""
    channel.send(ready=True)
    seed = 0
    while channel.receive() is not None:
        seed += 1
        reset_peak(size.device)
        begin = clock(size.device)
        tokens = work(seed)
        taken = clock(size.device) - begin
        channel.send(seconds=taken, tokens=tokens, peak_gib=memory(size.device)[1])


def engine(size: Size, channel: Channel) -> None:
    """forethink's transformers engine with its defaults. The prompts are prefilled anew at every call."""
    from forethink.models import keep_memory
    from forethink.rollout.transformers_engine import TransformersEngine

    if size.device == "cpu":
        keep_memory()
    tokenizer = tokenizer_of(size)
    chosen = problems(size, tokenizer)
    made = TransformersEngine(
        policy(size, torch.bfloat16), tokenizer, group=size.group, temperature=TEMPERATURE, max_tokens=size.tokens,
        batch=size.problems * size.group, fixed_length=True,
    )  # fmt: skip
    asked, names = prompts(chosen, tokenizer), [problem.id for problem in chosen]

    def work(seed: int) -> int:
        return sum(len(c.token_ids) for group in made.generate(asked, names, seed) for c in group)

    _serve(size, channel, work)


def generate(size: Size, channel: Channel) -> None:
    """transformers' ``generate``: one batch padded on the left, bf16, sampling, its default cache and attention."""
    tokenizer, model = tokenizer_of(size), policy(size, torch.bfloat16)
    asked = prompts(problems(size, tokenizer), tokenizer)
    wide = max(map(len, asked))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (wide - len(prompt)) + prompt for prompt in asked], device=size.device)
    mask = torch.tensor([[0] * (wide - len(prompt)) + [1] * len(prompt) for prompt in asked], device=size.device)

    @torch.inference_mode()
    def work(seed: int) -> int:
        torch.manual_seed(seed)
        out = model.generate(
            input_ids=ids, attention_mask=mask, do_sample=True, temperature=TEMPERATURE, top_k=0, top_p=1.0,
            num_return_sequences=size.group, min_new_tokens=size.tokens, max_new_tokens=size.tokens,
            pad_token_id=pad,
        )  # fmt: skip
        return int(out[:, wide:].numel())

    _serve(size, channel, work)


def vllm(size: Size, channel: Channel, folder: str) -> None:
    """vLLM through forethink's engine. Its prefix cache is emptied before every call, as new weights empty it."""
    from forethink.models import load_tokenizer
    from forethink.rollout.vllm_engine import VllmEngine

    tokenizer = load_tokenizer(folder)
    chosen = problems(size, tokenizer)
    options: dict[str, Any] = {"max_model_len": 2048, "dtype": "bfloat16"}
    made = VllmEngine(
        folder, tokenizer, group=size.group, temperature=TEMPERATURE, max_tokens=size.tokens,
        batch=size.problems * size.group, fixed_length=True, **options,
    )  # fmt: skip
    asked, names = prompts(chosen, tokenizer), [problem.id for problem in chosen]

    def work(seed: int) -> int:
        made.forget()
        return sum(len(c.token_ids) for group in made.generate(asked, names, seed) for c in group)

    _serve(size, channel, work)

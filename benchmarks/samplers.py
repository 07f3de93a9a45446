"""The three ways to sample that are compared, each in a process of its own: same prompts, same lengths."""

from __future__ import annotations

import os
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
    from forethink.device import keep_memory
    from forethink.rollout.transformers_engine import TransformersEngine

    keep_memory(size.device)
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
    """vLLM itself, as its users call it; its prefix cache is emptied before every call, as new weights empty it."""
    # In this process and on all cores: of two, its server's way would keep one for the server.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    from vllm import LLM, SamplingParams, TokensPrompt

    from forethink.models import load_tokenizer

    chosen = problems(size, tokenizer := load_tokenizer(folder))
    asked = [TokensPrompt(prompt_token_ids=prompt) for prompt in prompts(chosen, tokenizer)]
    options: dict[str, Any] = {}
    if size.device == "cpu":
        options["gpu_memory_utilization"] = 0.3  # of main memory, on a CPU; by default nearly all, and it must be free
    model = LLM(
        model=folder, dtype="bfloat16", max_model_len=2048, max_num_seqs=size.problems * size.group,
        enable_prefix_caching=True, skip_tokenizer_init=True, **options,
    )  # fmt: skip
    wanted = SamplingParams(
        n=size.group, temperature=TEMPERATURE, max_tokens=size.tokens, ignore_eos=True, detokenize=False
    )

    def work(seed: int) -> int:
        del seed  # one a request is slower
        if not model.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache")
        outputs = model.generate(asked, wanted, use_tqdm=False)
        return sum(len(one.token_ids) for output in outputs for one in output.outputs)

    _serve(size, channel, work)

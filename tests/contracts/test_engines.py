"""Every engine keeps the same promises."""

from __future__ import annotations

import functools
import importlib.util
import itertools

import pytest

from forethink.rollout import check_version
from forethink.rollout.scripted import ScriptedEngine
from forethink.rollout.transformers_engine import TransformersEngine
from forethink.tokens import token_bytes
from forethink.types import Finish

GROUP, MAX_TOKENS = 3, 12
PROMPTS = [[101, 102, 103], [7] * 30, [101, 102, 103, 104], [55]]
NAMES = ["d:1", "d:2", "e:1", "e:2"]


def _flat(groups):
    return list(itertools.chain.from_iterable(groups))


def _scripted(model, tokenizer, **options):
    del model

    def answer(problem: str, sample: int) -> bytes:
        return f"{problem} thinks. \\boxed{{{sample}}} and goes on".encode() * (1 + sample)

    return ScriptedEngine(answer, tokenizer, **options)


def _vllm(model, tokenizer, **options):
    from forethink.rollout.vllm_engine import VllmEngine

    return VllmEngine(model, tokenizer, max_model_len=256, **options)


ENGINES = {
    "scripted": _scripted,
    "transformers": functools.partial(TransformersEngine, batch=6),
    "transformers plain": functools.partial(TransformersEngine, batch=6, share_prompts=False),
    "vllm": _vllm,
}


def _stop(text: bytes) -> bool:
    return text.rstrip().endswith(b"}")


@pytest.fixture(params=list(ENGINES))
def make(request, tiny_llama, smollm2_tokenizer):
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")

    def engine(**options):
        options = {"group": GROUP, "max_tokens": MAX_TOKENS, "version": 3, "stop": _stop, **options}
        return ENGINES[request.param](tiny_llama, smollm2_tokenizer, **options)

    return engine


def test_groups_come_whole_and_in_order(make):
    groups = make().generate(PROMPTS, NAMES, seed=1)
    assert [[(c.problem, c.sample) for c in group] for group in groups] == [
        [(name, sample) for sample in range(GROUP)] for name in NAMES
    ]


def test_bytes_are_the_tokens_joined_and_the_end_adds_none(make, smollm2_tokenizer):
    table, end = token_bytes(smollm2_tokenizer), smollm2_tokenizer.eos_token_id
    for completion in _flat(make(max_tokens=40).generate(PROMPTS, NAMES, seed=1)):
        ids = completion.token_ids[:-1] if completion.token_ids[-1] == end else completion.token_ids
        assert end not in ids
        assert completion.text == b"".join(table[token] for token in ids)
        assert len(completion.logprobs) == len(completion.token_ids)
        assert all(logprob <= 1e-6 for logprob in completion.logprobs)


@pytest.mark.parametrize("max_tokens", [1, MAX_TOKENS, 60])
def test_the_finish_says_why(make, max_tokens, smollm2_tokenizer):
    end = smollm2_tokenizer.eos_token_id
    for completion in _flat(make(max_tokens=max_tokens).generate(PROMPTS, NAMES, seed=1)):
        assert 1 <= len(completion.token_ids) <= max_tokens
        stopped = completion.token_ids[-1] == end or _stop(completion.text)
        assert completion.finish == (Finish.STOP if stopped else Finish.LENGTH)
        if completion.finish == Finish.LENGTH:
            assert len(completion.token_ids) == max_tokens


def test_the_seed_decides(make):
    engine = make()
    first = engine.generate(PROMPTS, NAMES, seed=1)
    assert engine.generate(PROMPTS, NAMES, seed=1) == first
    reordered = make().generate(PROMPTS[::-1], NAMES[::-1], seed=1)[::-1]
    assert [[c.token_ids for c in group] for group in reordered] == [[c.token_ids for c in group] for group in first]
    if not isinstance(engine, ScriptedEngine):
        assert engine.generate(PROMPTS, NAMES, seed=2) != first
        assert len({c.token_ids for c in first[0]}) > 1  # samples of one group differ


def test_completions_carry_the_version(make, tiny_llama):
    engine = make()
    assert engine.version == 3
    check_version(_flat(engine.generate(PROMPTS, NAMES, seed=1)), 3)
    engine.load(tiny_llama, 4)
    assert engine.version == 4
    after = _flat(engine.generate(PROMPTS, NAMES, seed=1))
    check_version(after, 4)
    with pytest.raises(RuntimeError):
        check_version(after, 3)

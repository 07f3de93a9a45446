"""Every engine keeps the same promises."""

from __future__ import annotations

import copy
import functools
import importlib.util
import itertools

import pytest
import torch

from forethink.rollout import check_version
from forethink.rollout.scripted import ScriptedEngine
from forethink.rollout.transformers_engine import TransformersEngine
from forethink.tokens import token_bytes
from forethink.types import Finish

GROUP, MAX_TOKENS, TEMPERATURE = 3, 12, 0.8
PROMPTS = [[101, 102, 103], [7] * 70, [101, 102, 103, 104], [55]]  # one that fills blocks of a prefix cache
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

    return VllmEngine(model, tokenizer, max_model_len=256, kv_cache_memory_bytes=2**26, **options)


@functools.cache
def _wide(vocabulary: int):
    """A tiny decoder for vLLM: its kernels know heads of 32 and more."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


ENGINES = {
    "scripted": _scripted,
    "transformers": functools.partial(TransformersEngine, batch=6),
    "transformers plain": functools.partial(TransformersEngine, batch=6, share_prompts=False),
    "vllm": _vllm,
}


def _stop(text: bytes) -> bool:
    return text.rstrip().endswith(b"}")


@pytest.fixture(params=list(ENGINES))
def kind(request):
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    return request.param


@pytest.fixture
def policy(kind, tiny_llama, smollm2_tokenizer):
    return _wide(len(smollm2_tokenizer)) if kind == "vllm" else tiny_llama


@pytest.fixture
def make(kind, policy, smollm2_tokenizer):
    def engine(model=policy, **options):
        options = {"group": GROUP, "max_tokens": MAX_TOKENS, "version": 3, "stop": _stop, **options}
        return ENGINES[kind](model, smollm2_tokenizer, **options)

    return engine


def _check_logprobs(model, groups) -> None:
    """Fails unless every log-probability is that of a plain pass at the sampling temperature."""
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for completion in group:
            ids = torch.tensor([[*prompt, *completion.token_ids]])
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / TEMPERATURE
            plain = logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]
            assert torch.allclose(torch.tensor(completion.logprobs), plain, atol=1e-3)


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


def test_prompts_may_be_more_than_fits_in_one_pass(make):
    prompts = [[100 + i] * 200 for i in range(40)]  # 8,000 tokens; vLLM takes 4,096 at once
    groups = make(max_tokens=2).generate(prompts, [f"long:{i}" for i in range(40)], seed=1)
    assert [c.problem for c in _flat(groups)] == [f"long:{i}" for i in range(40) for _ in range(GROUP)]
    assert all(c.token_ids for c in _flat(groups))


def test_the_seed_decides(make):
    engine = make()
    first = engine.generate(PROMPTS, NAMES, seed=1)
    assert engine.generate(PROMPTS, NAMES, seed=1) == first
    reordered = make().generate(PROMPTS[::-1], NAMES[::-1], seed=1)[::-1]
    assert [[c.token_ids for c in group] for group in reordered] == [[c.token_ids for c in group] for group in first]
    if not isinstance(engine, ScriptedEngine):
        assert engine.generate(PROMPTS, NAMES, seed=2) != first
        assert len({c.token_ids for c in first[0]}) > 1  # samples of one group differ


def test_logprobs_are_those_of_the_sampling_distribution(kind, make, policy):
    if kind == "scripted":
        pytest.skip("it samples nothing")
    engine = make(temperature=TEMPERATURE)
    _check_logprobs(policy, engine.generate(PROMPTS, NAMES, seed=1))


@pytest.mark.parametrize("how", ["model", "state"])
def test_nothing_survives_a_change_of_weights(kind, make, policy, how):
    """Fails where a prefix cache or a copy of the old weights outlives `load`."""
    if kind == "scripted":
        pytest.skip("it samples nothing")
    engine = make(temperature=TEMPERATURE)
    _check_logprobs(policy, engine.generate(PROMPTS, NAMES, seed=1))
    other = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    engine.load(other if how == "model" else dict(other.named_parameters()), 4)
    _check_logprobs(other, engine.generate(PROMPTS, NAMES, seed=1))


def _eager_to_close(policy, tokenizer):
    """A copy of the policy that soon samples a closing brace: its row of the tied embeddings is long."""
    made = copy.deepcopy(policy)
    with torch.no_grad():
        made.get_input_embeddings().weight[tokenizer.encode("}", add_special_tokens=False)[0]] *= 20
    return made


def test_a_call_that_was_stopped_leaves_nothing_behind(kind, make, policy, smollm2_tokenizer):
    if kind == "scripted":
        pytest.skip("it samples nothing")
    model = _eager_to_close(policy, smollm2_tokenizer)
    stopped = []

    def stop(text: bytes) -> bool:
        if not stopped:
            stopped.append(text)
            raise KeyboardInterrupt
        return _stop(text)

    engine = make(model, stop=stop, max_tokens=60)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS, NAMES, seed=1)
    again = engine.generate(PROMPTS, NAMES, seed=1)
    assert again == make(model, max_tokens=60).generate(PROMPTS, NAMES, seed=1)
    assert all(completion.finish == Finish.STOP for completion in _flat(again))


def test_vllm_samples_no_further_than_the_box(kind, make, policy, smollm2_tokenizer, monkeypatch):
    if kind != "vllm":
        pytest.skip("of the vLLM engine")
    engine = make(_eager_to_close(policy, smollm2_tokenizer), max_tokens=180)
    core, steps = engine._llm.llm_engine, []
    step = core.step
    monkeypatch.setattr(core, "step", lambda: steps.append(1) or step())
    groups = engine.generate(PROMPTS, NAMES, seed=1)
    longest = max(len(completion.token_ids) for completion in _flat(groups))
    assert longest < 90 and len(steps) <= longest + len(PROMPTS) * GROUP  # prompts may be prefilled one by one
    assert not core.has_unfinished_requests()


def test_completions_carry_the_version(make, policy):
    engine = make()
    assert engine.version == 3
    check_version(_flat(engine.generate(PROMPTS, NAMES, seed=1)), 3)
    engine.load(policy, 4)
    assert engine.version == 4
    after = _flat(engine.generate(PROMPTS, NAMES, seed=1))
    check_version(after, 4)
    with pytest.raises(RuntimeError):
        check_version(after, 3)

"""The transformers engine samples what it says it samples, whatever it shares, drops or refills."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import itertools

import numpy as np
import pytest
import torch

from forethink.config import Rollout
from forethink.kernels import PackedLinears
from forethink.rollout import check_version, make_engine
from forethink.rollout.attention import GroupCache
from forethink.rollout.decoders import check_groups
from forethink.rollout.rows import uniforms
from forethink.rollout.transformers_engine import TransformersEngine
from forethink.types import Finish, ForethinkError

MODELS = ["tiny_llama", "tiny_gemma"]
TEMPERATURE = 0.8


def _flat(groups):
    return list(itertools.chain.from_iterable(groups))


def _prompts() -> list[list[int]]:
    """Lengths on both sides of the tiny Gemma's window of 16, two sharing a long prefix, two equal."""
    generator = torch.Generator().manual_seed(1)
    prompts = [torch.randint(5, 4000, (n,), generator=generator).tolist() for n in (7, 40, 23, 1)]
    return [*prompts, [*prompts[1][:30], 9, 8, 7], prompts[2]]


NAMES = [f"document:{i}" for i in range(6)]


def _engine(model, tokenizer, **options):
    return TransformersEngine(model, tokenizer, **{"group": 4, "max_tokens": 24, "batch": 12, **options})


def _plain_logprobs(model, prompt, completion):
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float() / TEMPERATURE
    return logits.log_softmax(-1).gather(-1, ids[0, len(prompt) :, None])[:, 0]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [4, 12, 24])  # refilled group by group, refilled, all at once (padded)
def test_logprobs_equal_a_teacher_forced_pass(name, share, batch, request, smollm2_tokenizer):
    model = request.getfixturevalue(name)
    engine = _engine(model, smollm2_tokenizer, batch=batch, share_prompts=share, stop=lambda text: len(text) > 60)
    assert engine.temperature == TEMPERATURE
    groups = engine.generate(_prompts(), NAMES, seed=3)
    assert engine.share_prompts == share  # no silent fallback
    for prompt, group in zip(_prompts(), groups, strict=True):
        for completion in group:
            expected = _plain_logprobs(model, prompt, completion)
            assert torch.allclose(torch.tensor(completion.logprobs), expected, atol=1e-4)


def _agree(model, prompt, one, other, seed) -> bool:
    """Whether two samples are the same, or part where a random number falls on the border between two tokens.

    Sums of 49,152 probabilities in another order differ in their last digits, and a border lies every 2e-5.
    """
    at = next((i for i, pair in enumerate(zip(one.token_ids, other.token_ids, strict=True)) if len(set(pair)) > 1), -1)
    if at < 0:
        return one.finish == other.finish
    ids = torch.tensor([[*prompt, *one.token_ids[:at]]])
    with torch.no_grad():
        cumulative = (model(input_ids=ids).logits[0, -1].double() / TEMPERATURE).softmax(-1).cumsum(-1)
    low, high = sorted((one.token_ids[at], other.token_ids[at]))
    drawn = uniforms(seed, one.problem, one.sample, 24)[at]
    return abs(float(cumulative[low]) - drawn) < 1e-6 and abs(float(cumulative[high - 1]) - drawn) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_no_sample_depends_on_what_else_is_in_the_batch(name, request, smollm2_tokenizer):
    model = request.getfixturevalue(name)
    together = _engine(model, smollm2_tokenizer, batch=24).generate(_prompts(), NAMES, seed=3)
    refilled = _engine(model, smollm2_tokenizer, batch=8).generate(_prompts(), NAMES, seed=3)
    plain = _engine(model, smollm2_tokenizer, share_prompts=False).generate(_prompts(), NAMES, seed=3)
    alone = [
        _engine(model, smollm2_tokenizer).generate([prompt], [name], seed=3)[0]
        for prompt, name in zip(_prompts(), NAMES, strict=True)
    ]
    for other in (refilled, plain, alone):
        for prompt, ours, theirs in zip(_prompts(), together, other, strict=True):
            for one, same in zip(ours, theirs, strict=True):
                assert _agree(model, prompt, one, same, seed=3)
    assert together[2] != together[5]  # the same prompt under another problem's name has other random numbers


@pytest.mark.parametrize("name", MODELS)
def test_rows_that_end_leave_and_the_others_go_on_unchanged(name, request, smollm2_tokenizer):
    """Random completions stop at many different lengths here, so rows are dropped and groups are refilled often.

    In fp64: other batches are other roundings, and in fp32 one may carry a uniform number over a token's edge.
    """
    model = copy.deepcopy(request.getfixturevalue(name)).double()
    free = _engine(model, smollm2_tokenizer, fixed_length=True).generate(_prompts(), NAMES, seed=5)
    assert {len(c.token_ids) for group in free for c in group} == {24}
    stopping = _engine(model, smollm2_tokenizer, batch=8)
    stopping._ending.stop_ids = frozenset(range(0, 49152, 7))
    groups = stopping.generate(_prompts(), NAMES, seed=5)
    lengths = {len(c.token_ids) for group in groups for c in group}
    assert len(lengths) > 5
    for completion, longer in zip(_flat(groups), _flat(free), strict=True):
        assert completion.token_ids == longer.token_ids[: len(completion.token_ids)]
        ended = completion.token_ids[-1] % 7 == 0
        assert all(token % 7 for token in completion.token_ids[:-1])
        assert completion.finish == (Finish.STOP if ended else Finish.LENGTH)


def test_more_tokens_than_the_first_buffer_holds(tiny_llama, smollm2_tokenizer):
    engine = _engine(tiny_llama, smollm2_tokenizer, group=2, max_tokens=150, fixed_length=True)
    prompt = _prompts()[0]
    (group,) = engine.generate([prompt], ["a"], seed=0)
    for completion in group:
        assert len(completion.token_ids) == 150
        assert torch.allclose(
            torch.tensor(completion.logprobs), _plain_logprobs(tiny_llama, prompt, completion), atol=1e-4
        )


def _perturbed(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    return other


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", ["model", "state", "in place"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_survives_a_change_of_weights(name, how, dtype, request, smollm2_tokenizer):
    """Fails where a prefix cache, packed weights or a copy of the old weights outlives `load`."""
    model = copy.deepcopy(request.getfixturevalue(name))
    other = _perturbed(model)
    engine = _engine(model, smollm2_tokenizer, dtype=dtype)
    before = engine.generate(_prompts(), NAMES, seed=3)
    if how == "model":
        engine.load(other, 1)
    elif how == "state":
        engine.load(other.state_dict(), 1)
    else:  # as a trainer does: the same object, new numbers
        model.load_state_dict(other.state_dict())
        engine.load(model, 1)
    after = engine.generate(_prompts(), NAMES, seed=3)
    fresh = _engine(other, smollm2_tokenizer, dtype=dtype, version=1).generate(_prompts(), NAMES, seed=3)
    assert after == fresh
    assert [c.token_ids for c in _flat(after)] != [c.token_ids for c in _flat(before)]
    assert {c.weights for c in _flat(before)} == {0} and {c.weights for c in _flat(after)} == {1}


def test_a_state_dict_never_reaches_the_callers_model(tiny_llama, smollm2_tokenizer):
    before = copy.deepcopy(tiny_llama.state_dict())
    engine = _engine(tiny_llama, smollm2_tokenizer)
    engine.load(_perturbed(tiny_llama).state_dict(), 1)
    assert all(torch.equal(value, before[name]) for name, value in tiny_llama.state_dict().items())
    with pytest.raises(KeyError, match="lack"):
        engine.load({}, 2)


def test_a_cast_copy_keeps_the_rotary_frequencies_in_fp32(tiny_llama, smollm2_tokenizer):
    engine = _engine(tiny_llama, smollm2_tokenizer, dtype=torch.bfloat16)
    assert engine.model is not tiny_llama and engine.model.dtype == torch.bfloat16
    assert engine.model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert engine.model.lm_head.weight is engine.model.model.embed_tokens.weight  # still tied


def test_the_callers_model_comes_back_as_it_was(tiny_llama, smollm2_tokenizer):
    model = copy.deepcopy(tiny_llama).train()
    _engine(model, smollm2_tokenizer).generate(_prompts(), NAMES, seed=0)
    assert model.training
    assert model.config._attn_implementation == tiny_llama.config._attn_implementation
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()  # nothing left that blocks training


def test_versions_are_refused(tiny_llama, smollm2_tokenizer):
    completions = _engine(tiny_llama, smollm2_tokenizer, version=4, max_tokens=2).generate([[5]], ["a"], 0)[0]
    check_version(completions, 4)
    with pytest.raises(RuntimeError, match="weights 4, not from the trainer's 5"):
        check_version([*completions, dataclasses.replace(completions[0], weights=5)], 5)


@pytest.mark.parametrize("name", MODELS)
def test_the_first_use_check_passes_and_finds_faults(name, request, monkeypatch, capsys, smollm2_tokenizer):
    model = request.getfixturevalue(name)
    assert check_groups(model, _prompts()) is None
    right = GroupCache.begin
    monkeypatch.setattr(GroupCache, "begin", lambda cache: right(cache) + 7)  # positions off: a typical cache fault
    assert "differ" in (check_groups(model, _prompts()) or "")
    engine = _engine(model, smollm2_tokenizer)
    groups = engine.generate(_prompts()[:1], NAMES[:1], seed=0)
    assert capsys.readouterr().err.count("warning:") == 1
    expected = _plain_logprobs(model, _prompts()[0], groups[0][0])
    assert torch.allclose(torch.tensor(groups[0][0].logprobs), expected, atol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are captured on a GPU")
@pytest.mark.parametrize("name", MODELS)
def test_captured_steps_are_the_steps(name, request, smollm2_tokenizer):
    model = copy.deepcopy(request.getfixturevalue(name)).to("cuda")
    engine = _engine(model, smollm2_tokenizer, stop=lambda text: len(text) > 60, max_tokens=70)
    captured = engine.generate(_prompts(), NAMES, seed=3)
    assert engine._captures and engine.share_prompts  # neither failed
    engine._captures = False
    launched = engine.generate(_prompts(), NAMES, seed=3)
    assert [c.token_ids for c in _flat(captured)] == [c.token_ids for c in _flat(launched)]
    for one, other in zip(_flat(captured), _flat(launched), strict=True):
        assert np.allclose(one.logprobs, other.logprobs, atol=1e-5)


def test_attention_that_cannot_be_chosen_falls_back(tiny_llama, monkeypatch, capsys, smollm2_tokenizer):
    model = copy.deepcopy(tiny_llama)
    monkeypatch.setattr(type(model), "_can_set_attn_implementation_cached_value", False, raising=False)
    monkeypatch.setattr(type(model.model), "_can_set_attn_implementation_cached_value", False, raising=False)
    engine = _engine(model, smollm2_tokenizer)
    groups = engine.generate(_prompts(), NAMES, seed=3)
    assert "one group is decoded after another" in capsys.readouterr().err
    assert groups == _engine(tiny_llama, smollm2_tokenizer, share_prompts=False).generate(_prompts(), NAMES, seed=3)


def test_bf16_rounds_and_no_more(tiny_llama, smollm2_tokenizer):
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    engine = _engine(model, smollm2_tokenizer)
    for prompt, group in zip(_prompts(), engine.generate(_prompts(), NAMES, seed=3), strict=True):
        for completion in group:
            error = torch.tensor(completion.logprobs) - _plain_logprobs(model, prompt, completion)
            assert error.abs().mean() < 0.05
    assert engine.share_prompts


def test_rearranged_weights_follow_a_change_in_place_and_leave_no_trace(tiny_llama):
    model = copy.deepcopy(tiny_llama).to(torch.bfloat16)
    layer = model.model.layers[0].mlp.up_proj
    packed, x = PackedLinears(model), torch.randn(5, 48).to(torch.bfloat16)
    results = []
    with torch.no_grad():
        for _ in range(2):
            with packed.use():
                results.append(layer(x))
            assert "forward" not in layer.__dict__
            assert torch.allclose(results[-1], layer(x), rtol=0.02, atol=0.02)
            layer.weight.mul_(-1)
    assert not torch.allclose(results[0], results[1], rtol=0.02, atol=0.02)


def test_greedy_takes_the_most_probable_token(tiny_llama, smollm2_tokenizer):
    engine = _engine(tiny_llama, smollm2_tokenizer, greedy=True, max_tokens=8)
    prompt = _prompts()[1]
    first, second, *_ = engine.generate([prompt], ["a"], seed=0)[0]
    assert first.token_ids == second.token_ids
    ids = list(prompt)
    for token in first.token_ids:
        assert tiny_llama(input_ids=torch.tensor([ids])).logits[0, -1].argmax() == token
        ids.append(token)


def test_bad_input_is_refused(tiny_llama, smollm2_tokenizer):
    engine = _engine(tiny_llama, smollm2_tokenizer)
    with pytest.raises(ValueError, match="empty"):
        engine.generate([[]], ["a"], 0)
    with pytest.raises(ValueError, match="2 prompts for 1"):
        engine.generate([[5], [6]], ["a"], 0)
    assert engine.generate([], [], 0) == []
    with pytest.raises(ForethinkError, match="ScriptedEngine"):
        make_engine(Rollout(engine="scripted"), tiny_llama, smollm2_tokenizer)


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_vllm_absent_is_one_sentence_with_a_remedy(tiny_llama, smollm2_tokenizer):
    with pytest.raises(ForethinkError, match="pip install vllm"):
        make_engine(Rollout(engine="vllm"), tiny_llama, smollm2_tokenizer)


@pytest.mark.model
def test_the_real_model_in_bf16(smollm2_folder, smollm2_tokenizer):
    from forethink.models import load_model

    model = load_model(smollm2_folder, dtype="bfloat16")
    prompts = [smollm2_tokenizer(text)["input_ids"] for text in ("The capital of France is", "1, 2, 3, 4, 5, 6,")]
    engine = _engine(model, smollm2_tokenizer, group=2, max_tokens=6, greedy=True)
    texts = [group[0].text for group in engine.generate(prompts, ["a", "b"], 0)]
    assert engine.share_prompts
    assert b"Paris" in texts[0] and b"7" in texts[1]

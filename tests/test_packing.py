"""The prefix tree gives what separate sequences give: values, gradients, windows."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethink import head
from forethink.packing import check_packing, pack, sequence_logprobs


def _batch() -> tuple[list[list[int]], list[int]]:
    generator = torch.Generator().manual_seed(1)
    document = torch.randint(5, 4000, (40,), generator=generator).tolist()
    sequences, starts = [], []
    for cut in (17, 30, 40):  # three positions of one document
        prompt = [1, 2, *document[:cut], 3, 4]
        for length in (3, 9, 9):
            sequences.append(prompt + torch.randint(5, 4000, (length,), generator=generator).tolist())
            starts.append(len(prompt))
    sequences.append([7, 8, 9, 10])  # and one that shares nothing
    starts.append(1)
    return sequences, starts


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gemma"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_values_and_gradients_equal_the_plain_path(name, attention, request):
    model = copy.deepcopy(request.getfixturevalue(name))
    model.set_attn_implementation(attention)
    sequences, starts = _batch()
    gradients = []
    for share in (True, False):
        model.zero_grad()
        total = torch.zeros(())
        for number, logprobs, _ in sequence_logprobs(model, sequences, starts, temperature=0.8, share=share):
            total = total + (logprobs * (number + 1)).sum()
        total.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    packed, plain = gradients
    assert torch.linalg.vector_norm(packed - plain) <= 1e-5 * torch.linalg.vector_norm(plain)
    assert check_packing(model, sequences, starts, 1e-4) is None


def test_the_tree_pays_for_a_prefix_once():
    prompt = list(range(10, 60))
    sequences = [[*prompt, 100 + i, 200 + i] for i in range(8)]
    (one,) = pack(sequences, [50] * 8)
    assert len(one.ids_t) == 50 + 8 * 2
    assert one.unpacked == 8 * 52


def test_a_full_tree_is_closed_and_nothing_is_lost():
    sequences, starts = _batch()
    packs = pack(sequences, starts, max_tokens=60)
    assert len(packs) > 1
    assert sorted(m for one in packs for m in one.members) == list(range(len(sequences)))


def test_a_model_whose_attention_ignores_the_mask_is_found_out(tiny_llama):
    model = copy.deepcopy(tiny_llama)
    body = model.model.forward

    def deaf(*args, attention_mask=None, **kwargs):
        return body(*args, attention_mask=None, **kwargs)

    model.model.forward = deaf
    sequences, starts = _batch()
    assert "differ" in (check_packing(model, sequences, starts, 1e-4) or "")


@pytest.mark.parametrize(
    "changes", [{}, {"final_logit_softcapping": 5.0}, {"logit_scale": 0.3}, {"logits_scaling": 4.0}]
)
def test_the_chunked_head_has_autograd_s_own_gradient(tiny_llama, changes, monkeypatch):
    monkeypatch.setattr(head, "HEAD_CHUNK", 3)
    model = copy.deepcopy(tiny_llama)
    for key, value in changes.items():
        setattr(model.config, key, value)
    hidden = torch.randn(8, 48, requires_grad=True)
    targets = torch.randint(0, 4000, (8,))
    upstream = torch.randn(8)

    logits = model.lm_head(hidden) * changes.get("logit_scale", 1.0) / changes.get("logits_scaling", 1.0)
    cap = changes.get("final_logit_softcapping")
    logits = (logits if cap is None else torch.tanh(logits / cap) * cap) / 0.8
    plain = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    expected = torch.autograd.grad(plain @ upstream, [hidden, model.lm_head.weight])
    logprobs, entropies = head.head_logprobs(model, hidden, targets, 0.8)
    found = torch.autograd.grad(logprobs @ upstream, [hidden, model.lm_head.weight])

    torch.testing.assert_close(logprobs, plain, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropies, torch.distributions.Categorical(logits=logits).entropy())
    for ours, autograd in zip(found, expected, strict=True):
        assert torch.linalg.vector_norm(ours - autograd) <= 1e-5 * torch.linalg.vector_norm(autograd)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=8), min_size=1, max_size=8), st.integers(4, 40))
def test_every_token_sees_its_own_ancestors_and_no_other(sequences, max_tokens):
    for one in pack(sequences, [1] * len(sequences), max_tokens):
        for member, (begin, end) in zip(one.members, one.spans, strict=True):
            sequence = sequences[member]
            assert one.targets[begin:end].tolist() == sequence[1:]
            for offset, source in enumerate(one.sources[begin:end].tolist()):
                seen = one.visible[source].nonzero()[:, 0]
                order = one.positions_t[seen].argsort()
                assert one.ids_t[seen[order]].tolist() == sequence[: offset + 1]

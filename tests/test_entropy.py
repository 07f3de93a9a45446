"""Entropies, arg-max and log-probabilities of rows of logits, by the compiled kernel and by plain tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethink.scoring import entropy, position_stats


def reference(logits: torch.Tensor, target: int, top_k: int = 16) -> tuple[float, float, float, float]:
    """The four figures of one position from the definition, in float64."""
    logp = logits.double().log_softmax(-1)
    p = logp.exp()
    top = logp.topk(min(top_k, len(logp))).values
    again = top - top.logsumexp(-1)
    full = -torch.special.xlogy(p, p).sum()
    return (
        float(-(again.exp() * again).sum()),
        float(-(top.exp() * top).sum()),
        float(full),
        float(logp[target]),
    )


@pytest.fixture(params=["compiled", "plain"])
def either(request, monkeypatch):
    """The sums of a row by the compiled kernel, where there is a compiler, and by plain tensors."""
    if request.param == "plain":
        monkeypatch.setattr(entropy, "row_sums", lambda logits, k: None)
    elif entropy.row_sums(torch.zeros(1, 2), 1) is None:
        pytest.skip("there is no C++ compiler")


@pytest.mark.parametrize("vocabulary", [2, 7, 16, 65, 4099, 49152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_figures_equal_the_definition(vocabulary, dtype, either):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = (torch.randn(23, vocabulary, generator=generator) * torch.linspace(0.1, 12, 23)[:, None]).to(dtype)
    targets = torch.randint(vocabulary, (23,), generator=generator)
    stats = position_stats(logits, targets, 16)
    for row in range(23):
        expected = reference(logits[row], int(targets[row]))
        ours = (stats.entropy[row], stats.entropy_raw[row], stats.entropy_full[row], stats.logprob[row])
        assert [float(value) for value in ours] == pytest.approx(expected, abs=1e-5)
        assert logits[row, stats.argmax[row]] == logits[row].max()


def test_closed_forms(either):
    flat, sure, half = torch.zeros(3, 1000).unbind()
    sure[3] = 200.0
    half[[5, 9]] = 200.0
    stats = position_stats(torch.stack([flat, sure, half]), torch.tensor([0, 3, 9]), 16)
    assert stats.entropy.tolist() == pytest.approx([math.log(16), 0, math.log(2)], abs=1e-6)
    assert stats.entropy_raw.tolist() == pytest.approx([16 / 1000 * math.log(1000), 0, math.log(2)], abs=1e-6)
    assert stats.entropy_full.tolist() == pytest.approx([math.log(1000), 0, math.log(2)], abs=1e-5)
    assert stats.logprob.tolist() == pytest.approx([-math.log(1000), 0, -math.log(2)], abs=1e-5)
    assert stats.argmax.tolist() == [0, 3, 5]  # the lowest id among equals


def test_half_the_mass_outside_the_top(either):
    """The example of why both entropies are kept: flat over the top 16 with half the mass elsewhere."""
    logits = torch.full((1, 40016), math.log(0.5 / 40000))
    logits[0, :16] = math.log(0.5 / 16)
    stats = position_stats(logits, torch.tensor([0]), 16)
    assert float(stats.entropy) == pytest.approx(2.77, abs=0.005)
    assert float(stats.entropy_raw) == pytest.approx(1.73, abs=0.005)


def test_tokens_ruled_out_and_broken_logits(either):
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0))
    logits[0, 5:] = -math.inf  # fewer tokens than k are left
    logits[1, 7] = math.nan
    logits[2, 7] = math.inf
    stats = position_stats(logits, torch.tensor([1, 1, 1, 1]), 16)
    expected = reference(logits[0, :5], 1)
    assert [float(column[0]) for column in (stats.entropy, stats.entropy_raw, stats.entropy_full, stats.logprob)] == (
        pytest.approx(expected, abs=1e-5)
    )
    assert stats.argmax[0] == logits[0, :5].argmax()
    for column in (stats.entropy, stats.entropy_raw, stats.entropy_full, stats.logprob):
        assert column[1:3].isnan().all() and column[3].isfinite()
    outside = position_stats(logits[:1], torch.tensor([9]), 16)
    assert float(outside.logprob) == -math.inf and float(outside.entropy) == pytest.approx(expected[0], abs=1e-5)


@pytest.mark.parametrize("vocabulary", [300, 49152])
def test_a_row_does_not_depend_on_the_rows_beside_it(vocabulary, either):
    logits = torch.randn(11, vocabulary, generator=torch.Generator().manual_seed(1)) * 4
    targets = torch.arange(11)
    whole = position_stats(logits, targets, 16)
    for rows in ([3], [10, 0], list(range(4, 11)), list(reversed(range(11)))):
        part = position_stats(logits[rows], targets[rows], 16)
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))


@given(st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=200), st.integers(2, 20))
@settings(max_examples=100, deadline=None)
def test_bounds(values, top_k):
    stats = position_stats(torch.tensor([values]), torch.tensor([0]), top_k)
    entropy, raw, full, logprob = (float(column) for column in (*stats[:3], stats.logprob))
    assert 0 <= entropy <= math.log(min(top_k, len(values))) + 1e-5
    assert 0 <= raw <= full + 1e-4
    assert full <= math.log(len(values)) + 1e-4 and logprob <= 1e-6

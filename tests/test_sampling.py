"""Drawing tokens: the distribution, what cannot be drawn, and the random numbers behind it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forethink.rollout.rows import uniforms
from forethink.rollout.transformers_engine import sample_tokens

TEMPERATURE = 0.8


@pytest.mark.parametrize("vocabulary", [5, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_follows_the_distribution(vocabulary, dtype):
    logits = (torch.randn(vocabulary, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    expected = (logits.double() / TEMPERATURE).softmax(-1)
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000  # an even grid: no chance involved
    tokens, logprobs = [], []
    for part in u.split(8192):
        token, logprob = sample_tokens(logits.expand(len(part), -1), part, TEMPERATURE)
        tokens.append(token)
        logprobs.append(logprob)
    drawn = torch.cat(tokens)
    counts = torch.bincount(drawn, minlength=vocabulary).double() / len(u)
    assert (counts - expected).abs().max() < 2 / len(u) + 1e-5
    assert torch.allclose(torch.cat(logprobs), expected.log()[drawn], atol=1e-5)
    assert (drawn.diff() >= 0).all()  # the inverse of the cumulative distribution is monotone


def test_sampling_never_draws_what_cannot_be():
    logits = torch.full((3, 700), float("-inf"))
    logits[:, 300], logits[:, 699] = 0.0, 0.0
    u = torch.tensor([0.0, 0.4999, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = sample_tokens(logits, u, 1.0)
    assert tokens.tolist() == [300, 300, 699]
    assert torch.allclose(logprobs, torch.full((3,), -np.log(2), dtype=torch.float64), atol=1e-6)


def test_random_numbers_hang_on_their_key_alone():
    base = uniforms(1, "document:5", 2, 64)
    assert np.array_equal(uniforms(1, "document:5", 2, 8), base[:8])
    for other in (
        uniforms(2, "document:5", 2, 64),
        uniforms(1, "document:6", 2, 64),
        uniforms(1, "document:5", 3, 64),
    ):
        assert not np.isin(other, base).any()
    assert base.min() >= 0 and base.max() < 1

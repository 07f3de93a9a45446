"""The warm start's thoughts: the document's own end, the policy's own candidates, its arg-max in the box."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethink.models import token_bytes
from forethink.templates import read
from forethink.training.probe import Candidates
from forethink.training.thoughts import WORDINGS, restated, thought
from forethink.types import Status

TEXT = "Let $x$ be a real number such that $x^2 = 4$.\nThen café {x} is $x = "


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 12), st.integers(0, 99))
def test_the_restated_end_begins_at_its_most_distinctive_token(context, tail, seed) -> None:
    end = restated(context, tail, random.Random(seed))
    assert end and list(end) == context[-len(end) :]
    if len(context) >= 2 * tail:
        assert max(1, tail // 2) <= len(end) <= 2 * tail
        window = context[-2 * tail : len(context) - max(1, tail // 2) + 1]
        assert context.count(end[0]) == min(map(context.count, window))


def test_lengths_vary_where_no_token_stands_out() -> None:
    rng = random.Random(0)
    assert {len(restated(list(range(100)), 6, rng)) for _ in range(300)} == set(range(3, 13))


@pytest.mark.parametrize("style", sorted(WORDINGS))
@pytest.mark.parametrize("best", [" the", "{", "}", "\\", "\n", "\n\n", " ", "4", "é", ".\n"])
def test_the_box_holds_the_policys_own_choice_and_the_thought_its_candidates(smollm2_tokenizer, style, best) -> None:
    table = token_bytes(smollm2_tokenizer)

    def encode(text: bytes) -> list[int]:
        return list(smollm2_tokenizer(text.decode(), add_special_tokens=False)["input_ids"])

    context = encode(TEXT.encode())
    first, second, third = encode(best.encode())[0], encode(b" or")[0], encode(b" unlikely")[0]
    own = Candidates((first, second, third), (0.5, 0.2, 0.04))
    for seed in range(20):
        ids = thought(context, own, table, encode, style, 6, 3, random.Random(seed))
        text = b"".join(table[token] for token in ids)
        answer = read(text, finish="stop")
        assert answer.status is Status.BOXED and answer.prediction == table[first]
        written = [one for one in WORDINGS[style] if text.startswith(one.opening.encode())]
        assert len(written) == 1
        end = text.removeprefix(written[0].opening.encode()).split(written[0].between.encode())
        assert b"".join(table[token] for token in context).endswith(end[0].removesuffix(table[first]))
        assert b" unlikely" not in text  # under a tenth of the first one's probability
        assert written[0].between.encode() + b" or" in text

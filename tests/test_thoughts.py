"""The warm start's thoughts: the document's own end, the policy's own candidates, its arg-max in the box."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forethink.models import token_bytes
from forethink.templates import read
from forethink.templates.designs import OTHER_PROMPTS
from forethink.training.probe import Candidates
from forethink.training.thoughts import WORDINGS, interleaved, other_prompts, restated, thought
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


@pytest.mark.parametrize("tail", [6, 0])
@pytest.mark.parametrize("style", sorted(WORDINGS))
@pytest.mark.parametrize("best", [" the", "{", "}", "\\", "\n", "\n\n", " ", "4", "é", ".\n"])
def test_the_box_holds_the_policys_own_choice_and_the_thought_its_candidates(
    smollm2_tokenizer, style, best, tail
) -> None:
    table = token_bytes(smollm2_tokenizer)

    def encode(text: bytes) -> list[int]:
        return list(smollm2_tokenizer(text.decode(), add_special_tokens=False)["input_ids"])

    context = encode(TEXT.encode())
    first, second, third = encode(best.encode())[0], encode(b" or")[0], encode(b" unlikely")[0]
    own = Candidates((first, second, third), (0.5, 0.2, 0.04))
    for seed in range(20):
        ids = thought(context, own, table, encode, style, tail, 3, random.Random(seed))
        text = b"".join(table[token] for token in ids)
        answer = read(text, finish="stop")
        assert answer.status is Status.BOXED and answer.prediction == table[first]
        wordings = WORDINGS[style if tail else "candidates"]
        written = [one for one in wordings if text.startswith(one.opening.encode())]
        assert len(written) == 1
        end = text.removeprefix(written[0].opening.encode()).split(written[0].between.encode())
        copied = end[0].removesuffix(table[first])
        assert b"".join(table[token] for token in context).endswith(copied) and bool(copied) == bool(tail)
        assert b" unlikely" not in text  # under a tenth of the first one's probability
        assert written[0].between.encode() + b" or" in text


def test_other_prompts_hold_a_piece_of_a_context_and_leave_bare_texts_alone(smollm2_tokenizer) -> None:
    contexts = [list(range(40_000, 40_080)), list(range(41_000, 41_005))]  # ids that no wording holds
    prompts = other_prompts(contexts, 3 * len(OTHER_PROMPTS), smollm2_tokenizer, (7,), random.Random(1))
    for number, prompt in enumerate(prompts):
        (own,) = [context for context in contexts if set(context) & set(prompt)]
        piece = [token for token in prompt if token in own]
        at, begins = prompt.index(piece[0]), own.index(piece[0])
        assert prompt[at : at + len(piece)] == piece == own[begins : begins + len(piece)]
        assert min(16, len(own)) <= len(piece) <= 64
        if OTHER_PROMPTS[number % len(OTHER_PROMPTS)] is None:
            assert prompt == [7, *piece]
        else:
            whole = smollm2_tokenizer.decode(prompt)
            assert whole.startswith("<|im_start|>") and whole.endswith("<|im_start|>assistant\n")
    assert prompts == other_prompts(contexts, len(prompts), smollm2_tokenizer, (7,), random.Random(1))


def test_other_prompts_are_plain_texts_where_there_is_no_chat_template(smollm2_tokenizer) -> None:
    bare = copy.copy(smollm2_tokenizer)
    bare.chat_template = None
    piece = smollm2_tokenizer(" a quick brown fox jumps over the lazy dog")["input_ids"]
    texts = {bare.decode(prompt) for prompt in other_prompts([piece], len(OTHER_PROMPTS), bare, (), random.Random(0))}
    text = bare.decode(piece)
    assert texts == {(user or "{{ context }}").replace("{{ context }}", text) for user in OTHER_PROMPTS}


@given(st.integers(0, 40), st.integers(0, 60))
def test_replies_are_spread_evenly_among_the_thoughts(many, few) -> None:
    few = few if many else 0
    mixed = list(interleaved([("a", i) for i in range(many)], [("b", i) for i in range(few)]))
    assert [i for kind, i in mixed if kind == "a"] == list(range(many))
    assert [i for kind, i in mixed if kind == "b"] == list(range(few))
    for at in range(len(mixed)):
        seen = [kind for kind, _ in mixed[: at + 1]]
        if seen[-1] == "a":
            assert abs(seen.count("b") * many - (seen.count("a") - 1) * few) <= many

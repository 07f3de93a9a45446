"""Gold answers: the true next tokens, boxed by the writer, score 1 wherever a box can hold them.

Over every position of every Omni-MATH validation document, for a byte-level BPE, Gemma 3's tokenizer and one with
byte fallback. What no box can hold is counted by reason and printed (``pytest -s``).
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import byte_fallback, gemma3, smollm2

from forethink.rewards import outcome, prefix_match
from forethink.templates import expressible, read, write
from forethink.tokens import encode_document, token_bytes
from forethink.types import Finish, Outcome, Problem

DATA = Path(__file__).parents[3] / "shared" / "data" / "omni_math_val.jsonl"
TOKENIZERS = {"smollm2": smollm2, "gemma 3": gemma3, "byte fallback": byte_fallback}
TEXTS = [
    "Latin: naïve café, e\u0301, ß; 漢字、かな、한국어; العربية \u200fשלום; हिन्दी",
    "Emoji with joiners 👩‍👩‍👧🏽 🏳️‍🌈 🇩🇪, and\ttabs\t\tand CRLF\r\nlines\r\n\r\n\x00\x0b end\n\n",
    r"LaTeX: $\frac{1}{2}\{a\}\nu \neq \theta\rho \\ \n$ \boxed{x} {{{ }}} \}\{ \left\{ \begin{array}{c} \end{array}",
    "Tags: <think>a</think> <|im_end|> <bos> \\boxed{\\boxed{} <unk><s>▁x",
    "\n" * 9 + " " * 33 + "\\" * 7 + "{" * 5 + "}" * 6,
]


def positions(tokenizer, text: str):
    """A problem at every position, with the true next three tokens."""
    ids, ends = encode_document(tokenizer, text)
    data, starts = text.encode(), [0, *ends]
    for t in range(len(ids)):
        start, own = starts[t], ids[t : t + 3]
        token_ends = tuple(end - start for end in ends[t : t + 3])
        target = data[start : start + token_ends[-1]]
        yield Problem(
            f"d:{t}", "d", t, "validation", data[:start], (), target, tuple(own), token_ends, 1.0, 1.0, 1.0, -1.0, b""
        )


def check(tokenizer, text: str) -> Counter[str]:
    """Every gold answer of a document; counts them, and those that no box can hold by reason."""
    counts: Counter[str] = Counter()
    for problem in positions(tokenizer, text):
        for n, end in enumerate(problem.token_ends, 1):
            reason = expressible(problem, n)
            counts[reason or "expressible"] += 1
            if reason is None:
                answer = read(write(problem.target[:end]), finish=Finish.STOP)
                assert prefix_match(answer, problem) == 1.0, (problem, n)
                assert outcome(answer, problem) is Outcome.RIGHT
    return counts


@pytest.mark.parametrize("name", TOKENIZERS)
def test_gold_answers_over_all_of_omni_math_validation(name):
    if not DATA.exists():
        pytest.skip(f"{DATA} is not there")
    tokenizer = TOKENIZERS[name]()
    token_bytes(tokenizer)
    counts: Counter[str] = Counter()
    with open(DATA, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            counts += check(tokenizer, record["problem"] + "\n\n" + record["solution"])
    print(f"\n{name}: {dict(counts)}")
    total = sum(counts.values())
    assert total > 100_000
    assert counts["expressible"] > 0.9 * total
    assert set(counts) <= {"expressible", "ends inside a character", "starts inside a character"}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_gold_answers_in_many_scripts(name):
    tokenizer = TOKENIZERS[name]()
    counts = sum((check(tokenizer, text) for text in TEXTS), Counter[str]())
    print(f"\n{name}: {dict(counts)}")
    assert counts["expressible"] > 100
    assert counts["ends inside a character"] > 0  # rare characters are split by all three
    assert counts["starts inside a character"] > 0


@given(
    text=st.text(max_size=40),
    tricky=st.lists(st.sampled_from([*"\\{}\n\r\tntr ", "boxed{", "é", "👩‍👧"]), max_size=30),
)
@settings(max_examples=60, deadline=None)
def test_gold_answers_of_any_text(text, tricky):
    check(byte_fallback(), text + "".join(tricky))


def test_what_is_not_gold_scores_nothing():
    """The same positions with answers that are close, so that the check above means something."""
    tokenizer = byte_fallback()
    wrong = Counter[str]()
    for problem in positions(tokenizer, "The answer is the number of \\frac{1}{2} ways."):
        gold = problem.target[: problem.token_ends[0]]
        near = {"space after": gold + b" ", "first byte": gold[:1], "stripped": gold.strip(), "other": b"~" + gold}
        for kind, prediction in near.items():
            lengths = [problem.target[:end] for end in problem.token_ends]
            if prediction and prediction not in lengths:
                assert prefix_match(read(write(prediction), finish=Finish.STOP), problem) == 0.0
                wrong[kind] += 1
    assert all(wrong[kind] > 3 for kind in ("space after", "first byte", "stripped", "other"))

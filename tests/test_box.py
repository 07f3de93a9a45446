"""The reader's rule and its writer: a table of cases, and properties over all bytes."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethink.templates import box_closed, box_opens, expressible, inexpressible, read, write
from forethink.types import Finish, Problem, Status

STOP, LENGTH = Finish.STOP, Finish.LENGTH

# (completion, finish, prompt opened a thought, status, prediction)
CASES = [
    # white space counts, nothing is stripped
    (rb"It is \boxed{ the}.", STOP, False, Status.BOXED, b" the"),
    (rb"\boxed{the}", STOP, False, Status.BOXED, b"the"),
    (rb"\boxed{ the }", STOP, False, Status.BOXED, b" the "),
    (b"\\boxed{\n}", STOP, False, Status.BOXED, b"\n"),
    (b"\\boxed{a\r\n\tb}", STOP, False, Status.BOXED, b"a\r\n\tb"),
    # escapes
    (rb"\boxed{\n}", STOP, False, Status.BOXED, b"\n"),
    (rb"\boxed{\n\n  }", STOP, False, Status.BOXED, b"\n\n  "),
    (rb"\boxed{\t\r1}", STOP, False, Status.BOXED, b"\t\r1"),
    (rb"\boxed{\nu\neq\theta\rho}", STOP, False, Status.BOXED, rb"\nu\neq\theta\rho"),
    (rb"\boxed{\\n}", STOP, False, Status.BOXED, rb"\n"),
    (rb"\boxed{\\\\}", STOP, False, Status.BOXED, rb"\\"),
    (rb"\boxed{\{}", STOP, False, Status.BOXED, b"{"),
    (rb"\boxed{\}}", STOP, False, Status.BOXED, b"}"),
    (rb"\boxed{\frac\{}", STOP, False, Status.BOXED, rb"\frac{"),
    (rb"\boxed{\alpha \$ \"}", STOP, False, Status.BOXED, rb"\alpha \$ \""),
    # nested and unbalanced braces
    (rb"\boxed{\frac{1}{2}}", STOP, False, Status.BOXED, rb"\frac{1}{2}"),
    (rb"\boxed{{}}", STOP, False, Status.BOXED, b"{}"),
    (rb"\boxed{}}", STOP, False, Status.EMPTY, b""),
    (rb"\boxed{{}", STOP, False, Status.UNCLOSED, b""),
    (rb"\boxed{a}}}{{", STOP, False, Status.BOXED, b"a"),
    (rb"\boxed{\boxed{a}}", STOP, False, Status.BOXED, rb"\boxed{a}"),
    # none, empty, several, unclosed, cut off
    (rb"", STOP, False, Status.MISSING, b""),
    (rb"the", STOP, False, Status.MISSING, b""),
    (rb"the", LENGTH, False, Status.CUT_OFF, b""),
    (rb"\boxed the", STOP, False, Status.MISSING, b""),
    (rb"boxed{the}", STOP, False, Status.MISSING, b""),
    (rb"\\boxed{the}", STOP, False, Status.MISSING, b""),
    (rb"\\\boxed{the}", STOP, False, Status.BOXED, b"the"),
    (rb"\boxed{}", STOP, False, Status.EMPTY, b""),
    (rb"\boxed{}", LENGTH, False, Status.EMPTY, b""),
    (rb"\boxed{a} or \boxed{b}", STOP, False, Status.SEVERAL, b""),
    (rb"\boxed{a}\boxed{a}", STOP, False, Status.SEVERAL, b""),
    (rb"\boxed{a} or \boxed{b", LENGTH, False, Status.SEVERAL, b""),
    (rb"\boxed{a} or \\boxed{b}", STOP, False, Status.BOXED, b"a"),
    (rb"\boxed{a", STOP, False, Status.UNCLOSED, b""),
    (rb"\boxed{a\}", STOP, False, Status.UNCLOSED, b""),
    (rb"\boxed{a", LENGTH, False, Status.CUT_OFF, b""),
    (rb"\boxed{a} and so", LENGTH, False, Status.BOXED, b"a"),
    # half a character
    (b"\\boxed{\xc3}", STOP, False, Status.BOXED, b"\xc3"),
    (b"\xff\xfe\\boxed{a}", STOP, False, Status.BOXED, b"a"),
    # thoughts
    (rb"<think>so</think>\boxed{a}", STOP, False, Status.BOXED, b"a"),
    (rb"<think>\boxed{b}</think>\boxed{a}", STOP, False, Status.BOXED, b"a"),
    (rb"<think>\boxed{b}</think> a", STOP, False, Status.MISSING, b""),
    (rb"\boxed{b}</think> a", STOP, False, Status.MISSING, b""),
    (rb"\boxed{b}</think>", LENGTH, True, Status.CUT_OFF, b""),
    (rb"\boxed{b}</think>\boxed{a}", STOP, True, Status.BOXED, b"a"),
    (rb"x</think>y</think>\boxed{a}", STOP, True, Status.BOXED, b"a"),
    (rb"x</think>\boxed{b}</think>\boxed{a}", STOP, True, Status.BOXED, b"a"),
    (rb"x</think>\boxed{b}</think> a", STOP, False, Status.MISSING, b""),
    (rb"\boxed{a}", STOP, True, Status.MISSING, b""),
    (rb"\boxed{a}", LENGTH, True, Status.CUT_OFF, b""),
    (rb"<think>\boxed{a}", STOP, False, Status.MISSING, b""),
    (rb"<think>\boxed{a}", LENGTH, False, Status.CUT_OFF, b""),
    (rb"so</think>\boxed{a} \boxed{b}", STOP, True, Status.SEVERAL, b""),
    (rb"\boxed{</think>a}", STOP, False, Status.MISSING, b""),
]


@pytest.mark.parametrize(("text", "finish", "thought_open", "status", "prediction"), CASES)
def test_reader(text, finish, thought_open, status, prediction):
    answer = read(text, finish=finish, thought_open=thought_open, tokens=7)
    assert (answer.status, answer.prediction, answer.tokens) == (status, prediction, 7)


@pytest.mark.parametrize(
    ("text", "thought_open", "thought"),
    [
        (rb"First, then \boxed{a}.", False, "First, then "),
        (rb"no box", False, "no box"),
        (rb"<think>so it is</think> hence \boxed{a}", False, "so it is"),
        (b"\n<think>so\n", False, "so\n"),
        (rb"so it is</think>\boxed{a}", True, "so it is"),
        (rb"still thinking \boxed{", True, "still thinking \\boxed{"),
        (b"caf\xc3 \\boxed{a}", False, "caf\ufffd "),
    ],
)
def test_thought_is_what_stands_before_the_answer(text, thought_open, thought):
    assert read(text, finish=STOP, thought_open=thought_open).thought == thought


@pytest.mark.parametrize(
    ("target", "written"),
    [
        (b" the", rb"\boxed{ the}"),
        (b"\n", rb"\boxed{\n}"),
        (b"\n\n", rb"\boxed{\n\n}"),
        (b"\nThe", b"\\boxed{\nThe}"),
        (b"\n  x", rb"\boxed{\n  x}"),
        (b"\t\r\n", rb"\boxed{\t\r\n}"),
        (b"{", rb"\boxed{\{}"),
        (b"}", rb"\boxed{\}}"),
        (b"}{", rb"\boxed{\}\{}"),
        (b"{a}", rb"\boxed{{a}}"),
        (b"{{a}", rb"\boxed{\{{a}}"),
        (rb"\frac{", rb"\boxed{\frac\{}"),
        (rb"\frac{1}{2}", rb"\boxed{\frac{1}{2}}"),
        (rb"\nu", rb"\boxed{\nu}"),
        (rb"\n", rb"\boxed{\\n}"),
        (rb"\n u", rb"\boxed{\\n u}"),
        (b"\\", rb"\boxed{\\}"),
        (rb"\\", rb"\boxed{\\\\}"),
        (rb"\\a", rb"\boxed{\\\a}"),
        (rb"\{a\}", rb"\boxed{\\{a\\}}"),
        (b"\\\n", rb"\boxed{\\\n}"),
        (rb"\boxed{x}", rb"\boxed{\boxed{x}}"),
        (rb"\boxed{", rb"\boxed{\boxed\{}"),
        ("é漢".encode(), "\\boxed{é漢}".encode()),
    ],
)
def test_writer_escapes_as_little_as_it_may(target, written):
    assert write(target) == written


WORDS = rb"\ { } n t r a Z 0 $ \boxed{ \n < think> /think>".split()
PIECES = st.sampled_from([*WORDS, b"\n", b"\t", b"\r", b" ", "é".encode(), b"\xc3", b"\x00"])
SOME_BYTES = st.one_of(st.lists(PIECES, max_size=14).map(b"".join), st.binary(max_size=30))
TAGS = (b"<think>", b"</think>")
TARGETS = SOME_BYTES.filter(lambda x: x and not any(tag in x for tag in TAGS))


@settings(deadline=None)
@given(target=TARGETS)
def test_what_is_written_is_read_back(target):
    answer = read(write(target), finish=STOP)
    assert (answer.status, answer.prediction) == (Status.BOXED, target)


@settings(deadline=None)
@given(target=TARGETS, before=SOME_BYTES, after=SOME_BYTES)
def test_it_is_read_back_from_among_other_text(target, before, after):
    after = after.replace(b"boxed", b"").replace(b"think>", b"")
    assert read(b"<think>" + before + b"</think>" + write(target) + after, finish=STOP).prediction == target
    before = before.replace(b"boxed", b"").replace(b"think>", b"") + b" "
    assert read(before + write(target) + after, finish=STOP).prediction == target


@settings(deadline=None)
@given(target=TARGETS)
def test_no_backslash_of_the_writer_could_be_left_out(target):
    inside = write(target)[len(rb"\boxed{") : -1]
    added = len(inside) - len(target)
    for at in range(len(inside)) if added else ():
        if inside[at : at + 1] == b"\\":
            shorter = read(rb"\boxed{" + inside[:at] + inside[at + 1 :] + b"}", finish=STOP)
            assert shorter.prediction != target


@settings(deadline=None)
@given(text=st.lists(st.one_of(PIECES, st.sampled_from([*TAGS, b"\\boxed{a}"])), max_size=20).map(b"".join),
       thought_open=st.booleans())  # fmt: skip
def test_box_closed_agrees_with_the_reader(text, thought_open):
    prefixes = [text[:end] for end in range(len(text) + 1)]
    closed = [box_closed(prefix, thought_open) for prefix in prefixes]
    answered = {Status.BOXED, Status.EMPTY, Status.SEVERAL}
    read_at_limit = [read(prefix, finish=LENGTH, thought_open=thought_open).status for prefix in prefixes]
    assert closed == [status in answered for status in read_at_limit]
    if True in closed:
        assert read_at_limit[closed.index(True)] in {Status.BOXED, Status.EMPTY}


def test_box_opens_where_the_answer_is_read():
    assert box_opens(rb"a \boxed{b}") == len(rb"a \boxed{")
    assert box_opens(rb"\boxed{x}</think>\boxed{", True) == len(rb"\boxed{x}</think>\boxed{")
    assert box_opens(rb"<think>\boxed{b}") is None
    assert box_opens(rb"\\boxed{b}") is None


@pytest.mark.parametrize(
    "text",
    [
        b"\\" * 400_000,
        b"\\\\boxed{" * 50_000,
        b"\\boxed{" * 50_000,
        b"\\boxed{" + b"{" * 400_000,
        b"\\boxed{" + b"\\n{}" * 100_000 + b"}",
        b"<think>" * 50_000 + b"</think>" * 50_000 + b"\\boxed{a}",
    ],
)
def test_reading_takes_linear_time(text):
    # A quadratic reader would need minutes; the bound leaves a slow, busy machine a hundredfold room.
    start = time.process_time()
    read(text, finish=STOP)
    write(text)
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (b" the", None),
        ("é".encode(), None),
        (b"", "empty"),
        (b"a\xc3", "ends inside a character"),
        (b"\xc3", "ends inside a character"),
        (b"\xf0\x9f\x91", "ends inside a character"),
        (b"\xa9xyz", "starts inside a character"),
        (b"a</think>", "holds a thought tag"),
        (b"<think>", "holds a thought tag"),
        (b"</think", None),
    ],
)
def test_inexpressible(target, reason):
    assert inexpressible(target) == reason


def test_expressible_goes_by_tokens():
    problem = Problem(
        "d:1", "d", 1, "train", b"a", (1,), b"\xc3\xa9xyz", (5, 6, 7), (1, 2, 5), 1.0, 1.0, 1.0, -1.0, b""
    )
    assert [expressible(problem, n) for n in (1, 2, 3, 4)] == [
        "ends inside a character", None, None, "too few tokens left",
    ]  # fmt: skip
    assert expressible(problem, 0) == "empty"
    assert expressible(replace(problem, target=b"<think>", token_ends=(1, 7)), 2) == "holds a thought tag"

"""Every reward's table of cases, outcomes, the group filter, and rewards of one's own."""

from __future__ import annotations

import math

import pytest

from forethink import config
from forethink.rewards import (
    REWARDS,
    SEMANTIC_SCALE,
    asks,
    degenerate,
    load_reward,
    needs,
    outcome,
    right_if_stripped,
    score_group,
    with_length_budget,
)
from forethink.templates import read
from forethink.types import Answer, Finish, ForethinkError, Outcome, PolicyScores, Problem, Status

RIGHT, WRONG, MISSING, CUT_OFF = Outcome.RIGHT, Outcome.WRONG, Outcome.MISSING, Outcome.CUT_OFF


def problem(*tokens: bytes) -> Problem:
    ends = tuple(len(b"".join(tokens[: i + 1])) for i in range(len(tokens)))
    ids = tuple(range(len(tokens)))
    return Problem("d:3", "d", 3, "train", b"so", (1, 2), b"".join(tokens), ids, ends, 1.0, 1.0, 1.0, -1.0, b" a")


THE = problem(b" the", b" end", b".")
# A token may end inside a character: é is the tokens C3 and A9 here.
SPLIT = problem(b"\xc3", b"\xa9", b"xyz")
BRACE = problem(b"{", b"x", b"}")
LINE = problem(b"\n\n", b"The")


def answered(text: bytes, finish: Finish = Finish.STOP, thought_open: bool = False, tokens: int = 5) -> Answer:
    return read(text, finish=finish, thought_open=thought_open, tokens=tokens)


# (problem, completion, finish, prompt opened a thought, outcome, first_token)
CASES = [
    (THE, rb"\boxed{ the}", Finish.STOP, False, RIGHT, 1.0),
    (THE, rb"\boxed{ the end}", Finish.STOP, False, RIGHT, 0.0),
    (THE, rb"\boxed{ the end.}", Finish.STOP, False, RIGHT, 0.0),
    (THE, rb"\boxed{ the}", Finish.LENGTH, False, RIGHT, 1.0),
    (THE, rb"so</think>\boxed{ the}", Finish.STOP, True, RIGHT, 1.0),
    (THE, rb"\boxed{ the }", Finish.STOP, False, WRONG, 0.0),  # trailing space
    (THE, rb"\boxed{the}", Finish.STOP, False, WRONG, 0.0),  # missing leading space
    (THE, rb"\boxed{ th}", Finish.STOP, False, WRONG, 0.0),  # half a token
    (THE, rb"\boxed{ the en}", Finish.STOP, False, WRONG, 0.0),
    (THE, rb"\boxed{ the end. And}", Finish.STOP, False, WRONG, 0.0),  # beyond the known continuation
    (THE, rb"\boxed{ The}", Finish.STOP, False, WRONG, 0.0),
    (THE, rb"\boxed{ the\n}", Finish.STOP, False, WRONG, 0.0),  # newline as \n
    (THE, rb"\boxed{}", Finish.STOP, False, WRONG, 0.0),  # empty
    (THE, rb"\boxed{ the} \boxed{ the}", Finish.STOP, False, WRONG, 0.0),  # two boxes
    (THE, rb"\boxed{ the}</think> yes", Finish.STOP, True, MISSING, 0.0),  # box before the end of the thought
    (THE, rb"\boxed{ the}", Finish.STOP, True, MISSING, 0.0),
    (THE, rb"\boxed{ the", Finish.STOP, False, MISSING, 0.0),  # unbalanced
    (THE, rb"\boxed{{ the}", Finish.STOP, False, MISSING, 0.0),
    (THE, rb"\boxed{ the", Finish.LENGTH, False, CUT_OFF, 0.0),
    (THE, rb" the", Finish.STOP, False, MISSING, 0.0),
    (THE, rb"", Finish.STOP, False, MISSING, 0.0),
    (THE, rb"\boxed{\{}", Finish.STOP, False, WRONG, 0.0),
    (THE, rb"\boxed{}}", Finish.STOP, False, WRONG, 0.0),
    (SPLIT, b"\\boxed{\xc3\xa9}", Finish.STOP, False, RIGHT, 0.0),
    (SPLIT, b"\\boxed{\xc3\xa9xyz}", Finish.STOP, False, RIGHT, 0.0),
    (SPLIT, b"\\boxed{\xc3}", Finish.STOP, False, RIGHT, 1.0),  # the rule is on bytes and token ends
    (SPLIT, b"\\boxed{\xa9}", Finish.STOP, False, WRONG, 0.0),  # one byte of a character
    (SPLIT, b"\\boxed{\xc3\xa9x}", Finish.STOP, False, WRONG, 0.0),  # decode/encode would give the ends {3, 2, 5}
    (problem("é".encode(), b"x"), b"\\boxed{\xc3}", Finish.STOP, False, WRONG, 0.0),
    (BRACE, rb"\boxed{\{}", Finish.STOP, False, RIGHT, 1.0),
    (BRACE, rb"\boxed{{x}}", Finish.STOP, False, RIGHT, 0.0),
    (BRACE, rb"\boxed{{}", Finish.STOP, False, MISSING, 0.0),
    (BRACE, rb"\boxed{}}", Finish.STOP, False, WRONG, 0.0),
    (problem(b"}", b"x"), rb"\boxed{}}", Finish.STOP, False, WRONG, 0.0),
    (problem(b"}", b"x"), rb"\boxed{\}}", Finish.STOP, False, RIGHT, 1.0),
    (LINE, rb"\boxed{\n\n}", Finish.STOP, False, RIGHT, 1.0),
    (LINE, b"\\boxed{\n\n}", Finish.STOP, False, RIGHT, 1.0),
    (LINE, b"\\boxed{\n\nThe}", Finish.STOP, False, RIGHT, 0.0),
    (LINE, rb"\boxed{\n}", Finish.STOP, False, WRONG, 0.0),
]


@pytest.mark.parametrize(("task", "text", "finish", "thought_open", "verdict", "first"), CASES)
def test_plain_rewards_and_outcomes(task, text, finish, thought_open, verdict, first):
    answer = answered(text, finish, thought_open)
    assert outcome(answer, task) is verdict
    assert REWARDS["prefix_match"](answer, task) == float(verdict is RIGHT)
    assert REWARDS["first_token"](answer, task) == first


def test_an_answer_that_stands_only_in_the_prompt_is_none():
    from forethink.templates import load_template

    prompt = load_template("v0").messages("so")[0]["content"].encode()
    assert rb"\boxed{ the}" in prompt
    assert outcome(answered(rb"I do not know."), THE) is MISSING


def test_prediction_counts_only_when_boxed():
    stray = Answer(Status.SEVERAL, b" the", "", 5)
    assert outcome(stray, THE) is WRONG
    assert [REWARDS[name](stray, THE) for name in ("prefix_match", "first_token")] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rb"\boxed{the}", True),
        (rb"\boxed{ the }", True),
        (rb"\boxed{the end}", True),
        (rb"\boxed{ the}", False),  # right as it stands
        (rb"\boxed{th}", False),
        (rb"\boxed{ }", False),
        (rb"the", False),
    ],
)
def test_right_if_stripped(text, expected):
    assert right_if_stripped(answered(text), THE) is expected


GOOD, BAD, NONE = answered(rb"\boxed{ the}"), answered(rb"\boxed{ a}"), answered(rb"a")
EMPTY, TWO = answered(rb"\boxed{}"), answered(rb"\boxed{ a}\boxed{ a}")
P = PolicyScores(first_token_probability=0.25)


@pytest.mark.parametrize(
    ("answer", "scores", "value"),
    [
        (GOOD, P, 1.0),
        (GOOD, PolicyScores(), 1.0),
        (BAD, P, 0.25),
        (BAD, PolicyScores(first_token_probability=0.0), 0.0),
        (EMPTY, P, 0.0),
        (TWO, P, 0.0),
        (NONE, PolicyScores(), 0.0),
    ],
)
def test_dense(answer, scores, value):
    assert REWARDS["dense"](answer, THE, scores=scores) == value
    assert REWARDS["conditional_dense"](answer, THE, scores=scores, group=[BAD, GOOD]) == value
    assert REWARDS["conditional_dense"](answer, THE, scores=scores, group=[BAD, NONE, TWO]) == 0.0


def gain(thought: float | None) -> PolicyScores:
    return PolicyScores(logprob_thought=thought, logprob_plain=-2.0)


@pytest.mark.parametrize(
    ("thoughts", "values"),
    [
        ([-1.5, -2.0, -5.0], [0.5, 0.0, -3.0]),
        ([-1.5, None, -5.0], [0.5, -3.0, -3.0]),  # no box: the group's lowest
        ([-1.5, None, -1.0], [0.5, 0.0, 1.0]),  # but never a gain
        ([None, None], [0.0, 0.0]),
    ],
)
def test_information_gain(thoughts, values):
    scores = [gain(thought) for thought in thoughts]
    answers = [NONE if thought is None else BAD for thought in thoughts]
    assert score_group(REWARDS["information_gain"], answers, THE, scores) == values


def test_information_gain_is_the_thoughts_not_the_boxs():
    scores = gain(-1.25)
    assert {REWARDS["information_gain"](answer, THE, scores=scores) for answer in (GOOD, BAD, EMPTY, TWO)} == {0.75}


@pytest.mark.parametrize(
    ("answer", "similarity", "value"),
    [
        (GOOD, None, 1.0),
        (GOOD, -1.0, 1.0),
        (BAD, 1.0, SEMANTIC_SCALE),
        (BAD, 0.0, SEMANTIC_SCALE / 2),
        (BAD, -1.0, 0.0),
        (EMPTY, 1.0, 0.0),
        (TWO, 1.0, 0.0),
        (NONE, None, 0.0),
    ],
)
def test_semantic(answer, similarity, value):
    assert REWARDS["semantic"](answer, THE, scores=PolicyScores(similarity=similarity)) == value
    assert SEMANTIC_SCALE < 1


@pytest.mark.parametrize("name", ["dense", "conditional_dense", "information_gain", "semantic"])
def test_absent_policy_scores_are_an_error_not_a_zero(name):
    reward = REWARDS[name]
    with pytest.raises(ForethinkError, match="needs the policy's"):
        score_group(reward, [BAD, GOOD], THE)
    with pytest.raises(ForethinkError, match="came without"):
        score_group(reward, [BAD, GOOD], THE, [PolicyScores(logprob_thought=-1.0)] * 2)


@pytest.mark.parametrize(
    ("text", "tokens", "value"),
    [
        (rb"\boxed{ the}", 0, 1.0),
        (rb"\boxed{ the}", 25, 0.75 + 0.25 * 0.75),
        (rb"\boxed{ the}", 100, 0.75),
        (rb"\boxed{ the}", 1000, 0.75),
        (rb"\boxed{ a}", 25, 0.25 * 0.75),
        (rb"\boxed{}", 1, 0.0),
        (rb"\boxed{ a}\boxed{ a}", 1, 0.0),
        (rb"", 1, 0.0),
        (rb"\boxed{", 1, 0.0),
    ],
)
def test_length_budget(text, tokens, value):
    reward = load_reward(config.Reward(length_weight=0.25, length_budget=100))
    assert reward(answered(text, tokens=tokens), THE) == pytest.approx(value)


def test_length_budget_leaves_unscored_answers_and_keeps_what_is_asked_for():
    assert with_length_budget(lambda answer, problem: None, 0.5, 10)(GOOD, THE) is None
    mixed = with_length_budget(REWARDS["conditional_dense"], 0.5, 10)
    assert needs(mixed) == {"group", "first_token_probability"}
    assert score_group(mixed, [GOOD, BAD], THE, [P, P]) == [0.75, 0.5 * 0.25 + 0.25]


def test_needs():
    assert {name: set(needs(reward)) for name, reward in REWARDS.items()} == {
        "prefix_match": set(),
        "first_token": set(),
        "dense": {"first_token_probability"},
        "conditional_dense": {"group", "first_token_probability"},
        "information_gain": {"logprob_thought", "logprob_plain"},
        "semantic": {"similarity"},
    }

    def own(answer: Answer, problem: Problem, *, scores: PolicyScores) -> float:
        return 0.0

    assert needs(own) == {"first_token_probability", "logprob_thought", "logprob_plain", "similarity"}
    assert needs(asks("similarity")(own)) == {"similarity"}
    with pytest.raises(ForethinkError, match="no such policy score"):
        asks("entropy")


@pytest.mark.parametrize(
    ("outcomes", "kind"),
    [
        ([RIGHT] * 8, "all_right"),
        ([WRONG] * 8, "all_wrong"),
        ([WRONG, MISSING, CUT_OFF], "all_wrong"),
        ([RIGHT, WRONG], None),
        ([MISSING] * 7 + [RIGHT], None),
        ([RIGHT], "all_right"),
        ([CUT_OFF], "all_wrong"),
    ],
)
def test_degenerate(outcomes, kind):
    assert degenerate(outcomes) == kind


def test_a_group_cannot_be_empty():
    with pytest.raises(ForethinkError, match="no completion"):
        degenerate([])


def test_a_shaped_reward_does_not_hide_a_group_without_a_right_answer():
    answers = [BAD, answered(rb"\boxed{ an}")]
    values = score_group(REWARDS["dense"], answers, THE, [P, PolicyScores(first_token_probability=0.5)])
    assert len(set(values)) == 2
    assert degenerate([outcome(answer, THE) for answer in answers]) == "all_wrong"


def test_a_reward_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def half(answer, problem):\n    return 0.5 if answer.prediction == problem.next_token else None\n"
        "def share(answer, problem, *, group):\n    return sum(a.prediction == answer.prediction for a in group)\n"
        "def bad(answer, problem):\n    return float('nan')\n"
        "def text(answer, problem):\n    return 'good'\n"
        "def short(answer):\n    return 1.0\n"
        "def odd(answer, problem, weather):\n    return 1.0\n"
    )

    def load(name: str):
        return load_reward(config.Reward(name=f"{tmp_path}/mine.py:{name}"))

    assert score_group(load("half"), [GOOD, BAD], THE) == [0.5, None]
    assert needs(load("share")) == {"group"}
    assert score_group(load("share"), [GOOD, BAD, BAD], THE) == [1.0, 2.0, 2.0]
    for name, words in {"bad": "finite", "text": "return a number"}.items():
        with pytest.raises(ForethinkError, match=words):
            score_group(load(name), [GOOD], THE)
    for name, words in {"short": "too few", "odd": "'weather'"}.items():
        with pytest.raises(ForethinkError, match=words):
            load(name)


def test_unknown_names():
    with pytest.raises(ForethinkError, match="prefix_match, first_token"):
        load_reward(config.Reward(name="prefix"))
    with pytest.raises(ForethinkError, match="no module"):
        load_reward(config.Reward(name="no_such_module_here:reward"))


def test_scores_must_be_one_per_answer():
    with pytest.raises(ForethinkError, match="2 answers but 1"):
        score_group(REWARDS["dense"], [GOOD, BAD], THE, [P])


def test_all_rewards_are_finite_and_best_when_right():
    full = PolicyScores(0.3, -1.0, -2.0, 0.2)
    for name, reward in REWARDS.items():
        values = score_group(reward, [GOOD, BAD, EMPTY, NONE], THE, [full] * 4)
        assert all(value is not None and math.isfinite(value) for value in values), name
        assert values[0] == max(value for value in values if value is not None), name

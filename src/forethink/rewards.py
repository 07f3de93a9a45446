"""What an answer is worth: pure functions of an answer and its problem, of its group and the policy where they ask.

A reward is ``def reward(answer: Answer, problem: Problem) -> float | None``; None means "not scored". One that needs
more names it as a keyword parameter:

* ``group``: the answers of the whole group, in order (``Sequence[Answer]``);
* ``scores``: what the policy itself makes of this answer (``PolicyScores``); :func:`asks` says which fields, all of
  them where it says nothing;
* ``group_scores``: the same of every answer of the group (``Sequence[PolicyScores]``).

A new reward is a function and a line in ``REWARDS``, or ``module:function`` in a configuration. Whatever the reward,
the plain :func:`outcome` is counted, and groups without a signal are found on it (:func:`degenerate`): a shaped reward
would let groups through that hold no right answer.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from forethink import config
from forethink.functions import load_function
from forethink.types import Answer, ForethinkError, Outcome, PolicyScores, Problem, Status

Reward = Callable[..., float | None]

SEMANTIC_SCALE = 0.5
"""The most that :func:`semantic` gives an answer that is not right."""

_FIELDS = frozenset(field.name for field in fields(PolicyScores))


def asks(*names: str) -> Callable[[Reward], Reward]:
    """Mark which fields of ``PolicyScores`` a reward reads, so that only those are computed."""
    unknown = set(names) - _FIELDS
    if unknown:
        raise ForethinkError(f"asks({', '.join(sorted(unknown))!r}): no such policy score; know {sorted(_FIELDS)}.")

    def mark(reward: Reward) -> Reward:
        reward.asks = frozenset(names)  # type: ignore[attr-defined]
        return reward

    return mark


def _right(answer: Answer, problem: Problem) -> bool:
    prediction = answer.prediction
    return (
        answer.status is Status.BOXED
        and len(prediction) in problem.token_ends
        and problem.target.startswith(prediction)
    )


def outcome(answer: Answer, problem: Problem) -> Outcome:
    """The plain verdict, the same whatever the reward.

    RIGHT iff the prefix-matching reward is 1; WRONG for another box, an empty one or several; MISSING for no box
    or one that was never closed; CUT_OFF at the token limit.
    """
    if _right(answer, problem):
        return Outcome.RIGHT
    if answer.status in (Status.MISSING, Status.UNCLOSED):
        return Outcome.MISSING
    return Outcome.CUT_OFF if answer.status is Status.CUT_OFF else Outcome.WRONG


def right_if_stripped(answer: Answer, problem: Problem) -> bool:
    """Whether a wrong box holds the true next tokens but for white space at its ends. A figure to log, no reward."""
    if answer.status is not Status.BOXED or _right(answer, problem):
        return False
    bare = answer.prediction.strip()
    return bool(bare) and any(problem.target[:end].strip() == bare for end in problem.token_ends)


def degenerate(outcomes: Sequence[Outcome]) -> str | None:
    """``"all_right"``, ``"all_wrong"`` (none is right) or None for a whole group's plain outcomes.

    Raises:
        ForethinkError: the group holds no completion.
    """
    if not outcomes:
        raise ForethinkError("a group holds no completion; set rollout.group to at least 1.")
    right = sum(result is Outcome.RIGHT for result in outcomes)
    return "all_right" if right == len(outcomes) else None if right else "all_wrong"


def prefix_match(answer: Answer, problem: Problem) -> float | None:
    """1 if the prediction's bytes are the true continuation up to the end of one of its tokens, else 0.

    The prefix-matching reward of arXiv 2506.08007, section 3.2.
    """
    return float(_right(answer, problem))


def first_token(answer: Answer, problem: Problem) -> float | None:
    """1 if the prediction is exactly the true next token, else 0 (arXiv 2506.08007, appendix on rewards)."""
    return float(answer.status is Status.BOXED and answer.prediction == problem.next_token)


def _score(scores: PolicyScores, name: str, reward: str) -> float:
    value: float | None = getattr(scores, name)
    if value is None:
        raise ForethinkError(f"reward {reward}: an answer came without {name}; score it with the policy first.")
    return value


@asks("first_token_probability")
def dense(answer: Answer, problem: Problem, *, scores: PolicyScores) -> float | None:
    """1 if right; for another box the policy's own probability of its first token, given the context alone; else 0.

    The dense reward of arXiv 2506.08007, appendix on rewards.
    """
    if answer.status is not Status.BOXED:
        return 0.0
    return 1.0 if _right(answer, problem) else _score(scores, "first_token_probability", "dense")


@asks("first_token_probability")
def conditional_dense(
    answer: Answer, problem: Problem, *, group: Sequence[Answer], scores: PolicyScores
) -> float | None:
    """The dense reward in groups with at least one right answer, 0 for all in the others (same appendix)."""
    if not any(_right(member, problem) for member in group):
        return 0.0
    return dense(answer, problem, scores=scores)


@asks("logprob_thought", "logprob_plain")
def information_gain(
    answer: Answer, problem: Problem, *, scores: PolicyScores, group_scores: Sequence[PolicyScores] = ()
) -> float | None:
    """How much the thought helps: log p(x_t | context, thought) − log p(x_t | context), in nats (arXiv 2510.01265).

    The first term is read inside the box, so it is there wherever a box was opened after the thought, whatever the box
    then holds: the reward is for the thought. Where none was opened (``logprob_thought`` is None) the answer gets the
    group's lowest gain, and never more than 0, the gain of a thought that changes nothing. A gain can be negative, so
    a fixed 0 would pay for not answering, and a fixed large loss would outweigh all else in its group.
    """
    del answer, problem
    if scores.logprob_thought is not None:
        return scores.logprob_thought - _score(scores, "logprob_plain", "information_gain")
    gains = [
        member.logprob_thought - _score(member, "logprob_plain", "information_gain")
        for member in group_scores
        if member.logprob_thought is not None
    ]
    return min([0.0, *gains])


@asks("similarity")
def semantic(answer: Answer, problem: Problem, *, scores: PolicyScores) -> float | None:
    """1 if right; for another box ``SEMANTIC_SCALE · (similarity + 1) / 2``, at most a half; else 0.

    Similarity is the cosine between prediction and true tokens in the policy's own input embeddings: a reward of
    local semantic consistency that is cheap, dense, and never as good as being right.
    """
    if answer.status is not Status.BOXED:
        return 0.0
    if _right(answer, problem):
        return 1.0
    return SEMANTIC_SCALE * (_score(scores, "similarity", "semantic") + 1.0) / 2.0


REWARDS: dict[str, Reward] = {
    "prefix_match": prefix_match,
    "first_token": first_token,
    "dense": dense,
    "conditional_dense": conditional_dense,
    "information_gain": information_gain,
    "semantic": semantic,
}


def with_length_budget(reward: Reward, weight: float, budget: int) -> Reward:
    """Mix a reward with a length budget: ``(1 − w) · reward + w · max(0, 1 − tokens / budget)`` (arXiv 2509.24375).

    The second term is paid for non-empty single boxes only: paid for every completion, it would be earned best by
    ending at once without an answer. An answer that is not scored stays so.

    Args:
        reward: any reward.
        weight: w in [0, 1].
        budget: tokens of completion at which nothing is left of the second term.
    """

    @functools.wraps(reward)  # keeps what the reward asks for
    def mixed(answer: Answer, problem: Problem, **more: Any) -> float | None:
        value = reward(answer, problem, **more)
        if value is None:
            return None
        spare = max(0.0, 1.0 - answer.tokens / budget) if answer.status is Status.BOXED else 0.0
        return (1.0 - weight) * value + weight * spare

    return mixed


_KNOWN = ("group", "scores", "group_scores")


def load_reward(settings: config.Reward) -> Reward:
    """The reward of a configuration, with its length budget where one is set.

    Raises:
        ForethinkError: no such reward, or a function that cannot be called as one.
    """
    name = settings.name
    if name not in REWARDS and ":" not in name:
        raise ForethinkError(f"no reward {name!r}; choose one of {', '.join(REWARDS)}, or name a module:function.")
    reward = REWARDS[name] if name in REWARDS else load_function(name)
    parameters = list(inspect.signature(reward).parameters.values())
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    extra = [p for p in parameters[2:] if p.kind not in variadic and p.default is inspect.Parameter.empty]
    if len(parameters) < 2 or any(p.name not in _KNOWN for p in extra):
        wrong = next((p.name for p in extra if p.name not in _KNOWN), None)
        found = f"asks for {wrong!r}" if wrong else "takes too few arguments"
        raise ForethinkError(f"reward {name}: {found}; write def reward(answer, problem, *, {', '.join(_KNOWN)}).")
    if settings.length_weight > 0:
        return with_length_budget(reward, settings.length_weight, settings.length_budget)
    return reward


def _asked(reward: Reward) -> set[str]:
    return set(inspect.signature(reward).parameters) & set(_KNOWN)


def needs(reward: Reward) -> frozenset[str]:
    """What must be at hand to call a reward: "group", and names of ``PolicyScores`` fields to compute."""
    asked = _asked(reward)
    own = asked & {"group"}
    if asked & {"scores", "group_scores"}:
        own |= getattr(reward, "asks", _FIELDS)
    return frozenset(own)


def score_group(
    reward: Reward, answers: Sequence[Answer], problem: Problem, scores: Sequence[PolicyScores] | None = None
) -> list[float | None]:
    """The rewards of a whole group.

    Args:
        reward: from :func:`load_reward`.
        answers: the G answers of one problem.
        problem: that problem.
        scores: one per answer; needed where :func:`needs` names a policy score.

    Returns:
        G rewards, None where an answer is not scored.

    Raises:
        ForethinkError: scores are needed and absent, or the reward returns no finite number.
    """
    asked = _asked(reward)
    name = getattr(reward, "__name__", str(reward))
    if asked & {"scores", "group_scores"} and scores is None:
        raise ForethinkError(f"reward {name}: needs the policy's {', '.join(sorted(needs(reward)))}; pass its scores.")
    if scores is not None and len(scores) != len(answers):
        raise ForethinkError(f"problem {problem.id}: {len(answers)} answers but {len(scores)} policy scores.")
    values: list[float | None] = []
    for i, answer in enumerate(answers):
        at_hand = {"group": answers, "scores": scores and scores[i], "group_scores": scores}
        value = reward(answer, problem, **{key: at_hand[key] for key in asked})
        try:
            values.append(None if value is None else float(value))
        except (TypeError, ValueError):
            raise ForethinkError(
                f"reward {name}: returned {value!r} on {problem.id}; return a number or None."
            ) from None
        if value is not None and not math.isfinite(value):
            raise ForethinkError(f"reward {name}: returned {value} on {problem.id}; return a finite number or None.")
    return values

"""The records that pass between stages, and the one error type a user sees.

Every index convention of the package is fixed here:

* Tokens of a document are numbered ``0 … T-1``. Everything stored *at* index ``t`` (entropy, arg-max,
  log-probability) is about predicting token ``t`` from the tokens before it, ``x_<t``. Nothing at ``t`` may
  depend on token ``t`` itself or on what follows, except ``logprob`` which is the true token's.
* ``byte_ends[t]`` is the number of document bytes covered by tokens ``0 … t``, so token ``t`` is
  ``text[byte_ends[t-1]:byte_ends[t]]`` (with ``byte_ends[-1]`` read as 0).
* Text is handled as bytes wherever a token may end inside a UTF-8 character.

This module imports nothing heavier than the standard library.
"""

from __future__ import annotations

import enum
import errno
from dataclasses import dataclass


class ForethinkError(Exception):
    """A mistake a user can put right. The message is one sentence: file, record, remedy. Exit code 2."""


def first_line(error: BaseException) -> str:
    """A foreign error's first line without its full stop, to be told inside a sentence of ours."""
    return str(error).strip().split("\n", 1)[0].rstrip(".") or type(error).__name__


_FULL = ("No space left on device", "StorageFull", "file write failed", "Disk quota exceeded")


def disk_full(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error: safetensors and torch wrap the system's own one."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, Exception) and any(mark in str(error) for mark in _FULL):
            return True
        error = error.__cause__ or error.__context__
    return False


@dataclass(frozen=True, slots=True)
class Document:
    """One text of the corpus. ``id`` is stable: the same text from the same source always gets the same id."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document's tokens under a proxy model, each list of length T (number of tokens).

    Attributes:
        id: the document's id.
        text: the document's UTF-8 bytes; the token bytes joined are exactly this.
        token_ids: the proxy tokenizer's ids.
        byte_ends: cumulative byte end of every token.
        entropy: entropy in nats over the top k (16) next tokens, renormalised; NaN where nothing precedes.
        entropy_raw: the same sum without renormalisation.
        entropy_full: entropy in nats over the whole vocabulary.
        argmax: the proxy's most probable token at this position; -1 where nothing precedes.
        logprob: natural log-probability of the true token; NaN where nothing precedes.
        short: True for positions scored on a context so short that their entropy reads falsely high.
    """

    id: str
    text: bytes
    token_ids: list[int]
    byte_ends: list[int]
    entropy: list[float]
    entropy_raw: list[float]
    entropy_full: list[float]
    argmax: list[int]
    logprob: list[float]
    short: list[bool]


@dataclass(frozen=True, slots=True)
class Problem:
    """One position of one document as a task. Holds no prompt: words change without re-scoring.

    Attributes:
        id: ``"<document id>:<token index>"``.
        document: the document's id.
        index: token index t in the *policy's* tokenisation of the document.
        split: ``"train"`` or ``"validation"``; every document lies in one split only.
        context: the bytes before the position, cut from the left to ``max_context`` tokens. Valid UTF-8 unless
            the cut fell inside a character.
        context_ids: the policy's token ids of ``context``, taken from the document's own tokenisation.
        target: the true bytes after the position (a bounded number of tokens).
        target_ids: the policy's token ids of ``target``.
        token_ends: cumulative byte lengths of the target's tokens (the set L of the prefix-matching reward).
        entropy, entropy_raw, entropy_full, logprob: the proxy's figures at this position, in nats.
        argmax_bytes: bytes of the proxy's most probable next token.
    """

    id: str
    document: str
    index: int
    split: str
    context: bytes
    context_ids: tuple[int, ...]
    target: bytes
    target_ids: tuple[int, ...]
    token_ends: tuple[int, ...]
    entropy: float
    entropy_raw: float
    entropy_full: float
    logprob: float
    argmax_bytes: bytes

    @property
    def next_token(self) -> bytes:
        """Bytes of the true next token."""
        return self.target[: self.token_ends[0]]


class Finish(enum.StrEnum):
    """Why a completion ended."""

    STOP = "stop"  # end-of-sequence token, or the closing brace of its box
    LENGTH = "length"  # the token limit


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote after one prompt.

    Attributes:
        problem: the problem's id.
        sample: number of this completion in its group, from 0.
        token_ids: generated ids, end-of-sequence included where it was generated.
        text: the generated bytes, the token bytes joined; the end-of-sequence token adds none.
        logprobs: natural log-probability of each generated token under the sampling distribution (temperature
            applied), same length as ``token_ids``.
        finish: why it ended.
        weights: version of the weights it was sampled from; the trainer refuses any other than its own.
    """

    problem: str
    sample: int
    token_ids: tuple[int, ...]
    text: bytes
    logprobs: tuple[float, ...]
    finish: Finish
    weights: int


class Status(enum.StrEnum):
    """What the reader found in a completion."""

    BOXED = "boxed"  # exactly one closed, non-empty box
    EMPTY = "empty"  # the box holds nothing
    SEVERAL = "several"  # more than one box: no single answer
    UNCLOSED = "unclosed"  # a box was opened and never closed, and the completion ended by itself
    MISSING = "missing"  # no box
    CUT_OFF = "cut_off"  # the token limit came before a closed box or before the end of the thought


class Outcome(enum.StrEnum):
    """The plain verdict on an answer, the same whatever the reward."""

    RIGHT = "right"
    WRONG = "wrong"
    MISSING = "missing"
    CUT_OFF = "cut_off"


@dataclass(frozen=True, slots=True)
class Answer:
    """A completion as read: its status, the prediction's bytes (empty unless BOXED) and the thought before it."""

    status: Status
    prediction: bytes
    thought: str
    tokens: int = 0  # generated tokens of the completion, for length rewards


@dataclass(frozen=True, slots=True)
class PolicyScores:
    """What some rewards ask of the policy itself, computed once per completion. None where not asked for.

    Attributes:
        first_token_probability: the policy's plain probability, given the context alone, of the prediction's
            first token.
        logprob_thought: natural log p(x_t | context, thought), read inside the box after the thought.
        logprob_plain: natural log p(x_t | context), no thought.
        similarity: cosine in the policy's input embeddings between prediction and true tokens, in [-1, 1].
    """

    first_token_probability: float | None = None
    logprob_thought: float | None = None
    logprob_plain: float | None = None
    similarity: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of ``samples.jsonl``: a completion with its answer, outcome and reward."""

    step: int
    problem: str
    sample: int
    completion: Completion
    answer: Answer
    outcome: Outcome
    reward: float | None

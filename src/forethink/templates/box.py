r"""Reading an answer out of a completion, and writing one.

The reader's rule, on bytes; the prompt is never read:

1. **Thought.** Where the prompt opened a thought, or the completion holds ``<think>``, only what follows the last
   ``</think>`` is read; without one the completion is CUT_OFF if it ended at the token limit, else MISSING. A
   ``</think>`` that nothing opened cuts in the same way.
2. **Box.** A box starts at ``\boxed{``; after an odd number of further backslashes (``\\boxed{``) it is none. Inside,
   bytes are literal except these escapes: ``\{``, ``\}`` and ``\\`` stand for ``{``, ``}`` and ``\``; ``\n``, ``\t``
   and ``\r`` stand for newline, tab and carriage return unless an ASCII letter follows, so that ``\nu``, ``\neq``,
   ``\theta`` and ``\rho`` stay as they are. A backslash before anything else is literal. Unescaped braces nest and
   are literal; the box ends at the unescaped ``}`` that matches its start. White space counts, raw newlines too.
3. **Status.** Exactly one closed box: BOXED, or EMPTY if nothing is inside. A second ``\boxed{`` after the first box's
   end: SEVERAL. Opened and never closed: CUT_OFF at the token limit, else UNCLOSED. None: CUT_OFF at the token limit,
   else MISSING. A single closed box counts even at the token limit.

The writer escapes as little as that rule allows: matched braces stay, unmatched ones are escaped; a backslash is
doubled only where it would be read as an escape; newline, tab and carriage return become ``\n``, ``\t`` and ``\r``
where no ASCII letter follows, else they stay raw. ``read(write(x))`` gives ``x`` for all bytes that
:func:`inexpressible` lets pass.
"""

from __future__ import annotations

import re

from forethink.types import Answer, Finish, Problem, Status

_OPEN, _CLOSE = b"<think>", b"</think>"
_START = b"\\boxed{"
_MARK = re.compile(rb"\\[{}\\]|[{}]")
_ESCAPE = re.compile(rb"\\(?:[{}\\]|[ntr](?![A-Za-z]))")
_PLAIN = {b"\\n": b"\n", b"\\t": b"\t", b"\\r": b"\r", b"\\{": b"{", b"\\}": b"}", b"\\\\": b"\\"}
_NAMED = {ord("\n"): b"\\n", ord("\t"): b"\\t", ord("\r"): b"\\r"}
_SPECIAL = re.compile(rb"[\\{}\n\t\r]")
_LETTERS = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


def _after_thought(text: bytes, thought_open: bool) -> int | None:
    """Offset from which the answer is read; None while a thought is open."""
    end = text.rfind(_CLOSE)
    if end >= 0:
        return end + len(_CLOSE)
    return None if thought_open or _OPEN in text else 0


def _start(text: bytes, at: int) -> int | None:
    """Offset of the inside of the first box at or after ``at``, which no backslash precedes; None where none is."""
    while (at := text.find(_START, at)) >= 0:
        head = at
        while head > 0 and text[head - 1] == ord("\\"):
            head -= 1
        at += len(_START)
        if (at - len(_START) - head) % 2 == 0:
            return at
    return None


def _end(text: bytes, start: int) -> int | None:
    """Offset of the brace that closes the box whose inside starts at ``start``; None where none does."""
    depth = 1
    for mark in _MARK.finditer(text, start):
        if mark[0] == b"{":
            depth += 1
        elif mark[0] == b"}":
            depth -= 1
            if depth == 0:
                return mark.start()
    return None


def _find(text: bytes, start: int) -> tuple[int, int | None] | None:
    """The first box at or after ``start``: where its inside starts and where it ends, None while unclosed."""
    inside = _start(text, start)
    return None if inside is None else (inside, _end(text, inside))


def _thought(text: bytes, region: int | None, inside: int | None) -> str:
    if region == 0:
        thought = text if inside is None else text[: inside - len(_START)]
    else:
        thought = text if region is None else text[: region - len(_CLOSE)]
        if thought.lstrip().startswith(_OPEN):
            thought = thought.lstrip()[len(_OPEN) :]
    return thought.decode("utf-8", errors="replace")


def read(text: bytes, *, finish: Finish, thought_open: bool = False, tokens: int = 0) -> Answer:
    r"""Read a completion by the rule that heads this module.

    Args:
        text: the completion's bytes, without the prompt.
        finish: why it ended.
        thought_open: the prompt ends inside an opened ``<think>`` (see ``Template.opens_thought``).
        tokens: number of generated tokens, passed on for length rewards.

    Returns:
        The answer. Its thought is what stands between the think tags, or before the box where there are none, with
        replacement characters for bytes that are no UTF-8. Takes time linear in the text's length.
    """
    region = _after_thought(text, thought_open)
    box = None if region is None else _find(text, region)
    thought = _thought(text, region, None if box is None else box[0])
    limit = finish is Finish.LENGTH
    if box is None:
        return Answer(Status.CUT_OFF if limit else Status.MISSING, b"", thought, tokens)
    inside, end = box
    if end is None:
        return Answer(Status.CUT_OFF if limit else Status.UNCLOSED, b"", thought, tokens)
    if _start(text, end + 1) is not None:
        return Answer(Status.SEVERAL, b"", thought, tokens)
    prediction = text[inside:end]
    if b"\\" in prediction:
        prediction = _ESCAPE.sub(lambda escape: _PLAIN[escape[0]], prediction)
    return Answer(Status.BOXED if prediction else Status.EMPTY, prediction, thought, tokens)


def read_last(text: bytes, *, finish: Finish, thought_open: bool = False, tokens: int = 0) -> Answer:
    r"""Read a worked solution: its last box after the thought counts, as is usual where answers are checked.

    Earlier boxes are steps on the way, so there is no SEVERAL. The inside is LaTeX for a verifier and stays as it
    stands, escapes and outer white space included. Where the last box is not closed, none counts.

    Args and returns are those of :func:`read`; the thought is all that stands before the last box, or between the
    think tags. Takes time linear in the text's length.
    """
    region = _after_thought(text, thought_open)
    last, at = None, region
    while at is not None and (at := _start(text, at)) is not None:
        last = at
    thought = _thought(text, region, last)
    limit = finish is Finish.LENGTH
    if last is None:
        return Answer(Status.CUT_OFF if limit else Status.MISSING, b"", thought, tokens)
    end = _end(text, last)
    if end is None:
        return Answer(Status.CUT_OFF if limit else Status.UNCLOSED, b"", thought, tokens)
    inside = text[last:end]
    return Answer(Status.BOXED if inside.strip() else Status.EMPTY, inside if inside.strip() else b"", thought, tokens)


def box_closed(text: bytes, thought_open: bool) -> bool:
    """Whether the answer's box is closed, the thought behind it: an engine stops the completion there.

    At the first prefix of a completion for which this is true, :func:`read` gives BOXED or EMPTY; it stays true for
    every longer text without a further thought tag.
    """
    if b"}" not in text:
        return False
    region = _after_thought(text, thought_open)
    box = None if region is None else _find(text, region)
    return box is not None and box[1] is not None


def box_opens(text: bytes, thought_open: bool = False) -> int | None:
    r"""Offset just behind the ``\boxed{`` that :func:`read` reads, None where no box is opened after the thought.

    Rewards that score the true token "inside the box, after the thought" read the policy there.
    """
    region = _after_thought(text, thought_open)
    return None if region is None else _start(text, region)


def _unmatched(target: bytes) -> set[int]:
    """Offsets of braces without a partner."""
    opened: list[int] = []
    alone: set[int] = set()
    for at, byte in enumerate(target):
        if byte == ord("{"):
            opened.append(at)
        elif byte == ord("}"):
            if opened:
                opened.pop()
            else:
                alone.add(at)
    return alone.union(opened)


def _is_escape(backwards: bytearray) -> bool:
    """Whether a backslash before these written bytes (last byte first) would be read as an escape."""
    following = backwards[-1]
    if following in b"{}\\":
        return True
    return following in b"ntr" and backwards[-2] not in _LETTERS


def write(target: bytes) -> bytes:
    r"""The answer whose prediction is ``target``: ``\boxed{…}``, escaped as little as the reader's rule allows.

    Args:
        target: any bytes; whether a reader gets them back is what :func:`inexpressible` says.
    """
    if not _SPECIAL.search(target):
        return _START + target + b"}"
    alone = _unmatched(target)
    backwards = bytearray(b"}")  # built from the end: what a backslash means depends on what follows it
    for at in range(len(target) - 1, -1, -1):
        byte = target[at]
        if byte == ord("\\"):
            backwards += b"\\\\" if _is_escape(backwards) else b"\\"
        elif byte in _NAMED and backwards[-1] not in _LETTERS:
            backwards += _NAMED[byte][::-1]
        elif at in alone:
            backwards += bytes((byte, ord("\\")))
        else:
            backwards.append(byte)
    return _START + bytes(reversed(backwards))


def inexpressible(target: bytes) -> str | None:
    """Why no box can hold these bytes, or None where one can."""
    if not target:
        return "empty"
    try:
        target.decode("utf-8")
    except UnicodeDecodeError as error:
        return (
            "starts inside a character" if error.start == 0 and target[0] & 0xC0 == 0x80 else "ends inside a character"
        )
    if _OPEN in target or _CLOSE in target:
        return "holds a thought tag"
    return None


def expressible(problem: Problem, n_tokens: int) -> str | None:
    """None where a box can hold the true next ``n_tokens`` tokens, else the reason why it cannot.

    Reasons: "empty", "starts inside a character", "ends inside a character" (a token may end inside a UTF-8
    character), "holds a thought tag", and "too few tokens left".
    """
    if n_tokens > len(problem.token_ends):
        return "too few tokens left"
    return inexpressible(problem.target[: problem.token_ends[n_tokens - 1]] if n_tokens > 0 else b"")

"""Multiple-choice questions: reading them from files, and reading the chosen letter from a reply.

A record has ``question``, ``options`` (a list of texts), ``answer`` (a letter, or the text of one option) and, where
there is one, a category. Options are lettered A, B, C … in their order.
"""

from __future__ import annotations

import enum
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forethink.types import ForethinkError, first_line

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Question:
    """One record. ``number`` counts the file's records from 1; ``answer`` is a letter."""

    number: int
    category: str
    question: str
    options: tuple[str, ...]
    answer: str


class Read(enum.StrEnum):
    """What the reader found in a reply."""

    LETTER = "letter"  # one letter that an option has
    OUT_OF_RANGE = "out_of_range"  # one letter that no option has
    SEVERAL = "several"  # the last statement names more than one letter
    CUT_OFF = "cut_off"  # no statement, and the token limit came first
    MISSING = "missing"  # no statement


_ONE = r"(?:\(\s*([A-Za-z])\s*\\?\)|([A-Z])(?!\w)|([a-z])(?=\s*(?:$|[.,;:!?)}\]\n*])))"
_NAMES = rf"(?P<names>{_ONE}(?:\s*(?:,|/|&|\band\b|\bor\b)\s*(?:\(\s*[A-Za-z]\s*\\?\)|[A-Z](?!\w)))*)"
_FILL = r"[\s*_$\"'`\\]*"
_STATEMENT = re.compile(
    r"(?i:\b(?:answer|correct\s+(?:option|choice))(?:\s+(?:option|choice))?)[*_]*\s*"
    r"(?i::|=|\b(?:is|would\s+be|should\s+be|must\s+be)\b\s*:?)"
    rf"{_FILL}(?i:\b(?:option|choice)\b)?{_FILL}{_NAMES}"
)
_BOX = re.compile(
    r"\\boxed\s*\{[\s$*]*(?:\\(?:text|textbf|textit|mathrm|mathbf|mathsf|rm)\s*\{)?\s*" + _NAMES + r"\s*[}.:)]"
)
_LONE = re.compile(r"[\W_]*([A-Za-z])[\W_]*")
_LEADING = re.compile(r"[\s*_]*(?:\(([A-Z])\)|([A-Z])[.):])")


def read_letter(text: str, options: int, *, thought_open: bool = False, cut: bool = False) -> tuple[Read, str | None]:
    r"""The letter a reply settles on.

    What follows the last ``</think>`` is read. A statement is a box (``\boxed{C}``) or words such as "the answer is
    (C)" or "Answer: C"; the last one counts, since models correct themselves. Without any, a reply that begins with
    ``(C)``, ``C.`` or ``C)``, or is nothing but a letter, counts. Lower-case letters count where they stand alone.

    Args:
        text: what was generated, without the prompt.
        options: number of options.
        thought_open: the prompt ends inside an opened thought.
        cut: generation ended at the token limit.

    Returns:
        What was found, and the upper-case letter where that is LETTER or OUT_OF_RANGE.
    """
    nothing = (Read.CUT_OFF if cut else Read.MISSING, None)
    _, closed, tail = text.rpartition("</think>")
    if not closed and (thought_open or "<think>" in tail):
        return nothing
    found = sorted([*_STATEMENT.finditer(tail), *_BOX.finditer(tail)], key=lambda match: match.start("names"))
    if found:
        named = list(dict.fromkeys(re.findall(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])", found[-1]["names"])))
    elif match := _LONE.fullmatch(tail) or _LEADING.match(tail):
        named = [letter for letter in match.groups() if letter]
    else:
        return nothing
    letters = list(dict.fromkeys(letter.upper() for letter in named))
    if len(letters) > 1:
        return Read.SEVERAL, None
    return (Read.LETTER if LETTERS.index(letters[0]) < options else Read.OUT_OF_RANGE), letters[0]


def boxed_letter(text: bytes, thought_open: bool = False) -> bool:
    """Whether a reply, its thought closed, has boxed a letter: there is nothing more to wait for."""
    _, closed, tail = text.decode("utf-8", errors="replace").rpartition("</think>")
    return bool((closed or not (thought_open or "<think>" in tail)) and _BOX.search(tail))


def read_questions(name: str, split: str, category: str) -> list[Question]:
    """The questions of a local JSON-lines or Parquet file, or of a data set of the hub.

    Args:
        name: a file, or a hub id ``owner/name`` (``owner/name:configuration``).
        split: split of a hub data set.
        category: the field that holds a question's category; where a record lacks it, the category is "all".

    Raises:
        ForethinkError: no such file or data set, or a record that is no multiple-choice question.
    """
    path = Path(name)
    records = _file(path) if path.is_file() else _hub(name, split)
    questions = [_question(name, number, record, category) for number, record in records]
    if not questions:
        raise ForethinkError(f"{name}: holds no record; name a file of multiple-choice questions.")
    return questions


def _file(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix.lower() == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            yield from enumerate(pq.read_table(path).to_pylist(), 1)
        except (pa.ArrowInvalid, OSError) as error:
            raise ForethinkError(f"{path}: no readable Parquet file ({first_line(error)}); get it again.") from None
        return
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as file:
            for line_number, line in enumerate(file, 1):
                if line.strip():
                    number += 1
                    try:
                        record = json.loads(line)
                    except ValueError as error:
                        raise ForethinkError(
                            f"{path}: line {line_number} is not JSON ({error}); mend or remove that line."
                        ) from None
                    yield number, record
    except (OSError, UnicodeDecodeError) as error:
        raise ForethinkError(f"{path}: cannot be read ({first_line(error)}); name a UTF-8 file.") from None


def _hub(name: str, split: str) -> Iterator[tuple[int, Any]]:
    absent = f"{name}: no such file, and no data set of the hub with a split {split!r} that can be reached"
    repository, _, configuration = name.partition(":")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or Path(repository).suffix in (".jsonl", ".json", ".parquet"):
        raise ForethinkError(f"{absent}; name an existing JSON-lines or Parquet file, or owner/name.")
    import datasets

    try:
        yield from enumerate(datasets.load_dataset(repository, configuration or None, split=split), 1)
    except (OSError, ValueError, RuntimeError) as error:  # offline, unknown, private, unknown split
        raise ForethinkError(f"{absent} ({first_line(error)}); set tasks.split, or name a local file.") from None


def _question(name: str, number: int, record: Any, category: str) -> Question:
    where = f"{name}: record {number}"
    if not isinstance(record, Mapping):
        raise ForethinkError(f"{where} is no JSON object; write one object a line.")
    for field in ("question", "options", "answer"):
        if record.get(field) is None:
            have = ", ".join(map(repr, record))
            raise ForethinkError(f"{where} has no {field!r} (it has {have}); write question, options and answer.")
    question, options, answer = record["question"], record["options"], record["answer"]
    texts = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not isinstance(question, str) or not texts or not 1 <= len(options) <= len(LETTERS):
        raise ForethinkError(f"{where}: needs a text as 'question' and a list of 1 to 26 texts as 'options'; mend it.")
    letters = LETTERS[: len(options)]
    if answer not in list(letters):
        if options.count(answer) != 1:
            raise ForethinkError(
                f"{where}: 'answer' is {str(answer)[:40]!r}, neither a letter {letters[0]}–{letters[-1]} nor one of "
                "the options; mend it."
            )
        answer = letters[options.index(answer)]
    return Question(number, str(record.get(category) or "all"), question, tuple(options), answer)


def draw_questions(questions: Sequence[Question], limit: int | None, seed: int) -> list[int]:
    """Indices of the questions to ask, ascending: all, or the first ``limit`` in the order of a hash of the seed."""

    def place(index: int) -> bytes:
        return hashlib.sha256(f"tasks\0{seed}\0{questions[index].number}".encode()).digest()

    return sorted(sorted(range(len(questions)), key=place)[:limit])

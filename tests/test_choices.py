"""Multiple-choice questions: the reader of letters, and the files."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from forethink.evaluate.choices import Read, boxed_letter, read_letter, read_questions
from forethink.types import ForethinkError

CASES = [
    ("The answer is (C)", Read.LETTER, "C"),
    ("the answer is (C).", Read.LETTER, "C"),
    (r"\boxed{C}", Read.LETTER, "C"),
    (r"So it is $\boxed{\text{B}}$.", Read.LETTER, "B"),
    (r"\boxed{(d)}", Read.LETTER, "D"),
    (r"\boxed{B. 42 joules}", Read.LETTER, "B"),
    ("answer: c", Read.LETTER, "C"),
    ("**Answer:** C", Read.LETTER, "C"),
    ("**Final answer**: **A**", Read.LETTER, "A"),
    ("The correct option is option b.", Read.LETTER, "B"),
    (r"Hence the answer is \(D\)", Read.LETTER, "D"),
    ("The answer is $A$ because 2 > 1", Read.LETTER, "A"),
    (" C", Read.LETTER, "C"),
    ("(B) The second one.", Read.LETTER, "B"),
    ("C. It follows.", Read.LETTER, "C"),
    ("The answer is (A). Wait, that is wrong. The answer is (B).", Read.LETTER, "B"),
    (r"The answer is A, no: \boxed{D}", Read.LETTER, "D"),
    ("The answer is C, and A is wrong.", Read.LETTER, "C"),
    ("<think>The answer is (A)</think>The answer is (B)", Read.LETTER, "B"),
    ("The answer is (J)", Read.OUT_OF_RANGE, "J"),
    (r"\boxed{Z}", Read.OUT_OF_RANGE, "Z"),
    ("The answer is A or B.", Read.SEVERAL, None),
    (r"\boxed{A, C}", Read.SEVERAL, None),
    ("The answer is (A) and (C)", Read.SEVERAL, None),
    ("", Read.MISSING, None),
    ("I think it is the first.", Read.MISSING, None),
    ("The answer is not (C).", Read.MISSING, None),
    ("The answer is a number.", Read.MISSING, None),
    ("Answer: Before 1900.", Read.MISSING, None),
    (r"\boxed{42}", Read.MISSING, None),
    (r"\boxed{A + B}", Read.MISSING, None),
    ("<think>The answer is (A)", Read.MISSING, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "read", "letter"), CASES, ids=lambda value: str(value)[:40])
def test_the_letter_is_read(text: str, read: Read, letter: str | None) -> None:
    assert read_letter(text, 4) == (read, letter)


@pytest.mark.parametrize("text", ["", "Let us see: if x is 3, then", "The answer is (C", "<think>The answer is (A)"])
def test_what_the_token_limit_cut_is_counted_apart(text: str) -> None:
    assert read_letter(text, 4, cut=True) == (Read.CUT_OFF, None)
    assert read_letter("The answer is (C). And then", 4, cut=True) == (Read.LETTER, "C")


def test_a_thought_that_the_prompt_opened_is_not_read() -> None:
    assert read_letter("The answer is (A)", 4, thought_open=True) == (Read.MISSING, None)
    assert read_letter("A</think>The answer is (B)", 4, thought_open=True) == (Read.LETTER, "B")
    assert not boxed_letter(rb"\boxed{A}", thought_open=True)
    assert boxed_letter(rb"\boxed{A}") and boxed_letter(rb"x</think>\boxed{A}", thought_open=True)
    assert not boxed_letter(rb"<think>\boxed{A}") and not boxed_letter(rb"\boxed{17}")


def test_answers_as_text_and_other_fields_are_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"question": "q", "options": ["x", "y"], "answer": "y", "discipline": "Law"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "q.parquet")
    (one,) = read_questions(str(tmp_path / "q.parquet"), "test", "discipline")
    assert (one.number, one.answer, one.category, one.options) == (1, "B", "Law", ("x", "y"))
    (tmp_path / "q.jsonl").write_text(json.dumps(rows[0]) + "\n")
    assert read_questions(str(tmp_path / "q.jsonl"), "test", "category")[0].category == "all"


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "record 1 is no JSON object"),
        ('{"question": "q", "options": ["x"]}', "record 1 has no 'answer'"),
        ('{"question": "q", "options": "xy", "answer": "A"}', "needs a text as 'question'"),
        ('{"question": "q", "options": [], "answer": "A"}', "needs a text as 'question'"),
        ('{"question": "q", "options": ["x", "y"], "answer": "C"}', "'answer' is 'C', neither a letter A–B"),
        ('{"question": "q", "options": ["x", "x"], "answer": "x"}', "'answer' is 'x'"),
        ("", "holds no record"),
    ],
)
def test_a_bad_record_is_one_sentence(tmp_path: Path, line: str, complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ForethinkError, match=complaint) as error:
        read_questions(str(path), "test", "category")
    assert str(path) in str(error.value) and "\n" not in str(error.value)


SAMPLES = os.environ.get("FORETHINK_TASK_FILES")


@pytest.mark.skipif(not SAMPLES, reason="set FORETHINK_TASK_FILES to a folder with question files")
def test_files_at_hand_are_read_whole() -> None:
    for path in sorted(Path(str(SAMPLES)).glob("*.jsonl")):
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        asked = read_questions(str(path), "test", "category")
        assert len(asked) == len(records)
        assert Counter(q.answer for q in asked) == Counter(r["answer"] for r in records)

"""Questions: their sources, how a worked answer is read, and who says that it is right."""

from __future__ import annotations

import copy
import gzip
import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forethink.config import load_config
from forethink.questions import held_out_questions, held_out_source, training_questions
from forethink.templates import load_template, read_last
from forethink.types import Answer, Finish, ForethinkError, Outcome, Question, Status
from forethink.verify import Verifier

GSM8K = [
    {"question": "Ann has 3 pens and buys 4. How many?", "answer": "3 + 4 = <<3+4=7>>7 pens.\n#### 7"},
    {"question": "A car costs $1,000 and a bus twice that. Both?", "answer": "#### 5\nno:\n#### 3,000"},
    {"question": "Half of 9?", "answer": "#### 4.5"},
]


def ids(text: str) -> list[int]:
    return list(text.encode())


def lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def load(*overrides: str) -> tuple[list[Question], Counter[str]]:
    config, dropped = load_config(None, overrides), Counter[str]()
    held_out = held_out_questions(config, ids, Counter()) if held_out_source(config.questions) else []
    return training_questions(config, ids, dropped, held_out), +dropped


def test_an_answer_is_found_in_a_worked_solution(tmp_path: Path) -> None:
    file = lines(tmp_path / "gsm8k.jsonl", GSM8K)
    questions, dropped = load(f"questions.source={file}", "questions.pattern=#### (.+)")
    assert [one.answer for one in questions] == ["7", "3,000", "4.5"] and not dropped
    assert [one.text for one in questions] == [record["question"] for record in GSM8K]
    assert [one.index for one in questions] == [0, 1, 2] and len({one.id for one in questions}) == 3
    assert questions[2].context_ids == tuple(ids("Half of 9?"))
    whole, _ = load(f"questions.source={file}")
    assert whole[0].answer == GSM8K[0]["answer"]
    bare, _ = load(f"questions.source={file}", r"questions.pattern=\d+$")  # no group: the match itself
    assert [one.answer for one in bare] == ["7", "000", "5"]


def test_every_kind_of_file_and_field(tmp_path: Path) -> None:
    records = [{"q": f"{i} plus 1?", "n": i + 1} for i in range(3)]
    plain = lines(tmp_path / "plain.jsonl", records)
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    table = tmp_path / "table.parquet"
    pq.write_table(pa.Table.from_pylist(records), table)
    fields = ("questions.question=q", "questions.answer=n")
    found = [load(f"questions.source={file}", *fields)[0] for file in (plain, packed, table)]
    assert found[0] == found[1] == found[2] and [one.answer for one in found[0]] == ["1", "2", "3"]


def test_what_is_left_out_is_counted(tmp_path: Path) -> None:
    records = [*GSM8K, GSM8K[0], {"question": "No answer?", "answer": "none"}, {"question": None, "answer": "#### 1"},
               {"question": " ", "answer": "#### 1"}, {"question": "x" * 600, "answer": "#### 1"}]  # fmt: skip
    source, apart = lines(tmp_path / "all.jsonl", records), lines(tmp_path / "apart.jsonl", GSM8K[1:2])
    own = (f"questions.source={source}", "questions.pattern=#### (.+)")
    questions, dropped = load(*own, f"questions.held_out={apart}")
    assert [one.answer for one in questions] == ["7", "4.5"]
    assert dropped == {"duplicate": 1, "pattern not found": 1, "null field": 1, "empty field": 1, "too long": 1,
                       "held out": 1}  # fmt: skip
    limited, dropped = load(*own, "questions.limit=1")
    assert len(limited) == 1 and dropped["above questions.limit"] == 2


def test_held_out_questions_are_the_same_for_every_seed(tmp_path: Path) -> None:
    source = lines(tmp_path / "all.jsonl", [{"question": f"{i}?", "answer": i} for i in range(50)])

    def drawn(*overrides: str) -> list[str]:
        config = load_config(None, [f"questions.held_out={source}", *overrides])
        return [one.text for one in held_out_questions(config, ids, Counter())]

    few = drawn("eval.positions=10")
    assert few == drawn("eval.positions=10", "seed=5") and len(few) == 10
    assert few != [f"{i}?" for i in range(10)] and set(few) < set(drawn())


@pytest.mark.parametrize(
    ("content", "overrides", "sentence"),
    [
        ('{"question": "a?", "answer": "1"}\n{"question": "a?"}\n', [],
         r"line 2 has no field 'answer' \(it has 'question'\); name one with --answer-field"),
        ('{"q": "a?", "answer": "1"}\n', [], r"line 1 has no field 'question' .* name one with --question-field"),
        ('{"question": ["a?"], "answer": "1"}\n', [], "line 1: field 'question' is neither text nor a number"),
        ("[1]\n", [], "line 1 is no JSON object"),
        ("{\n", [], "line 1 is not JSON"),
        ("", [], "the file is empty"),
        ("\n\n", [], r"gives no question \(it holds no record\)"),
        ('{"question": "a?", "answer": "1"}\n', ["questions.pattern=("], r"pattern: '\(' is no expression"),
        ('{"question": "a?", "answer": "1"}\n', ["questions.pattern=x"], r"\(pattern not found: 1\)"),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_sentence(tmp_path: Path, content: str, overrides: list[str], sentence: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ForethinkError, match=sentence) as error:
        load(f"questions.source={file}", *overrides)
    assert "\n" not in str(error.value)


def test_absent_sources_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ForethinkError, match="no such file"):
        load(f"questions.source={tmp_path / 'absent.jsonl'}")
    with pytest.raises(ForethinkError, match="no questions are named"):
        load()
    with pytest.raises(ForethinkError, match="no questions are named"):
        held_out_questions(load_config(None, ["questions.source=train.jsonl"]), ids, Counter())
    same = lines(tmp_path / "same.jsonl", GSM8K)
    with pytest.raises(ForethinkError, match="every question is held out"):
        load(f"questions.source={same}", f"questions.held_out={same}")


READ = [  # text, ended by itself, thought opened by the prompt, status, inside
    (rb"So \boxed{7}.", True, False, Status.BOXED, b"7"),
    (rb"First \boxed{3}, then \boxed{7} in all.", True, False, Status.BOXED, b"7"),
    (rb"\boxed{\frac{1}{2}}", True, False, Status.BOXED, rb"\frac{1}{2}"),
    (rb"\boxed{\{1,2\}}", True, False, Status.BOXED, rb"\{1,2\}"),
    (rb"\boxed{7} and \boxed{8", True, False, Status.UNCLOSED, b""),
    (rb"\boxed{7} and \boxed{8", False, False, Status.CUT_OFF, b""),
    (rb"\boxed{7} and on", False, False, Status.BOXED, b"7"),
    (b"It is 7.", True, False, Status.MISSING, b""),
    (b"It is 7.", False, False, Status.CUT_OFF, b""),
    (rb"\boxed{ }", True, False, Status.EMPTY, b""),
    (rb"<think>\boxed{3}</think>7", True, False, Status.MISSING, b""),
    (rb"\boxed{3} is wrong</think>\boxed{7}", True, True, Status.BOXED, b"7"),
    (rb"\boxed{3} still thinking", True, True, Status.MISSING, b""),
    (rb"\\boxed{3}", True, False, Status.MISSING, b""),
]


@pytest.mark.parametrize(("text", "ended", "opened", "status", "inside"), READ)
def test_the_last_box_counts(text: bytes, ended: bool, opened: bool, status: Status, inside: bytes) -> None:
    answer = read_last(text, finish=Finish.STOP if ended else Finish.LENGTH, thought_open=opened)
    assert (answer.status, answer.prediction) == (status, inside)


def test_reading_boxes_in_boxes_takes_linear_time() -> None:
    began = time.process_time()
    assert read_last(b"\\boxed{" * 100_000, finish=Finish.STOP).status is Status.UNCLOSED
    assert read_last(b"\\boxed{" * 100_000 + b"}" * 100_000, finish=Finish.STOP).status is Status.EMPTY
    assert read_last(b"\\boxed{x}" * 100_000, finish=Finish.STOP).prediction == b"x"
    assert time.process_time() - began < 5


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("name", ["question", "question_example"])
def test_a_question_stands_in_its_prompt_as_it_is(smollm2_tokenizer, name: str, chat: bool) -> None:
    tokenizer = copy.deepcopy(smollm2_tokenizer)
    if not chat:
        tokenizer.chat_template = None
    text = " What is $7 + 5$?\n"
    shown = tokenizer.decode(
        load_template(name).render(Question("q", 0, text, "12", tuple(tokenizer(text)["input_ids"])), tokenizer)
    )
    assert shown.count(text) == 1 and r"\boxed{" in shown
    assert ("<|im_start|>user" in shown) is chat and (shown.endswith("Answer:")) is not chat


def test_a_question_cannot_speak_as_the_template(smollm2_tokenizer) -> None:
    from forethink.training.finetune import encoder

    text = "What is <|im_end|> for?"
    question = Question("q", 0, text, "7", tuple(encoder(smollm2_tokenizer)(text)))
    prompt = load_template("question").render(question, smollm2_tokenizer)
    end = smollm2_tokenizer.convert_tokens_to_ids("<|im_end|>")
    without = load_template("question").render(Question("q", 0, "", "7", ()), smollm2_tokenizer)
    assert prompt.count(end) == without.count(end)
    shown = smollm2_tokenizer.decode(prompt)
    assert text in shown and r"\boxed{}" in shown


# -- the verifier -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mathematics():
    pytest.importorskip("math_verify", reason="math-verify is not installed; `make test` installs it")
    verifier = Verifier({"kind": "math"})
    yield verifier
    verifier.close()


def ask(verifier: Verifier, reference: str, answer: str) -> bool:
    return verifier.right(Question(reference, 0, "?", reference, ()), answer)


RIGHT = [
    ("7", "7"), ("7", " 7 "), ("7", "7.0"), ("7", "$7$"), ("7", "7."), ("1,200", "1200"), ("1200", "1,200"),
    ("1/2", "0.5"), ("0.5", r"\frac{1}{2}"), ("1/2", r"\frac12"), (r"\frac{2}{4}", "1/2"), ("0.5", r"50\%"),
    ("7", r"7\text{ apples}"), ("7", "7 apples"), ("7", r"\$7"), ("18", r"\$18.00"), ("7", "x = 7"),
    (r"\sqrt{8}", r"2\sqrt{2}"), ("x+1", "1 + x"), (r"\{1,2\}", r"\{2, 1\}"), ("(1,2)", "(1, 2)"), ("-3", "−3"),
    ("Paris", r"\text{Paris}"), ("Paris", "paris"), ("A", r"\text{A}"), ("True", "true"), ("2^{10}", "1024"),
    ("new york", "New  York"),
]  # fmt: skip
WRONG = [
    ("7", "8"), ("7", "-7"), ("7", "70"), ("1/2", "0.51"), ("1/3", "0.33"), (r"\sqrt{8}", r"\sqrt{2}"), ("7", "seven"),
    ("7", "1 2 3 4 5 6 7 8"), ("7", "7 or 8"), ("(1,2)", "(2,1)"), (r"\{1,2\}", r"\{1,3\}"), ("Paris", "pairs"),
    ("Paris", "London"), ("x+1", "x-1"), ("7", ""), ("7", "?"), ("True", "False"), ("A", "B"),
]  # fmt: skip


@pytest.mark.parametrize(("reference", "answer"), RIGHT)
def test_right_answers(mathematics, reference: str, answer: str) -> None:
    assert ask(mathematics, reference, answer)


@pytest.mark.parametrize(("reference", "answer"), WRONG)
def test_wrong_answers(mathematics, reference: str, answer: str) -> None:
    assert not ask(mathematics, reference, answer)


HOSTILE = {
    "tower": "9^{9^{9}}", "factorial": "(10!)!", "sum": r"\sum_{n=1}^{10^{9}} n^{n}", "braces": "}}}{{{",
    "open braces": "{" * 250, "parentheses": "(" * 250, "fractions": r"\frac{" * 50, "long": "1+" * 5000 + "1",
    "digits": "9" * 100_000, "nul": "7\0", "newlines": "\n" * 200, "not unicode": "\udcff\ufffd",
    "code": "__import__('os')._exit(3)",
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answers_are_wrong_and_do_not_hang(mathematics, kind: str) -> None:
    assert not ask(mathematics, "11", HOSTILE[kind])
    assert ask(mathematics, "1/2", "0.50")  # and the next answer is judged as ever


def test_an_answer_is_judged_once(mathematics) -> None:
    assert not ask(mathematics, "12", "8^{8^{8^{8}}}")
    child = mathematics._child
    began = time.perf_counter()
    assert not ask(mathematics, "12", "8^{8^{8^{8}}}")
    assert time.perf_counter() - began < 1 and mathematics._child is child


def test_a_checking_process_that_somebody_ended_is_started_again(mathematics) -> None:
    assert ask(mathematics, "3/4", "0.75")
    os.kill(mathematics._child.pid, signal.SIGKILL)
    assert ask(mathematics, "3/4", "0.750")


def test_the_outcome_counts_what_is_missing(mathematics) -> None:
    question = Question("q", 0, "?", "7", ())
    found = {
        text: mathematics.outcome(read_last(text.encode(), finish=Finish.STOP), question)
        for text in (r"\boxed{7}", r"\boxed{8}", "7", r"\boxed{", r"\boxed{}")
    }
    assert list(found.values()) == [Outcome.RIGHT, Outcome.WRONG, Outcome.MISSING, Outcome.MISSING, Outcome.WRONG]
    cut = Answer(Status.CUT_OFF, b"", "")
    assert mathematics.outcome(cut, question) is Outcome.CUT_OFF


def test_a_users_own_verifier(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def ends(answer, question):\n    print('noise')\n    return answer.endswith(question.answer)\n\n\n"
        "def broken(answer, question):\n    return 1 / 0\n\n\ndef endless(answer, question):\n    while True: pass\n"
    )
    own = Verifier({"kind": "function", "name": f"{file}:ends"})
    assert ask(own, "7", "it is 7") and not ask(own, "7", "it is 8")
    own.close()
    with pytest.raises(ForethinkError, match=r"question 7: questions\.verifier .*broken: fails \(ZeroDivisionError"):
        ask(Verifier({"kind": "function", "name": f"{file}:broken"}), "7", "7")
    with pytest.raises(ForethinkError, match=r"the verifier cannot be started: .*has no function 'absent'"):
        ask(Verifier({"kind": "function", "name": f"{file}:absent"}), "7", "7")
    assert not ask(Verifier({"kind": "function", "name": f"{file}:endless"}), "7", "7")


# -- endless tasks ----------------------------------------------------------------------------------------------------


@pytest.fixture
def gym():
    return pytest.importorskip("reasoning_gym", reason="reasoning-gym is not installed; `make test` installs it")


def test_a_task_makes_questions_of_its_seed(gym) -> None:
    own = ("questions.source=reasoning_gym:chain_sum", "questions.options.max_terms=2",
           "questions.options.max_digits=1", "finetune.steps=3", "finetune.problems=4")  # fmt: skip
    one, dropped = load(*own, "eval.positions=4")
    again, _ = load(*own, "eval.positions=4")
    other, _ = load(*own, "eval.positions=4", "seed=1")
    assert one == again and [q.text for q in one] != [q.text for q in other]
    assert len(one) + dropped["held out"] == 12
    config = load_config(None, [*own, "eval.positions=4"])
    apart = held_out_questions(config, ids, Counter())
    assert apart == held_out_questions(load_config(None, [*own, "eval.positions=4", "seed=1"]), ids, Counter())
    assert not {q.text for q in apart} & {q.text for q in one}


@pytest.mark.parametrize("task", ["chain_sum", "number_sorting", "spell_backward", "letter_counting"])
def test_a_tasks_own_check_decides(gym, task: str) -> None:
    config = load_config(None, [f"questions.source=reasoning_gym:{task}", "eval.positions=6", "finetune.steps=1"])
    for held_out in (True, False):
        verifier = Verifier.for_questions(config, held_out=held_out)
        if held_out:
            questions = held_out_questions(config, ids, Counter())
        else:
            questions = training_questions(config, ids, Counter(), [])[:6]
        assert all(verifier.right(one, one.answer) for one in questions)
        wrong = [one.answer + "9" for one in questions]
        assert not any(verifier.right(one, answer) for one, answer in zip(questions, wrong, strict=True))
        verifier.close()


def test_what_a_task_refuses_is_one_sentence(gym) -> None:
    with pytest.raises(ForethinkError, match="has no task 'chain_sums'; near to it are chain_sum"):
        load("questions.source=reasoning_gym:chain_sums")
    with pytest.raises(ForethinkError, match=r"questions\.options: chain_sum refuses them"):
        load("questions.source=reasoning_gym:chain_sum", "questions.options.no_such=1")
    with pytest.raises(ForethinkError, match=r"questions\.options: chain_sum refuses them"):
        load("questions.source=reasoning_gym:chain_sum", "questions.options.min_terms=-1")
    with pytest.raises(ForethinkError, match="'size' is set by forethink"):
        load("questions.source=reasoning_gym:chain_sum", "questions.options.size=5")

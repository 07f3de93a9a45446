r"""Whether an answer is right: math-verify for mathematics, a task's own check, or a function of the user's.

A policy writes whatever it likes into its box: ``9^{9^{9}}`` keeps a computer algebra system busy for ever, and no
signal reaches C code in it. So answers are checked in a process of their own (``python -m forethink.verify``), which
the system ends after `SECONDS` of processor time or beyond `MEMORY` bytes; the answer is then not right, and the next
one gets a new process. Processor time and not wall time, so that a busy machine gives no other reward.

Mathematics, in this order:

1. The same text is right: white space and case apart, ``$…$`` and ``\text{…}`` taken off.
2. A reference of words alone asks for the same text (a computer algebra system takes a word for a product of letters).
3. An answer much longer than any reference (`LONGEST` characters) is not right.
4. math-verify decides, which knows fractions, decimals, percent, sets, intervals, equations and units in ``\text``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import select
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from forethink.config import Config
from forethink.questions import TASK, held_out_source, task_seed, training_count
from forethink.types import Answer, ForethinkError, Outcome, Question, Status, first_line

SECONDS = 2  # of processor time an answer
MEMORY = 4 << 30
LONGEST = 300
_WALL = 1800.0  # seconds, for a process that neither answers nor uses its processor time; a busy machine is no reason

_WORDS = re.compile(r"[^\W\d_]{2,}(?:[ '-][^\W\d_]+)*\.?")
_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\{([^{}]*)\}")


def _bare(text: str) -> str:
    text = _WRAPPED.sub(r"\1", text).replace("\\ ", " ").strip()
    text = text[1:-1] if len(text) > 1 and text[0] == text[-1] == "$" else text
    return " ".join(text.casefold().split()).removesuffix(".")


def _at_sight(reference: str, answer: str) -> bool | None:
    """Rules 1 to 3; None where they do not decide."""
    if _bare(reference) == _bare(answer):
        return True
    if _WORDS.fullmatch(_bare(reference)) or len(answer) > max(LONGEST, 2 * len(reference)):
        return False
    return None


class Verifier:
    """Checks answers, one after another; every question and answer only once.

    Args:
        judge: what the checking process is to do; see `for_questions`.
    """

    def __init__(self, judge: Mapping[str, Any]) -> None:
        self.judge = dict(judge)
        self._known: dict[tuple[str, str], bool] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._end: Callable[[], object] = lambda: None

    @classmethod
    def for_questions(cls, config: Config, *, held_out: bool) -> Verifier:
        """The verifier of a source of questions.

        Args:
            config: the one that the questions were read with.
            held_out: of the held-out source, else of the training source.
        """
        settings = config.questions
        source = held_out_source(settings) if held_out else settings.source
        if settings.verifier is not None:
            return cls({"kind": "function", "name": settings.verifier})
        if source is not None and source.startswith(TASK):
            seed, count = task_seed(config, held_out), config.eval.positions if held_out else training_count(config)
            return cls({"kind": "task", "name": source, "options": settings.options, "count": count, "seed": seed})
        return cls({"kind": "math"})

    def outcome(self, answer: Answer, question: Question) -> Outcome:
        """The plain verdict on an answer that `templates.read_last` has read."""
        from forethink.rewards import verdict

        right = answer.status is Status.BOXED and self.right(question, answer.prediction.decode(errors="replace"))
        return verdict(answer, right)

    def right(self, question: Question, answer: str) -> bool:
        """Whether a box's inside answers a question.

        Raises:
            ForethinkError: the verifier cannot be started, or the user's own one fails.
        """
        key = (question.id, answer)
        if key not in self._known:
            seen = _at_sight(question.answer, answer) if self.judge["kind"] == "math" else None
            self._known[key] = self._ask(question, answer) if seen is None else seen
        return self._known[key]

    def _ask(self, question: Question, answer: str) -> bool:
        job = {"id": question.id, "index": question.index, "text": question.text, "reference": question.answer}
        reply = self._exchange({**job, "answer": answer})
        if reply is None:
            self.close()
            return False
        if "error" in reply:
            raise ForethinkError(f"question {question.id}: {reply['error']}")
        return bool(reply["right"])

    def _exchange(self, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """One job's reply; None where the process ended over it."""
        if self._child is None or self._child.poll() is not None:
            self._start()
        assert self._child is not None
        if (reply := self._send(job)) is None and self._child.poll() == -9:
            # Nothing of ours kills with 9: somebody else ended the process, and the answer is not to blame.
            self._start()
            reply = self._send(job)
        return reply

    def _start(self) -> None:
        self.close()
        paths = [path for path in sys.path if path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "0"}
        self._child = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "forethink.verify"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=environment,
        )
        self._end = weakref.finalize(self, _stop, self._child)
        ready = self._send(self.judge)
        if ready is None or "error" in ready:
            why = "its process ended or did not answer." if ready is None else ready["error"]
            self.close()
            raise ForethinkError(f"the verifier cannot be started: {why}")

    def _send(self, message: Mapping[str, Any]) -> dict[str, Any] | None:
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps(message).encode() + b"\n")
            ready, _, _ = select.select([child.stdout], [], [], _WALL)
            line = child.stdout.readline() if ready else b""
            if line.endswith(b"\n"):
                return dict(json.loads(line))
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=5)
        return None

    def close(self) -> None:
        """End the checking process; it is started again where another answer comes."""
        self._end()
        self._child = None


def _stop(child: subprocess.Popen[bytes]) -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()
    child.kill()
    child.wait()


# -- the checking process ---------------------------------------------------------------------------------------------


def _math(job: Mapping[str, Any]) -> bool:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    kinds = (LatexExtractionConfig(), ExprExtractionConfig())

    def read(text: str) -> Any:
        return parse(f"\\boxed{{{text}}}", extraction_config=kinds, parsing_timeout=None)

    return bool(verify(read(job["reference"]), read(job["answer"]), timeout_seconds=None))


def _judge(how: Mapping[str, Any]) -> Callable[[Mapping[str, Any]], bool]:
    """What decides; loaded before any limit holds.

    Raises:
        ForethinkError: a package, task or function is absent.
    """
    if how["kind"] == "math":
        try:
            import math_verify  # noqa: F401
        except ImportError as error:
            raise ForethinkError(
                f"math-verify ({first_line(error)}); install it by `pip install math-verify`."
            ) from None
        _math({"reference": r"\frac{1}{2}", "answer": "0.5"})  # builds its parsers, which takes a second
        return _math
    if how["kind"] == "task":
        from forethink.questions import make_task

        task = make_task(how["name"], how["options"], how["count"], how["seed"])
        # Exactly 1: some tasks add up parts of an answer, which may come out above 1 by rounding.
        return lambda job: float(task.score_answer(job["answer"], task[job["index"]])) == 1.0
    from forethink.functions import load_function

    function = load_function(how["name"])

    def own(job: Mapping[str, Any]) -> bool:
        question = Question(job["id"], job["index"], job["text"], job["reference"], ())
        try:
            return float(function(job["answer"], question)) >= 1.0
        except Exception as error:
            raise ForethinkError(
                f"questions.verifier {how['name']}: fails ({type(error).__name__}: {first_line(error)}); mend it."
            ) from None

    return own


def _limit() -> None:
    """Give the next answer its processor time; what uses more is ended by the system, in C code too."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    _, most = resource.getrlimit(resource.RLIMIT_CPU)
    wanted = int(used.ru_utime + used.ru_stime) + 1 + SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if most < 0 else min(wanted, most), most))


def _serve() -> None:
    import resource
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's; this process ends with its input
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library or a user's function prints is no reply

    def reply(**message: Any) -> None:
        replies.write(json.dumps(message).encode() + b"\n")

    try:
        judge = _judge(json.loads(sys.stdin.readline()))
    except ForethinkError as error:
        reply(error=str(error))
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    reply(ready=True)
    for line in sys.stdin:
        _limit()
        try:
            reply(right=judge(json.loads(line)))
        except ForethinkError as error:
            reply(error=str(error))
        except Exception:  # whatever a parser makes of whatever a policy wrote
            reply(right=False)


if __name__ == "__main__":
    _serve()

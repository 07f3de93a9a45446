"""Questions with checkable answers, out of files and of endless tasks.

What ``questions.source`` and ``questions.held_out`` may name:

* a JSON-lines file (``.jsonl``, ``.ndjson``, ``.json``, gzipped or not) or a Parquet file: one question a record, the
  fields by ``questions.question`` and ``questions.answer``, text or numbers. ``questions.pattern`` finds the answer in
  a worked solution: GSM8K's is ``#### (.+)``;
* ``reasoning_gym:TASK``: a task of the package reasoning-gym, which makes as many questions as are asked for.
  ``[questions.options]`` is passed to it. Training questions follow from the seed; those for evaluation are always the
  same, so that runs of different seeds stand on the same ones.

No training question is among those held out: where both sources hold it, it is left out of training, and counted.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from forethink.config import Config, Questions
from forethink.rundir import hash_file
from forethink.types import ForethinkError, Question, first_line

TASK = "reasoning_gym:"
HELD_OUT_SEED = 2_000_000_000  # a task numbers its questions from its seed; training stays far below

Encode = Callable[[str], Sequence[int]]


def held_out_source(settings: Questions) -> str | None:
    """Where held-out questions come from: named, or the source itself where it is a task; None where neither."""
    if settings.held_out is not None:
        return settings.held_out
    return settings.source if settings.source is not None and settings.source.startswith(TASK) else None


def task_seed(config: Config, held_out: bool) -> int:
    """The seed of a task's first question; question i has that plus i, and the seeds of runs are far apart."""
    return HELD_OUT_SEED if held_out else config.seed * 1_000_003 % (HELD_OUT_SEED - 100_000_000)


def training_count(config: Config) -> int:
    """How many questions a task makes to train on: one for every place in a step, or ``questions.limit``."""
    knobs, train = config.finetune, config.train
    refill = 0 if train.dynamic_sampling_from is None else train.refill
    return config.questions.limit or knobs.problems * max(knobs.steps, 1 + refill)


def source_inputs(settings: Questions, *sources: str | None) -> dict[str, str]:
    """What identifies the questions in a run folder: hashes of files, names and versions of tasks."""
    found: dict[str, str] = {}
    own = (settings.verifier or "").rpartition(":")[0]
    for name in (*sources, own, settings.template):
        if name is not None and name.startswith(TASK):
            found[name] = f"reasoning-gym {_gym().__version__}"
        elif name and Path(name).is_file():
            found[name] = hash_file(Path(name))
    return found


def held_out_questions(config: Config, encode: Encode, dropped: Counter[str]) -> list[Question]:
    """The questions to evaluate with: at most ``eval.positions``, which ones does not depend on the seed.

    Args:
        config: ``questions`` and ``eval.positions`` count.
        encode: a question's text → the policy's token ids.
        dropped: raised by one for every record left out, by reason.

    Raises:
        ForethinkError: none is named, or see `training_questions`.
    """
    settings, count = config.questions, config.eval.positions
    source = held_out_source(settings)
    if source is None:
        raise ForethinkError(
            "questions.held_out: no questions are named; give --questions FILE, or reasoning_gym:TASK."
        )
    found = _read(source, settings, encode, dropped, count, task_seed(config, held_out=True))
    if len(found) > count:  # by a hash, so that a sorted file gives no other difficulty
        dropped["not drawn"] += len(found) - count
        found = sorted(found, key=lambda one: hashlib.sha256(one.id.encode()).digest())[:count]
    return sorted(found, key=lambda one: one.index)


def training_questions(
    config: Config, encode: Encode, dropped: Counter[str], held_out: Sequence[Question]
) -> list[Question]:
    """The questions to train on, less those held out.

    Args:
        config: ``questions`` and ``seed`` count, ``finetune`` and ``train`` for how many a task is to make.
        encode: a question's text → the policy's token ids.
        dropped: raised by one for every record left out: ``"duplicate"``, ``"too long"`` (see
            ``questions.max_question``), ``"null field"``, ``"empty field"``, ``"pattern not found"``, ``"held out"``,
            ``"above questions.limit"``.
        held_out: questions that must not be trained on, known by their text.

    Raises:
        ForethinkError: no source; a file that is absent, empty or broken; a record without the field; no such task or
            option; nothing left.
    """
    settings = config.questions
    if settings.source is None:
        raise ForethinkError("questions.source: no questions are named; give --questions FILE, or reasoning_gym:TASK.")
    seed = task_seed(config, held_out=False)
    found = _read(settings.source, settings, encode, dropped, training_count(config), seed)
    texts = {one.text for one in held_out}
    kept = [one for one in found if one.text not in texts]
    dropped["held out"] += len(found) - len(kept)
    if settings.limit is not None and len(kept) > settings.limit:
        dropped["above questions.limit"] += len(kept) - settings.limit
        kept = kept[: settings.limit]
    if not kept:
        raise ForethinkError(f"{settings.source}: every question is held out too; name other ones to train on.")
    return kept


def _read(
    source: str, settings: Questions, encode: Encode, dropped: Counter[str], count: int, seed: int
) -> list[Question]:
    task = source.startswith(TASK)
    pairs = _task_pairs(source, settings, count, seed) if task else _file_pairs(Path(source), settings, dropped)
    found, seen = [], set()
    for index, (text, answer) in pairs:
        ids = tuple(encode(text))
        if len(ids) > settings.max_question:
            dropped["too long"] += 1
            continue
        if not task and text in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(text)
        name = hashlib.sha256(f"{text}\0{answer}".encode()).hexdigest()[:16]
        found.append(Question(f"{source}:{seed}:{index}" if task else name, index, text, answer, ids))
    if not found:
        why = ", ".join(f"{reason}: {number}" for reason, number in sorted(dropped.items())) or "it holds no record"
        raise ForethinkError(f"{source}: gives no question ({why}); name another source or raise what left them out.")
    return found


def _gym() -> Any:
    try:
        import reasoning_gym
    except ImportError as error:
        raise ForethinkError(
            f"reasoning_gym: not to be had ({first_line(error)}); `pip install 'forethink[questions]'` installs it."
        ) from None
    return reasoning_gym


def make_task(source: str, options: dict[str, Any], count: int, seed: int) -> Any:
    """The reasoning-gym data set behind a name.

    Raises:
        ForethinkError: the package is absent, there is no such task, or it refuses the options.
    """
    name, gym = source.removeprefix(TASK), _gym()
    if name not in gym.factory.DATASETS:
        import difflib

        near = ", ".join(difflib.get_close_matches(name, gym.factory.DATASETS, 5, 0.0))
        raise ForethinkError(f"{source}: reasoning-gym has no task {name!r}; near to it are {near}.")
    for key in ("seed", "size"):
        if key in options:
            raise ForethinkError(f"questions.options: {key!r} is set by forethink itself; remove it.")
    try:
        return gym.create_dataset(name, seed=seed, size=count, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise ForethinkError(f"questions.options: {name} refuses them ({first_line(error)}); mend them.") from None


def _task_pairs(source: str, settings: Questions, count: int, seed: int) -> Iterator[tuple[int, tuple[str, str]]]:
    task = make_task(source, settings.options, count, seed)
    for index in range(count):
        entry = task[index]
        yield index, (str(entry["question"]), str(entry["answer"]))


def _file_pairs(path: Path, settings: Questions, dropped: Counter[str]) -> Iterator[tuple[int, tuple[str, str]]]:
    if not path.is_file():
        raise ForethinkError(f"{path}: no such file; name a JSON-lines or Parquet file, or {TASK}TASK.")
    if path.stat().st_size == 0:
        raise ForethinkError(f"{path}: the file is empty; name one that holds questions.")
    try:
        pattern = None if settings.pattern is None else re.compile(settings.pattern)
    except re.error as error:
        raise ForethinkError(f"questions.pattern: {settings.pattern!r} is no expression ({error}); mend it.") from None
    records = _parquet(path) if path.suffix.lower() == ".parquet" else _json_lines(path)
    for index, (where, record) in enumerate(records):
        values = [
            _field(record, settings.question, where, "question"),
            _field(record, settings.answer, where, "answer"),
        ]
        if None in values:
            dropped["null field"] += 1
            continue
        text, answer = (str(value) for value in values)
        if pattern is not None:
            matches = list(pattern.finditer(answer))
            if not matches:
                dropped["pattern not found"] += 1
                continue
            answer = str(matches[-1].group(1 if pattern.groups else 0) or "")
        if not text.strip() or not answer.strip():
            dropped["empty field"] += 1
            continue
        yield index, (text.strip(), answer.strip())


def _field(record: Any, name: str, where: str, what: str) -> str | int | float | None:
    if not isinstance(record, dict):
        raise ForethinkError(f"{where} is no JSON object; write one object a line.")
    if name not in record:
        have = ", ".join(map(repr, record)) or "none"
        raise ForethinkError(f"{where} has no field {name!r} (it has {have}); name one with --{what}-field.")
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, str | int | float | None):
        raise ForethinkError(f"{where}: field {name!r} is neither text nor a number; name one with --{what}-field.")
    return value


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    where = f"{path}: line {number}"
                    try:
                        record = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ForethinkError(f"{where} is not JSON ({first_line(error)}); mend that line.") from None
                    yield where, record
    except (OSError, EOFError) as error:
        raise ForethinkError(f"{path}: cannot be read ({first_line(error)}); mend the file.") from None


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            yield from ((f"{path}: record {number}", row) for number, row in enumerate(rows, 1))
    except pa.ArrowInvalid as error:
        raise ForethinkError(f"{path}: no readable Parquet file ({first_line(error)}); mend it.") from None

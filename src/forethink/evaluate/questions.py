"""``forethink eval --questions``: how many questions a model answers right, sampled and greedy.

A run folder holds, beside what every run folder holds,

* ``samples.jsonl``: every completion with its answer and outcome; ``sample`` is -1 for the greedy one;
* ``questions.jsonl``: one line a question: its text and reference, how many of its completions were right, wrong,
  missing, cut off and boxed, and the same of the greedy one;
* ``questions.json``: accuracy (pass@1 over the samples, pass@k, greedy), box rates, outcomes, with 95 % intervals, and
  paired differences to other evaluations on the same questions.

Which questions are drawn does not depend on the seed, the random numbers of the samples do.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.config import Config
from forethink.evaluate.answers import GREEDY, compare_questions, question_records, show_questions, summary
from forethink.evaluate.stage import _load, _progress
from forethink.questions import held_out_questions, held_out_source, source_inputs
from forethink.records import sample_record
from forethink.rundir import RunDir, hash_inputs, read_jsonl, write_atomic
from forethink.templates import load_template
from forethink.training.finetune import effective, encoder, question_hooks, stop_of
from forethink.types import Answer, Completion, Outcome, Question
from forethink.verify import Verifier

if TYPE_CHECKING:
    from forethink.rollout import Engine
    from forethink.training.groups import Hooks

Record = dict[str, Any]
CHUNK = 32  # questions, at least, whose completions are written together: the unit of resuming


def _settings(config: Config) -> Config:
    """What the figures depend on: ``finetune``'s temperature and length, ``eval``'s samples and draw."""
    own = effective(config)
    return own.model_copy(
        update={
            "rollout": own.rollout.model_copy(update={"group": config.eval.samples}),
            "eval": config.eval.model_copy(update={"against": ()}),
            "questions": config.questions.model_copy(
                update={"held_out": held_out_source(config.questions), "source": None, "limit": None}
            ),
        }
    )


def run_questions(config: Config) -> Path:
    """The stage: accuracy of one model on held-out questions, into ``<run>/<eval.name>``.

    Finished work is kept: a stopped run goes on at the chunk where it stopped, a finished one only adds the
    comparisons with ``eval.against``.

    Args:
        config: ``questions``, ``eval``, ``model``, ``rollout``, ``run`` and ``seed`` count, and of ``finetune`` the
            temperature and ``max_tokens``.

    Returns:
        The run folder.

    Raises:
        ForethinkError: no questions; a model or package that cannot be loaded; evaluations to compare with that stand
            on other questions.
    """
    own = _settings(config)
    inputs = source_inputs(own.questions, own.questions.held_out)
    for name in (config.eval.model, config.model.name, config.model.adapter):
        if name is not None and Path(name).exists():
            inputs |= hash_inputs(Path(name))
    sections = ("eval", "model", "questions", "rollout")
    run = RunDir(Path(config.run) / config.eval.name, "questions", own, sections, inputs)
    file = run.path / "questions.json"
    if not run.done:
        write_atomic(file, json.dumps(_evaluate(run, own), indent=1, ensure_ascii=False) + "\n")
    result = json.loads(file.read_text(encoding="utf-8"))
    if config.eval.against:
        draws = config.eval.bootstrap
        result["against"] = [compare_questions(run.path, folder, draws, config.seed) for folder in config.eval.against]
        write_atomic(file, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if not run.done:
        shown = {key: result[key]["value"] for key in ("accuracy", "greedy", "box")}
        run.finish({"questions": result["questions"], **shown})
    show_questions(result)
    return run.path


def _evaluate(run: RunDir, config: Config) -> Record:
    from forethink.models import load_tokenizer

    load, vocabulary = _load(config, run.warn)
    tokenizer = load_tokenizer(vocabulary, trust_remote_code=config.model.trust_remote_code)
    dropped: Counter[str] = Counter()
    questions = held_out_questions(config, encoder(tokenizer), dropped)
    run.dropped(dropped)
    verifier = Verifier.for_questions(config, held_out=True)
    hooks = question_hooks(config, tokenizer, verifier)
    model: list[Any] = []  # loaded once, where completions are missing

    def engine(greedy: bool) -> Engine:
        from forethink.rollout import make_engine

        model.extend([] if model else [load()])
        rollout = config.rollout.model_copy(update={"group": 1}) if greedy else config.rollout
        opened = load_template(config.questions.template).opens_thought(tokenizer)
        stop = stop_of(config, opened)
        return make_engine(rollout, model[0], tokenizer, stop, thought_open=opened, greedy=greedy)

    try:
        for greedy in (False, True):
            with _progress("greedy" if greedy else "sampled", len(questions)) as advance:
                _sample(run, config, questions, hooks, partial(engine, greedy), greedy, advance)
    finally:
        verifier.close()
    records = question_records(questions, read_jsonl(run.path / "samples.jsonl"))
    write_atomic(run.path / "questions.jsonl", "".join(json.dumps(record) + "\n" for record in records))
    return {
        "model": {
            "name": config.eval.model or config.model.name,
            "adapter": None if config.eval.model else config.model.adapter,
        },
        "source": config.questions.held_out,
        "options": config.questions.options,
        "seed": config.seed,
        "temperature": config.rollout.temperature,
        "max_tokens": config.rollout.max_tokens,
        "samples": config.eval.samples,
        "intervals": "95 %; bootstrap over questions; wilson where a question has one completion",
        **summary(records, config.eval.samples, config.eval.bootstrap, config.seed),
        "against": [],
    }


def _sample(
    run: RunDir,
    config: Config,
    questions: Sequence[Question],
    hooks: Hooks,
    engine: Callable[[], Engine],
    greedy: bool,
    advance: Callable[[int], object],
) -> None:
    """Write the completions that are missing to ``samples.jsonl``, chunk by chunk, cut alike in every run."""
    each = 1 if greedy else config.eval.samples
    size = max(CHUNK, 2 * config.rollout.batch // each)
    have = Counter(r["problem"] for r in read_jsonl(run.path / "samples.jsonl") if (r["sample"] == GREEDY) is greedy)
    chunks = [questions[i : i + size] for i in range(0, len(questions), size)]
    missing = [chunk for chunk in chunks if any(have[one.id] != each for one in chunk)]
    torn = {one.id for chunk in missing for one in chunk}
    if torn & have.keys():
        run.truncate("samples", lambda r: r["problem"] not in torn or (r["sample"] == GREEDY) is not greedy)
    advance(len(questions) - len(torn))
    made = engine() if missing else None
    for chunk in missing:
        assert made is not None
        prompts = [hooks.render(one) for one in chunk]
        groups = made.generate(prompts, [one.id for one in chunk], config.seed)
        records = [
            _record(one, len(prompt), completion, hooks, greedy)
            for one, prompt, group in zip(chunk, prompts, groups, strict=True)
            for completion in group
        ]
        run.append("samples", records)
        advance(len(chunk))


def _record(question: Question, prompt_tokens: int, completion: Completion, hooks: Hooks, greedy: bool) -> Record:
    answer: Answer = hooks.read(completion)
    outcome = hooks.outcome(answer, question)
    if greedy:
        completion = replace(completion, sample=GREEDY)
    return sample_record(0, question.id, prompt_tokens, completion, answer, outcome, float(outcome is Outcome.RIGHT))

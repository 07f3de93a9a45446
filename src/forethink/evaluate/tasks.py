"""The stage ``forethink eval --tasks``: multiple-choice questions through lm-evaluation-harness.

*Plain*: the option whose letter has the largest log-likelihood after the question. *Reasoning*: the policy answers in
its chat template (where it has one), thinks as it will, and the letter is read from the reply. A run folder holds,
beside what every run folder holds, ``samples.jsonl`` (one line a question and mode) and ``tasks.json``.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.config import Config, Eval
from forethink.evaluate.choices import (
    LETTERS,
    Question,
    Read,
    boxed_letter,
    draw_questions,
    read_letter,
    read_questions,
)
from forethink.evaluate.stage import Advance, _load, _progress
from forethink.evaluate.task_table import show_tasks, tabulate_tasks
from forethink.rundir import RunDir, hash_inputs, read_jsonl, write_atomic
from forethink.types import Finish, ForethinkError

if TYPE_CHECKING:
    from forethink.rollout import Engine

Record = dict[str, Any]


def _modes(config: Config) -> list[str]:
    return ["plain", "reasoning"] if config.tasks.mode == "both" else [config.tasks.mode]


def _settings(config: Config) -> Config:
    """The configuration less what the figures do not depend on."""
    knobs = config.tasks
    rollout = config.rollout.model_copy(
        update={
            "group": 1,
            "temperature": knobs.temperature or 1.0,
            "max_tokens": knobs.max_tokens,
            "batch": knobs.batch,
        }
    )
    return config.model_copy(update={"rollout": rollout, "eval": Eval(name=config.eval.name, model=config.eval.model)})


def _inputs(config: Config) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in config.tasks.path:
        found |= hash_inputs(Path(name)) if Path(name).is_file() else {name: f"hub:{name}:{config.tasks.split}"}
    for model in (config.eval.model, config.model.name, config.model.adapter):
        if model is not None and Path(model).exists():
            found |= hash_inputs(Path(model))
    return found


def _names(paths: Sequence[str]) -> dict[str, str]:
    """Task name → file or hub id."""
    if not paths:
        raise ForethinkError("tasks.path: no questions are named; give --tasks FILE, or tasks.path in the recipe.")
    names = {Path(path.partition(":")[0]).stem: path for path in paths}
    if len(names) < len(paths):
        raise ForethinkError(f"tasks.path: two of {', '.join(paths)} have one name; rename a file.")
    return names


def _plain_record(sample: Mapping[str, Any], options: int) -> Record:
    scores = [float(response[0][0]) for response in sample["resps"]]
    chosen = LETTERS[max(range(options), key=scores.__getitem__)]
    return {"letter": chosen, "read": Read.LETTER.value, "logprobs": scores, "lm_eval": float(sample["acc"])}


def _reasoning_record(sample: Mapping[str, Any], options: int, thought_open: bool, finish: Finish) -> Record:
    text = sample["resps"][0][0]
    cut = finish is Finish.LENGTH
    read, letter = read_letter(text, options, thought_open=thought_open, cut=cut)
    return {
        "letter": letter,
        "read": read.value,
        "text": text,
        "finish": finish.value,
        "lm_eval": float(sample["exact_match"]),
    }


class _Asking:
    """The loaded policy, and one pass over a task's questions in a mode."""

    def __init__(self, run: RunDir, config: Config, engine: Engine | None) -> None:
        from forethink.evaluate.harness import Policy
        from forethink.models import load_tokenizer
        from forethink.rollout import make_engine

        self.run, self.config = run, config
        load, vocabulary = _load(config, run.warn)
        tokenizer = load_tokenizer(vocabulary, trust_remote_code=config.model.trust_remote_code)
        model = load()
        self.chat = bool(tokenizer.chat_template)
        self.thought_open = self.chat and _opens_thought(tokenizer)
        knobs = config.tasks
        if engine is None and "reasoning" in _modes(config):
            engine = make_engine(
                config.rollout,
                model,
                tokenizer,
                stop=lambda text: boxed_letter(text, self.thought_open),
                thought_open=self.thought_open,
                greedy=knobs.temperature == 0,
            )
        self.policy = Policy(model, tokenizer, engine, knobs.max_tokens, knobs.batch, config.seed)

    def ask(
        self,
        mode: str,
        name: str,
        questions: Sequence[Question],
        left: Sequence[int],
        advance: Advance,
    ) -> None:
        """Append a line to ``samples.jsonl`` for every question of ``left``, batch by batch."""
        from forethink.evaluate.harness import evaluate, make_task

        task = make_task(mode, name, questions)
        size, ties = self.config.tasks.batch, 0
        for start in range(0, len(left), size):
            chunk = left[start : start + size]
            samples = evaluate(self.policy, task, chunk, self.chat and mode == "reasoning")
            lines = []
            for place, (index, sample) in enumerate(zip(chunk, samples, strict=True)):
                question = questions[index]
                options = len(question.options)
                if mode == "plain":
                    read = _plain_record(sample, options)
                else:
                    finish = self.policy.finishes[place]
                    read = _reasoning_record(sample, options, self.thought_open, finish)
                lines.append(
                    {
                        "task": name,
                        "mode": mode,
                        "number": question.number,
                        "category": question.category,
                        "options": options,
                        "answer": question.answer,
                        "right": read["read"] == Read.LETTER and read["letter"] == question.answer,
                        **read,
                    }
                )
            self.run.append("samples", lines)
            advance(len(chunk))
            ties += sum(line["mode"] == "plain" and _tied(line["logprobs"]) for line in lines)
        if ties:
            self.run.warn(
                f"{name}: in {ties} questions two letters are equally likely, and the first counts; "
                "model.dtype=float32 tells more of them apart"
            )
        if self.policy.shortened:
            self.run.warn(f"{name}: {self.policy.shortened} prompts were cut from the left to fit the model's context")


def _tied(logprobs: Sequence[float]) -> bool:
    return len(logprobs) > 1 and sorted(logprobs)[-1] == sorted(logprobs)[-2]


def _opens_thought(tokenizer: Any) -> bool:
    """Whether the chat template ends a prompt inside an opened thought."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True
    )
    return str(text).rstrip().endswith("<think>")


def _left(
    run: RunDir, config: Config, names: Mapping[str, list[Question]]
) -> Iterator[tuple[str, str, list[Question], list[int]]]:
    """Every mode and task with the questions that have no line yet."""
    done = {(line["mode"], line["task"], line["number"]) for line in read_jsonl(run.path / "samples.jsonl")}
    for mode in _modes(config):
        for name, questions in names.items():
            drawn = draw_questions(questions, config.tasks.limit, config.seed)
            yield mode, name, questions, [i for i in drawn if (mode, name, questions[i].number) not in done]


def run_tasks(config: Config, engine: Engine | None = None) -> Path:
    """The stage: ``tasks.path`` asked of one model, into ``<run>/<eval.name>``. Finished questions are kept.

    Args:
        config: ``tasks``, ``model``, ``eval.model``, ``eval.name``, ``rollout.engine``, ``run`` and ``seed`` count.
        engine: samples one reply a prompt; made from ``rollout`` and the model when absent.

    Returns:
        The run folder, with ``tasks.json``.

    Raises:
        ForethinkError: lm-eval is not installed, no questions, or a record that is none.
    """
    names = _names(config.tasks.path)
    if importlib.util.find_spec("lm_eval") is None:
        raise ForethinkError(
            "--tasks: lm-evaluation-harness is not installed; get it by `pip install 'forethink[tasks]'`."
        )
    config = _settings(config)
    run = RunDir(
        Path(config.run) / config.eval.name, "tasks", config, ("tasks", "model", "eval", "rollout"), _inputs(config)
    )
    if not run.done:
        knobs = config.tasks
        asked = {name: read_questions(path, knobs.split, knobs.category) for name, path in names.items()}
        work = list(_left(run, config, asked))
        if any(left for *_, left in work):
            asking = _Asking(run, config, engine)
            for mode, name, questions, left in work:
                with _progress(f"{name}, {mode}", len(left)) as advance:
                    asking.ask(mode, name, questions, left, advance)
        result = _result(run, config, names, asked)
        write_atomic(run.path / "tasks.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        first = {f"{row['task']}/{row['mode']}": row["accuracy"]["value"] for row in _overall(result["rows"])}
        run.finish(first)
    show_tasks(json.loads((run.path / "tasks.json").read_text(encoding="utf-8")))
    return run.path


def _overall(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["category"] == "all"]


def _result(run: RunDir, config: Config, names: Mapping[str, str], asked: Mapping[str, Sequence[Question]]) -> Record:
    from importlib.metadata import version

    samples = list(read_jsonl(run.path / "samples.jsonl"))
    knobs = config.tasks
    return {
        "model": {
            "name": config.eval.model or config.model.name,
            "adapter": None if config.eval.model else config.model.adapter,
        },
        "lm_eval": version("lm_eval"),
        "seed": config.seed,
        "mode": knobs.mode,
        "limit": knobs.limit,
        "max_tokens": knobs.max_tokens,
        "temperature": knobs.temperature,
        "tasks": [
            {
                "name": name,
                "source": names[name],
                "questions": len(questions),
                "options": dict(sorted(Counter(len(q.options) for q in questions).items())),
                "categories": dict(sorted(Counter(q.category for q in questions).items())),
            }
            for name, questions in asked.items()
        ],
        "rows": tabulate_tasks(samples),
    }

"""Fine-tuning with verifiable rewards: GRPO on questions with checkable answers, by the trainer of `train`.

A reply is worth 1 where the verifier finds its last box right, else 0 (arXiv 2506.08007, section 4.3, table 2). What
is asked, how it is read and who judges is all that differs from training on problems; sampling, groups, advantages,
the packed update, checkpoints and logs are the same code.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forethink.config import Config
from forethink.questions import Encode, held_out_questions, held_out_source, source_inputs, training_questions
from forethink.recipe import stage_folder
from forethink.templates import Template, box_closed, load_template, read_last
from forethink.training.train import Stage, run_stage
from forethink.types import Answer, Completion, ForethinkError, Outcome, Question
from forethink.verify import Verifier

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forethink.rollout import Stop
    from forethink.training.groups import Hooks

SECTIONS = ("model", "questions", "finetune", "rollout", "train", "trl")


def run_finetune(config: Config) -> Path:
    """The stage: questions and a start in, ``<run>/<finetune.name>/train/model`` out.

    Raises:
        ForethinkError: no questions, or too few; a start that is no folder; a package that is not installed; a key in
            ``[trl]`` that is forethink's own.
        SystemExit: 130 after an interrupt; the same command goes on.
    """
    knobs = config.finetune.model_copy(update={"start": start_of(config)})
    own = effective(config.model_copy(update={"finetune": knobs}))
    return run_stage(_Finetune, own, Path(config.run) / knobs.name / "train")


def effective(config: Config) -> Config:
    """The configuration with ``[train]`` and ``[rollout]`` as ``[finetune]`` has them."""
    knobs = config.finetune
    train = {"steps": knobs.steps, "problems": knobs.problems, "learning_rate": knobs.learning_rate, "ntp_weight": 0.0}
    rollout = {"group": knobs.group, "temperature": knobs.temperature, "max_tokens": knobs.max_tokens}
    return config.model_copy(
        update={
            "train": config.train.model_copy(update=train),
            "rollout": config.rollout.model_copy(update=rollout),
        }
    )


def start_of(config: Config) -> str | None:
    """The folder that fine-tuning starts from; None for the policy as ``[model]`` names it.

    Raises:
        ForethinkError: the named start is no folder.
    """
    named = config.finetune.start
    if named is None:
        trained = stage_folder(config, "train") / "model"
        return str(trained) if trained.is_dir() else None
    if not Path(named).is_dir():
        raise ForethinkError(f"finetune.start: {named} is no folder; name a model's or an adapter's.")
    return named


def encoder(tokenizer: PreTrainedTokenizerBase) -> Encode:
    """A question's text → the policy's token ids, in which nothing is a special token."""
    from forethink.tokens import encode_document

    return lambda text: encode_document(tokenizer, text)[0]


def stop_of(config: Config, thought_open: bool) -> Stop:
    """What ends a reply before the model does: its first closed box with ``questions.stop_at_box``, else nothing."""
    if config.questions.stop_at_box:
        return lambda text: box_closed(text, thought_open)
    return lambda text: False


def question_hooks(config: Config, tokenizer: PreTrainedTokenizerBase, verifier: Verifier) -> Hooks:
    """How questions are asked, read, rewarded and judged."""
    from forethink.training.groups import Hooks, Replies, Scored

    template = load_template(config.questions.template)
    thought_open = template.opens_thought(tokenizer)

    def answer(completion: Completion) -> Answer:
        tokens = len(completion.token_ids)
        return read_last(completion.text, finish=completion.finish, thought_open=thought_open, tokens=tokens)

    def score(replies: Sequence[Replies]) -> tuple[list[Scored], int]:
        right = [[verifier.outcome(one, group.problem) is Outcome.RIGHT for one in group.answers] for group in replies]
        return [Scored([float(one) for one in group]) for group in right], 0

    return Hooks(lambda question: template.render(question, tokenizer), answer, score, verifier.outcome)


class _Finetune(Stage):
    name = "finetune"
    sections = SECTIONS
    remedy = "choose easier or harder questions, or another task (its options are under [questions.options])"

    def _inputs(self) -> dict[str, str]:
        settings = self.config.questions
        return source_inputs(settings, settings.source, held_out_source(settings))

    def _start(self) -> tuple[str, str | None]:
        from forethink.training.checkpoints import starting_point

        return starting_point(self.config.model, self.config.finetune.start)

    def _template(self) -> Template:
        return load_template(self.config.questions.template)

    def _problems(self, tokenizer: PreTrainedTokenizerBase) -> Sequence[Question]:
        encode = encoder(tokenizer)
        apart: list[Question] = []
        if held_out_source(self.config.questions) is not None:
            apart = held_out_questions(self.config, encode, Counter())
        dropped: Counter[str] = Counter()
        questions = training_questions(self.config, encode, dropped, apart)
        if self.run is not None:
            self.run.dropped(dropped)
        return questions

    def _stop(self, tokenizer: PreTrainedTokenizerBase) -> Stop:
        return stop_of(self.config, self._template().opens_thought(tokenizer))

    def _hooks(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Hooks:
        return question_hooks(self.config, tokenizer, Verifier.for_questions(self.config, held_out=False))

"""The stages as functions, under the commands' names: each takes a configuration and returns its run folder.

Every stage reads what the one before it wrote below ``config.run``, can be started again after a kill, and does
nothing where it was finished before, by this run or by its ``parent``::

    config = load_config("recipe.toml", ["run=runs/math"])
    score(config); problems(config); warmup(config); train(config)
    eval(config)

Nothing heavy is imported before a stage needs it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from forethink.config import Config
from forethink.recipe import inherited, stage_folder
from forethink.types import Answer, Completion, Finish, PolicyScores, Problem

if TYPE_CHECKING:
    from forethink.rescore import Scorer

__all__ = ["eval", "finetune", "ntp", "problems", "rescore", "score", "tasks", "train", "warmup", "with_corpus"]


def score(config: Config) -> Path:
    """Entropy of every position: see :func:`forethink.scoring.run_score`."""
    from forethink.scoring import run_score

    return inherited(config, "score") or run_score(config)


def problems(config: Config) -> Path:
    """Choose positions: see :func:`forethink.problems.run_problems`."""
    from forethink.models import encode_document, fingerprint, load_tokenizer, token_bytes
    from forethink.problems import TokenizerTools, run_problems
    from forethink.records import scored_metadata

    shared = inherited(config, "problems")
    if shared is not None:
        return shared

    trust = config.model.trust_remote_code
    tokenizer = load_tokenizer(config.model.name, trust_remote_code=trust)
    proxy = scored_metadata(stage_folder(config, "score"))["proxy"]
    scored = tokenizer if proxy == config.model.name else load_tokenizer(proxy, trust_remote_code=trust)
    tools = TokenizerTools(
        fingerprint=fingerprint(tokenizer),
        encode=lambda text: encode_document(tokenizer, text),
        proxy_bytes=token_bytes(scored),
    )
    return run_problems(config, tools)


def warmup(config: Config) -> Path:
    """Teach the policy the form of an answer: see :func:`forethink.training.warmup.run_warmup`."""
    from forethink.training.warmup import run_warmup

    return inherited(config, "warmup") or run_warmup(config)


def train(config: Config) -> Path:
    """Reinforcement pre-training: see :func:`forethink.training.train.run_train`."""
    from forethink.training.train import run_train

    return run_train(config)


def ntp(config: Config) -> Path:
    """The plain baseline at a budget: see :func:`forethink.training.ntp.run_ntp`."""
    from forethink.training.ntp import run_ntp

    return run_ntp(config)


def with_corpus(config: Config) -> Config:
    """Make problems of ``config.corpus`` for an evaluation, in ``<run>/eval_corpus/<file>``, and name them.

    The policy without its adapter (or ``eval.base``) scores the corpus, and every document counts as held out: so the
    positions are the same whichever checkpoint is evaluated.

    Returns:
        The configuration with ``eval.problems`` set.
    """
    name = re.sub(r"[^\w.-]+", "-", Path(config.corpus.path or "").name) or "corpus"
    parents = None if config.parent is None else Path(config.parent) / "eval_corpus" / name
    own = config.model_copy(
        update={
            "run": str(Path(config.run) / "eval_corpus" / name),
            "parent": str(parents) if parents is not None and parents.is_dir() else None,
            "model": config.model.model_copy(update={"adapter": None}),
            "score": config.score.model_copy(update={"proxy": config.eval.base}),
            "problems": config.problems.model_copy(update={"validation": 1.0}),
        }
    )
    score(own)
    return config.model_copy(update={"eval": config.eval.model_copy(update={"problems": str(problems(own))})})


def finetune(config: Config) -> Path:
    """Fine-tuning with verifiable rewards, and the accuracy on held-out questions before and after.

    Without held-out questions (a file as source and no ``questions.held_out``) it only trains.

    Returns:
        ``<run>/<finetune.name>``, which holds ``before``, ``train`` and ``after``.
    """
    from forethink.questions import held_out_source
    from forethink.training.finetune import run_finetune, start_of

    folder = Path(config.run) / config.finetune.name
    compared = held_out_source(config.questions) is not None

    def evaluate(name: str, model: str | None, against: tuple[str, ...] = ()) -> None:
        from forethink.evaluate.questions import run_questions

        place = str(Path(config.finetune.name) / name)
        knobs = config.eval.model_copy(update={"name": place, "model": model, "against": against})
        run_questions(config.model_copy(update={"eval": knobs}))

    if compared:
        evaluate("before", start_of(config))
    trained = run_finetune(config)
    if compared:
        evaluate("after", str(trained / "model"), (str(folder / "before"),))
    return folder


def eval(config: Config, *, corpus: bool = False, questions: bool = False) -> Path:
    """Plain and reasoning accuracy on the same positions: see :func:`forethink.evaluate.run_eval`.

    Args:
        config: as for every stage; ``eval.model`` names the checkpoint, ``eval.name`` the folder below ``run``.
        corpus: evaluate on ``config.corpus`` (see :func:`with_corpus`), not on the run's own validation split.
        questions: evaluate on ``config.questions``: see :func:`forethink.evaluate.questions.run_questions`.
    """
    if questions:
        from forethink.evaluate.questions import run_questions

        return run_questions(config)
    from forethink.evaluate import run_eval

    return run_eval(with_corpus(config) if corpus else config)


def tasks(config: Config) -> Path:
    """Multiple-choice questions through lm-eval: see :func:`forethink.evaluate.tasks.run_tasks`."""
    from forethink.evaluate.tasks import run_tasks

    return run_tasks(config)


def rescore(
    config: Config, samples: str | Path | None = None, problems: str | Path | None = None, policy: bool = False
) -> Path:
    """Score saved completions again: see :func:`forethink.rescore.run_rescore`.

    Args:
        config: ``run`` and ``reward`` count, and with ``policy`` also ``model`` and ``template``.
        samples: a ``samples.jsonl``.
        problems: the problems it was made on.
        policy: load ``config.model`` for rewards that ask the policy.
    """
    from forethink.rescore import run_rescore

    return run_rescore(config, samples, problems, _policy_scorer(config) if policy else None)


def _policy_scorer(config: Config) -> Scorer:
    """What the policy, as it is now, makes of saved completions; their bytes are tokenised again."""
    from forethink.models import encode_document, load_model, load_tokenizer, token_bytes
    from forethink.templates import load_template
    from forethink.tokens import document_start
    from forethink.training.groups import Replies
    from forethink.training.scores import Scorer as PolicyScorer

    knobs = config.model
    tokenizer = load_tokenizer(knobs.name, trust_remote_code=knobs.trust_remote_code)
    table = token_bytes(tokenizer)
    template = load_template(config.template.name)
    model = load_model(
        knobs.name,
        adapter=knobs.adapter,
        dtype=knobs.dtype,
        device=knobs.device,
        trust_remote_code=knobs.trust_remote_code,
    )

    scorers: dict[frozenset[str], PolicyScorer] = {}

    def encode(text: bytes) -> list[int]:
        return encode_document(tokenizer, text.decode("utf-8", errors="ignore"), table)[0]

    def score(
        problem: Problem, answers: Sequence[Answer], texts: Sequence[bytes], fields: frozenset[str]
    ) -> list[PolicyScores]:
        if fields not in scorers:  # one for all problems: it looks at its first sequences twice
            opened = template.opens_thought(tokenizer)
            scorers[fields] = PolicyScorer(model, encode, table, document_start(tokenizer), fields, opened)
        completions = []
        for sample, text in enumerate(texts):
            ids = encode(text)
            whole = b"".join(table[i] for i in ids)
            completions.append(Completion(problem.id, sample, tuple(ids), whole, (), Finish.STOP, 0))
        return scorers[fields]([Replies(problem, template.render(problem, tokenizer), completions, list(answers))])[0]

    return score

"""lm-evaluation-harness on a policy of ours: its tasks, requests and metrics, our models and sampling.

Log-likelihoods are lm-eval's own (`HFLM`). Replies come from a forethink engine: a reply's random numbers depend on
the seed and the question alone, so a resumed run equals an uninterrupted one, and why it ended is known.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from datasets import Dataset
from lm_eval import evaluator
from lm_eval.api import task as tasks
from lm_eval.models import huggingface

from forethink.evaluate.choices import Question
from forethink.types import Finish, ForethinkError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from forethink.rollout import Engine

Record = dict[str, Any]


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's remarks on every call and its progress bars, less what is an error."""
    log, bar = logging.getLogger("lm_eval"), vars(tasks)["tqdm"]
    level = log.level
    log.setLevel(logging.ERROR)
    vars(tasks)["tqdm"] = partial(bar, disable=True)
    try:
        yield
    finally:
        log.setLevel(level)
        vars(tasks)["tqdm"] = bar


LOGITS = 2**28  # of a pass, at most: a GiB in fp32


class Policy(huggingface.HFLM):
    """A loaded policy as lm-eval's model.

    Args:
        model: the policy, in eval mode.
        tokenizer: its tokenizer.
        engine: samples one completion a prompt; None where only log-likelihoods are asked for.
        max_tokens: the engine's token limit.
        batch: sequences a forward pass, at most; fewer where their logits would not fit (`LOGITS`).
        seed: of the sampling.

    Attributes:
        finishes: why each reply of the last `generate_until` ended, in the order of its requests.
        shortened: prompts that were cut from the left to fit the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        engine: Engine | None,
        max_tokens: int,
        batch: int,
        seed: int,
    ) -> None:
        with _quiet():
            super().__init__(
                pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype="float32"
            )  # log-probabilities rounded to bf16 would tie by the dozen
        self.engine, self.seed, self.batch = engine, seed, batch
        self.room = self.max_length - max_tokens
        if engine is not None and self.room <= 0:
            raise ForethinkError(
                f"tasks.max_tokens is {max_tokens}, but the model sees {self.max_length} tokens at most; lower it."
            )
        self.finishes: list[Finish] = []
        self.shortened = 0

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Natural log-probability of every continuation, and whether it is the arg-max; lm-eval's own.

        lm-eval makes the logits of whole sequences, in fp32 and twice: so many rows go into a pass that they fit.
        """
        longest = max(
            len(self.tok_encode(context + continuation)) for context, continuation in (r.args for r in requests)
        )
        fitting = LOGITS // (longest * self.model.get_output_embeddings().weight.shape[0])
        self.batch_size_per_gpu = max(1, min(self.batch, fitting))
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """One reply a request, cut before the first stop string that follows the thought."""
        del disable_tqdm
        assert self.engine is not None
        prompts = [self.tok_encode(request.args[0]) for request in requests]
        self.shortened += sum(len(prompt) > self.room for prompt in prompts)
        names = [f"{request.task_name}:{request.doc['number']}" for request in requests]
        groups = self.engine.generate([prompt[-self.room :] for prompt in prompts], names, self.seed)
        self.finishes = [group[0].finish for group in groups]
        replies = []
        for request, group in zip(requests, groups, strict=True):
            text = group[0].text.decode("utf-8", errors="replace")
            thought, closed, tail = text.rpartition("</think>")
            for stop in request.args[1].get("until", []):
                tail = tail.split(stop)[0]
            replies.append(thought + closed + tail)
        return replies


def make_task(mode: str, name: str, questions: Sequence[Question]) -> Any:
    """lm-eval's task object over questions: ``plain.yaml`` or ``reasoning.yaml`` beside this file.

    Args:
        mode: "plain" or "reasoning".
        name: the task's name in requests and results.
        questions: what it asks.
    """
    config = yaml.safe_load((Path(__file__).parent / f"{mode}.yaml").read_text(encoding="utf-8"))
    documents = Dataset.from_list(
        [
            {"number": q.number, "category": q.category, "question": q.question, "options": list(q.options),
             "answer": q.answer}
            for q in questions
        ]
    )  # fmt: skip
    config |= {"task": name, "custom_dataset": lambda **_: {"test": documents}}
    with _quiet():
        return tasks.ConfigurableTask(config=config)


def evaluate(policy: Policy, task: Any, indices: Sequence[int], chat: bool) -> list[Record]:
    """lm-eval's logged samples of some of a task's questions, in the order of ``indices``.

    Args:
        policy: the model.
        task: from `make_task`.
        indices: which questions, counted from 0.
        chat: put prompts into the tokenizer's chat template.
    """
    name = task.config.task
    with _quiet():
        result = evaluator.evaluate(
            policy, {name: task}, samples={name: list(indices)}, bootstrap_iters=0, apply_chat_template=chat
        )
    samples: list[Record] = sorted(result["samples"][name], key=lambda sample: list(indices).index(sample["doc_id"]))
    return samples

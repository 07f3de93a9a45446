"""Next-token accuracy of one model at given positions: plain (arg-max on the document) and reasoning (samples)."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from forethink.config import Config
from forethink.head import head_logits, head_logprobs
from forethink.packing import Pack, body_states
from forethink.records import sample_record
from forethink.rewards import outcome, right_if_stripped
from forethink.rollout import Engine
from forethink.rundir import RunDir, read_jsonl
from forethink.scoring.entropy import position_stats
from forethink.templates import Template, expressible, read
from forethink.training.forward import Packer
from forethink.types import Answer, Outcome, Problem, Status

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACK_TOKENS = 2048  # size of a prefix tree; attention in it costs the square
PACK_POSITIONS = 64  # positions laid out at once; documents stay whole
TOP = 5  # likeliest next tokens kept of every position
CHUNK = 32  # positions, at least, whose completions are written together: the unit of resuming

Record = dict[str, Any]
Advance = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Plain:
    """What the model says of one position without a thought.

    Attributes:
        argmax: its most probable next token, the lowest id where several are equal.
        logprob: natural log-probability of the true next token.
        entropy: in nats over the top k next tokens, renormalised.
        entropy_full: in nats over the whole vocabulary.
        context_logprob: summed over the context tokens that no earlier position of the document has counted.
        context_tokens: their number.
        top: the likeliest next tokens, at most `TOP`, with their probabilities; the arg-max first.
    """

    argmax: int
    logprob: float
    entropy: float
    entropy_full: float
    context_logprob: float
    context_tokens: int
    top: tuple[tuple[int, float], ...] = ()


def _batches(problems: Sequence[Problem]) -> Iterator[list[Problem]]:
    """Whole documents, about `PACK_POSITIONS` positions at a time."""
    batch: list[Problem] = []
    for _, group in itertools.groupby(problems, key=lambda problem: problem.document):
        batch += group
        if len(batch) >= PACK_POSITIONS:
            yield batch
            batch = []
    if batch:
        yield batch


def _laid_out(batch: Sequence[Problem], bos: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Sequences of context and true next token, and the index of the first token asked for in each.

    Each context token of a document is asked for once, by the first position whose context reaches it.
    """
    sequences, starts = [], []
    for _, group in itertools.groupby(batch, key=lambda problem: problem.document):
        counted = 0
        for problem in group:
            first = problem.index - len(problem.context_ids)  # > 0 where the context was cut
            sequences.append([*bos, *problem.context_ids, problem.target_ids[0]])
            starts.append(max(1, len(bos) + max(counted - first, 0)))
            counted = problem.index
    return sequences, starts


@torch.no_grad()
def plain_pass(
    model: PreTrainedModel,
    problems: Sequence[Problem],
    bos: Sequence[int],
    top_k: int = 16,
    advance: Advance | None = None,
    warn: Callable[[str], object] | None = None,
) -> list[Plain]:
    """One packed pass over the documents' own tokens: what the model predicts at every position.

    The contexts of a document's positions are prefixes of each other, so each of its tokens is run once. A context
    that was cut to ``problems.max_context`` shares with those cut at the same token.

    Args:
        model: the model, in eval mode.
        problems: sorted by document and index.
        bos: ids put before every context (see `opening`).
        top_k: tokens of the renormalised entropy.
        advance: called with the number of positions just done.
        warn: called where the packed pass does not suit this model, with the reason.

    Returns:
        One `Plain` a problem, in order.
    """
    packer = Packer(model, PACK_TOKENS)
    found: list[Plain] = []
    for batch in _batches(problems):
        own: dict[int, Plain] = {}
        for one in packer(*_laid_out(batch, bos)):
            own.update(zip(one.members, _read_pack(model, one, top_k), strict=True))
        found += [own[i] for i in range(len(batch))]
        if packer.reason is not None and warn is not None:
            warn(packer.reason)
        if advance is not None:
            advance(len(batch))
    return found


def _read_pack(model: PreTrainedModel, one: Pack, top_k: int) -> list[Plain]:
    """The figures of a pack's members, in their order; the last asked-for token of each is the true next token."""
    one = one.to(model.device)
    hidden = body_states(model, one)[one.sources]
    logprobs = head_logprobs(model, hidden, one.targets, 1.0)[0].double().cpu()
    last = torch.tensor([end - 1 for _, end in one.spans], device=model.device)
    logits = head_logits(model, hidden[last])
    stats = position_stats(logits, one.targets[last], top_k)
    tops = _likeliest(logits, stats.argmax)
    return [
        Plain(
            int(stats.argmax[row]),
            float(stats.logprob[row]),
            float(stats.entropy[row]),
            float(stats.entropy_full[row]),
            float(logprobs[begin : end - 1].sum()),
            end - 1 - begin,
            tops[row],
        )
        for row, (begin, end) in enumerate(one.spans)
    ]


def _likeliest(logits_nv: torch.Tensor, argmax_n: torch.Tensor) -> list[tuple[tuple[int, float], ...]]:
    """The `TOP` likeliest tokens of every row of logits [n, V] with their probabilities, the arg-max [n] first."""
    logits_nv = logits_nv.float()
    values, ids = logits_nv.topk(min(TOP, logits_nv.shape[1]), dim=-1)
    shares = (values - logits_nv.logsumexp(-1, keepdim=True)).exp()
    found = []
    for argmax, own, share in zip(argmax_n.tolist(), ids.tolist(), shares.tolist(), strict=True):
        if argmax not in own:  # as likely as all of these
            own[-1] = argmax
        found.append(tuple(sorted(zip(own, share, strict=True), key=lambda pair: (-pair[1], pair[0]))))
    return found


def perplexity(figures: Iterable[Plain]) -> tuple[float | None, int]:
    """exp of the mean −log p over the documents' context tokens, each counted once, and their number.

    In a cut context the first tokens are predicted from little, so compare only models on the same positions.
    """
    total, tokens = 0.0, 0
    for one in figures:
        total, tokens = total + one.context_logprob, tokens + one.context_tokens
    return (math.exp(-total / tokens) if tokens else None), tokens


def sample_positions(
    run: RunDir,
    config: Config,
    problems: Sequence[Problem],
    template: Template,
    tokenizer: PreTrainedTokenizerBase,
    engine: Callable[[], Engine],
    advance: Advance | None = None,
) -> None:
    """Write the completions of every position to ``samples.jsonl``, chunk by chunk; whole chunks there are kept.

    Chunks are cut alike in every run, and a completion's random numbers follow from the seed and its problem's id,
    so a resumed run writes what an uninterrupted one would have written.

    Args:
        problems: sorted by document and index, so that prompts of one document are neighbours.
        engine: called once, where completions are missing.
    """
    size = max(CHUNK, 2 * config.rollout.batch // config.eval.samples)
    chunks = [problems[i : i + size] for i in range(0, len(problems), size)]
    have: dict[str, int] = {}
    for record in read_jsonl(run.path / "samples.jsonl"):
        have[record["problem"]] = have.get(record["problem"], 0) + 1
    missing = [chunk for chunk in chunks if any(have.get(p.id, 0) != config.eval.samples for p in chunk)]
    torn = {problem.id for chunk in missing for problem in chunk}
    if torn & have.keys():
        run.truncate("samples", lambda record: record["problem"] not in torn)
    if advance is not None:
        advance(len(problems) - len(torn))
    if not missing:
        return
    made = engine()
    opened = template.opens_thought(tokenizer)
    for chunk in missing:
        prompts = [template.render(problem, tokenizer) for problem in chunk]
        groups = made.generate(prompts, [problem.id for problem in chunk], config.seed)
        records = []
        for problem, prompt, group in zip(chunk, prompts, groups, strict=True):
            for one in group:
                answer = read(one.text, finish=one.finish, thought_open=opened, tokens=len(one.token_ids))
                result = outcome(answer, problem)
                reward = float(result is Outcome.RIGHT)  # the prefix match, whatever it was trained with
                records.append(sample_record(0, problem.id, len(prompt), one, answer, result, reward))
        run.append("samples", records)
        if advance is not None:
            advance(len(chunk))


def position_records(
    problems: Sequence[Problem],
    figures: Sequence[Plain],
    entropies: Mapping[str, float],
    table: Sequence[bytes],
    samples: Iterable[Record],
) -> list[Record]:
    """One record a position: the plain figures, and its completions counted (see ``positions.jsonl``)."""
    known = {problem.id: (problem, one) for problem, one in zip(problems, figures, strict=True)}

    def text(token: int) -> bytes:  # some models have more embeddings than the vocabulary has entries
        return table[token] if token < len(table) else b""

    counted = ("samples", "right", "wrong", "missing", "cut_off", "boxed", "agree", "stripped", "tokens")
    counts = {name: dict.fromkeys(counted, 0) for name in known}
    for sample in samples:
        problem, own = known[sample["problem"]]
        answer = Answer(Status(sample["status"]), base64.b64decode(sample["prediction"]), "", sample["tokens"])
        boxed = answer.status is Status.BOXED
        count = counts[problem.id]
        count["samples"] += 1
        count[outcome(answer, problem).value] += 1
        count["boxed"] += boxed
        count["agree"] += boxed and answer.prediction == text(own.argmax)
        count["stripped"] += right_if_stripped(answer, problem)
        count["tokens"] += answer.tokens
    return [
        {
            "problem": name,
            "document": problem.document,
            "index": problem.index,
            "entropy": entropies[name],
            "plain": own.argmax == problem.target_ids[0],
            "argmax": base64.b64encode(text(own.argmax)).decode(),
            "logprob": own.logprob,
            "top": [[base64.b64encode(text(token)).decode(), round(share, 6)] for token, share in own.top],
            "own_entropy": own.entropy_full,
            "inexpressible": expressible(problem, 1),
            **counts[name],
        }
        for name, (problem, own) in known.items()
    ]

"""Choose positions of scored documents and make problems of them.

A position can become a problem when the proxy scored it on enough context, at least ``min_context`` tokens stand
before it, and it starts on a whole UTF-8 character. A selector ranks such positions; the first ``per_document`` of
them become problems. Every position that does not is counted, by reason.

With the proxy's own tokenizer, token ids come straight from the scored document. Another policy tokenizer encodes
the document's text anew and positions are carried over by their byte offset; where no token of the policy starts
at that byte, the position is dropped.

Nothing here depends on the order of documents: the choice in a document and its split follow from the seed and the
document's id alone.
"""

from __future__ import annotations

import bisect
import hashlib
import inspect
import json
import operator
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forethink.config import Config, Problems
from forethink.recipe import stage_folder
from forethink.records import read_problems, read_scored, scored_metadata, scored_shards, write_problems
from forethink.rundir import RunDir, hash_file
from forethink.selectors import (
    FEW_TOKENS,
    NO_ENTROPY,
    SELECTORS,
    SHORT,
    Selector,
    exclusions,
    load_selector,
    whole_character,
)
from forethink.types import ForethinkError, Problem, ScoredDocument

__all__ = ["SELECTORS", "TokenizerTools", "build_problems", "read_problems", "run_problems", "write_problems"]

NOT_SELECTED = "not selected"
NO_TOKEN = "no token of the policy starts here"
OVER_BUDGET = "over the document's budget"
_REMEDIES = {
    SHORT: "score longer documents",
    NO_ENTROPY: "score longer documents",
    FEW_TOKENS: "lower problems.min_context or take longer documents",
    NOT_SELECTED: "lower problems.threshold, or choose another problems.selector",
    NO_TOKEN: "score with a proxy of the policy's tokenizer",
}


@dataclass(frozen=True, slots=True)
class TokenizerTools:
    """What problems need of the tokenizers, handed in so that this module loads none.

    Attributes:
        fingerprint: of the policy's tokenizer.
        encode: the policy's text → (token ids, cumulative byte ends); called only where the proxy's tokenizer is
            another one.
        proxy_bytes: the proxy tokenizer's bytes by token id, for the arg-max token.
    """

    fingerprint: str
    encode: Callable[[str], tuple[list[int], list[int]]]
    proxy_bytes: Sequence[bytes]


def _choose(document: ScoredDocument, config: Problems, seed: int, selector: Selector) -> list[int]:
    """What the selector chose, in its order, without repetitions."""
    rng = np.random.default_rng(_number(seed, "select", document.id))
    chosen = selector(document, config, rng)
    try:
        indices = list(dict.fromkeys(operator.index(t) for t in chosen))
    except TypeError:
        raise ForethinkError(
            f"problems.selector {config.selector!r}: gave {chosen!r:.80} for document {document.id}; return a list of "
            "token indices."
        ) from None
    for t in indices:
        if not 0 <= t < len(document.token_ids):
            raise ForethinkError(
                f"problems.selector {config.selector!r}: gave index {t} for document {document.id} of "
                f"{len(document.token_ids)} tokens; return indices from 0 on."
            )
    return indices


def _number(seed: int, use: str, document: str) -> int:
    """A 64-bit number that follows from the seed, its use and the document alone."""
    return int.from_bytes(hashlib.sha256(json.dumps([seed, use, document]).encode()).digest()[:8])


def split_of(document: str, seed: int, share: float) -> str:
    """``"validation"`` for about this share of document ids, else ``"train"``; a document is never in both."""
    return "validation" if _number(seed, "split", document) < share * 2**64 else "train"


def _problem(
    document: ScoredDocument, at: int, ids: list[int], ends: list[int], index: int, config: Config, argmax: bytes
) -> Problem | None:
    """The problem at the proxy's index ``at``, which is the policy's ``index``; None where the cut leaves nothing."""
    knobs, text = config.problems, document.text
    start = ends[index - 1] if index else 0
    # Cuts fall on multiples of half the longest context, so that neighbouring positions of a long document keep a
    # prefix in common: cut token by token, no two would share one, and every stage would pay for each context anew.
    stride = max(1, knobs.max_context // 2)
    first = -(-max(0, index - knobs.max_context) // stride) * stride
    while first < index and not whole_character(text, ends[first - 1] if first else 0):
        first += 1  # the cut fell inside a character: whole tokens more, to its end
    if first == index:
        return None
    target_ends = ends[index : index + knobs.max_target]
    return Problem(
        id=f"{document.id}:{index}",
        document=document.id,
        index=index,
        split=split_of(document.id, config.seed, knobs.validation),
        context=text[ends[first - 1] if first else 0 : start],
        context_ids=tuple(ids[first:index]),
        target=text[start : target_ends[-1]],
        target_ids=tuple(ids[index : index + knobs.max_target]),
        token_ends=tuple(end - start for end in target_ends),
        entropy=document.entropy[at],
        entropy_raw=document.entropy_raw[at],
        entropy_full=document.entropy_full[at],
        logprob=document.logprob[at],
        argmax_bytes=argmax,
    )


def _of_document(
    document: ScoredDocument, config: Config, tools: TokenizerTools, same: bool, selector: Selector, drop: Counter[str]
) -> tuple[list[Problem], int]:
    """The document's problems, and how many chosen positions start a token of the policy."""
    knobs = config.problems
    excluded = exclusions(document, knobs)
    chosen = _choose(document, knobs, config.seed, selector)
    drop.update(excluded.values())
    chosen = [t for t in chosen if t not in excluded]
    drop[NOT_SELECTED] += len(document.token_ids) - len(excluded) - len(chosen)
    if not chosen:
        return [], 0
    ids, ends = (document.token_ids, document.byte_ends) if same else tools.encode(document.text.decode())
    problems: list[Problem] = []
    mapped = 0
    for t in chosen:
        index = t if same else _same_start(document.byte_ends[t - 1] if t else 0, ends)
        mapped += index is not None
        if index is None:
            drop[NO_TOKEN] += 1
        elif index < knobs.min_context:
            drop[FEW_TOKENS] += 1
        elif knobs.per_document is not None and len(problems) == knobs.per_document:
            drop[OVER_BUDGET] += 1
        else:
            best = document.argmax[t]
            argmax = tools.proxy_bytes[best] if 0 <= best < len(tools.proxy_bytes) else b""
            problem = _problem(document, t, ids, ends, index, config, argmax)
            if problem is None:
                drop[FEW_TOKENS] += 1
            else:
                problems.append(problem)
    return sorted(problems, key=lambda problem: problem.index), mapped


def _same_start(offset: int, ends: list[int]) -> int | None:
    """Index of the token that starts at this byte; None where none does."""
    index = bisect.bisect_right(ends, offset)  # past tokens without bytes too
    return index if (ends[index - 1] if index else 0) == offset and index < len(ends) else None


def build_problems(
    documents: Iterable[ScoredDocument],
    config: Config,
    tools: TokenizerTools,
    proxy_fingerprint: str,
    dropped: Counter[str],
) -> list[Problem]:
    """Make problems of scored documents: documents in their order, positions ascending.

    Args:
        documents: as the proxy scored them.
        config: ``[problems]`` and ``seed`` are read.
        tools: the policy's tokenizer and the proxy's token bytes.
        proxy_fingerprint: of the tokenizer that the documents were scored with.
        dropped: raised by one for every position that became no problem, under its reason.

    Raises:
        ForethinkError: no position is left; the selector is unknown or misbehaves; ``max_context`` is less than
            ``min_context``; the policy's and the proxy's tokens start at different bytes nearly everywhere.
    """
    knobs = config.problems
    if knobs.max_context < knobs.min_context:
        raise ForethinkError(
            f"problems.max_context is {knobs.max_context}, less than problems.min_context, {knobs.min_context}; "
            "raise it."
        )
    selector = load_selector(knobs.selector)
    same = tools.fingerprint == proxy_fingerprint
    problems: list[Problem] = []
    mapped = 0
    for document in documents:
        made, starts = _of_document(document, config, tools, same, selector, dropped)
        problems += made
        mapped += starts
    for reason in [reason for reason, count in dropped.items() if not count]:
        del dropped[reason]
    chosen = mapped + dropped[NO_TOKEN]
    if mapped < chosen / 10:
        raise ForethinkError(
            f"problems: at only {mapped} of {chosen} chosen positions does a token of the policy start; "
            f"{_REMEDIES[NO_TOKEN]}."
        )
    if not problems:
        counts = ", ".join(f"{reason}: {count}" for reason, count in dropped.most_common()) or "no document"
        remedy = next((_REMEDIES[r] for r, _ in dropped.most_common() if r in _REMEDIES), "score some documents")
        raise ForethinkError(f"problems: no position is left after selection ({counts}); {remedy}.")
    return problems


def run_problems(config: Config, tools: TokenizerTools) -> Path:
    """The stage: read ``<run>/score``, write ``train.parquet`` and ``validation.parquet`` to ``<run>/problems``.

    The files' metadata names the policy (``policy``), its tokenizer's ``fingerprint``, the ``proxy`` and the
    ``seed``. ``dropped.json`` counts the positions left out. Finished work is kept.

    Raises:
        ForethinkError: nothing was scored yet, or not to the end; see :func:`build_problems`.
    """
    score, path = stage_folder(config, "score"), Path(config.run) / "problems"
    shards = scored_shards(score)
    state = score / "run.json"
    if state.exists() and json.loads(state.read_text(encoding="utf-8"))["status"] != "done":
        raise ForethinkError(f"{score}: not scored to the end; run `forethink score` again, it goes on where it was.")
    scored = scored_metadata(score)
    inputs = {str(shard): hash_file(shard) for shard in shards}
    source = _source_file(config.problems.selector)
    if source is not None:
        inputs[str(source)] = hash_file(source)
    run = RunDir(path, "problems", config, ("problems", "model"), inputs)
    if run.done:
        return path
    dropped: Counter[str] = Counter()
    try:
        problems = build_problems(read_scored(score), config, tools, scored.get("fingerprint", ""), dropped)
    finally:
        run.dropped(dropped)
    metadata = {
        "policy": config.model.name,
        "fingerprint": tools.fingerprint,
        "proxy": scored.get("proxy", ""),
        "seed": str(config.seed),
    }
    result: dict[str, Any] = {"documents": len({problem.document for problem in problems})}
    for split, share in (("train", 1 - config.problems.validation), ("validation", config.problems.validation)):
        part = [problem for problem in problems if problem.split == split]
        if share > 0 and not part:
            run.warn(f"no document fell into the {split} split: change problems.validation, or take more documents")
        write_problems(path / f"{split}.parquet", part, metadata)
        result[split] = len(part)
    run.finish(result)
    return path


def _source_file(selector: str) -> Path | None:
    """The file of a user's own selector: part of what the problems depend on."""
    if selector in SELECTORS:
        return None
    try:
        source = inspect.getsourcefile(load_selector(selector))
    except TypeError:  # callable, but no function: an object
        return None
    return Path(source) if source else None

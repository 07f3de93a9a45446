"""The documents of a report: their tokens, the positions chosen in them, and every completion at these positions.

A report bears a bounded number of characters. Documents are ranked by how much there is to see in them (in how many
sets of samples they occur), held-out and training documents by turns, and are taken until the bound is reached.
"""

from __future__ import annotations

import codecs
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from forethink.records import read_problems, read_scored
from forethink.report.samples import TEXTS, Record, Source, as_text, completion, document_of, place_of, plain, rounded
from forethink.types import Problem, ScoredDocument

DOCUMENTS = 80  # documents shown at most
TOKENS = 4000  # tokens of a document shown at most


def token_texts(text: bytes, ends: Sequence[int], start: int = 0) -> list[str]:
    """The characters of each token: a character cut between tokens stands with the one that ends it.

    Args:
        text: the bytes.
        ends: cumulative byte ends, ascending.
        start: where the first token begins.

    Returns:
        Strings that joined are the text. Bytes that are no UTF-8 come as U+DC80 … U+DCFF (``surrogateescape``).
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    found = []
    for number, end in enumerate(ends):
        found.append(decoder.decode(text[start:end], final=number == len(ends) - 1))
        start = end
    return found


def _position(problem: Problem, document: ScoredDocument, low: int, texts: Sequence[str]) -> Record | None:
    """A problem in its document's tokens ``low … low + len(texts) - 1``; None where it lies elsewhere."""
    ends, text, index = document.byte_ends, document.text, problem.index
    start = ends[index - 1] if 0 < index <= len(ends) else 0
    # The policy's tokens may be other ones than the proxy's: then the bytes say where the position is.
    if not (text[:start].endswith(problem.context) and text.startswith(problem.target, start)):
        found = text.find(problem.context + problem.target)
        if found < 0:
            return None
        start = found + len(problem.context)
    token = bisect_right(ends, start)
    if not low <= token < low + len(texts):
        return None
    first = bisect_right(ends, start - len(problem.context))
    aligned = (ends[token - 1] if token else 0) == start and first >= low
    context = {"from": first - low} if aligned else {"context": as_text(problem.context)}
    return {
        "id": problem.id,
        "token": token - low,
        "split": problem.split,
        **context,
        "target": token_texts(problem.target, problem.token_ends),
        "entropy": [rounded(v) for v in (problem.entropy, problem.entropy_raw, problem.entropy_full)],
        "logprob": rounded(problem.logprob),
        "argmax": as_text(problem.argmax_bytes),
    }


def show_document(
    document: ScoredDocument, problems: Sequence[Problem], sources: Sequence[Source], known: Mapping[int, bytes],
    limit: int,
) -> Record:  # fmt: skip
    """A document for the page: tokens, entropies, arg-max where its bytes are known, positions with completions."""
    sampled = [p.index for p in problems if any(p.id in source.samples for source in sources)]
    total = len(document.token_ids)
    low = max(0, min([*sampled, total] if sampled else [0]) - TOKENS // 4) if total > TOKENS else 0
    high = min(total, low + TOKENS)
    before = document.byte_ends[low - 1] if low else 0
    texts = token_texts(document.text, document.byte_ends[low:high], before)
    positions = []
    for problem in sorted(problems, key=lambda problem: problem.index):
        position = _position(problem, document, low, texts)
        if position is None:
            continue
        position["completions"] = {
            str(number): [completion(one, limit) for one in source.samples[problem.id]]
            for number, source in enumerate(sources)
            if problem.id in source.samples
        }
        position["plain"] = {
            str(n): plain(source.plain[problem.id]) for n, source in enumerate(sources) if problem.id in source.plain
        }
        positions.append(position)
    return {
        "id": document.id,
        "split": problems[0].split if problems else None,
        "tokens": texts,
        "entropy": [rounded(value, 2) for value in document.entropy[low:high]],
        "logprob": [rounded(value, 2) for value in document.logprob[low:high]],
        "argmax": [as_text(known[i]) if i in known else None for i in document.argmax[low:high]],
        "short": sum(document.short[low:high]),
        "first": low,
        "total": total,
        "positions": positions,
    }


def _ranked(problems: Mapping[str, list[Problem]], sources: Sequence[Source]) -> list[str]:
    """Documents by what there is to see in them, held-out and training ones by turns."""
    seen: dict[str, set[int]] = defaultdict(set)
    for number, source in enumerate(sources):
        for name in source.samples:
            seen[document_of(name)].add(number)
    order = sorted(problems, key=lambda name: (-len(seen[name]), place_of(name)))
    held = [name for name in order if problems[name][0].split != "train"]
    rest = [name for name in order if problems[name][0].split == "train"]
    return [name for pair in zip_longest(held, rest) for name in pair if name is not None]


def _problems(files: Iterable[Path], ids: set[str]) -> dict[str, list[Problem]]:
    """Document → its problems, each once; those of the first file that holds it."""
    found: dict[str, list[Problem]] = defaultdict(list)
    for file in files:
        for problem in read_problems(file):
            if problem.id not in ids:
                ids.add(problem.id)
                found[problem.document].append(problem)
    return found


def _scored(folders: Iterable[Path], wanted: set[str] | None) -> Iterator[ScoredDocument]:
    """The wanted documents, or the first ones; no more shards are read than these need."""
    left = None if wanted is None else set(wanted)
    for folder in folders:
        for document in read_scored(folder):
            if left is None or document.id in left:
                yield document
                if left is not None:
                    left.discard(document.id)
            if left is not None and not left:
                return


def gather(
    scored: Sequence[Path], files: Sequence[Path], sources: Sequence[Source], budget: int
) -> tuple[list[Record], list[str]]:
    """The documents of a report.

    Args:
        scored: ``score`` folders.
        files: Parquet files of problems.
        sources: the completions.
        budget: characters of JSON.

    Returns:
        The documents, and sentences that say what was left out.
    """
    ids: set[str] = set()
    problems = _problems(files, ids)
    ranked = _ranked(problems, sources)
    wanted = ranked[:DOCUMENTS]
    found: dict[str, ScoredDocument] = {}
    for document in _scored(scored, set(wanted) if wanted else None):
        found.setdefault(document.id, document)
        if len(found) >= DOCUMENTS:
            break
    known: dict[int, bytes] = {}  # no tokenizer is at hand: a token's bytes are known where it occurs in a document
    for document in found.values():
        for token, start, end in zip(document.token_ids, [0, *document.byte_ends], document.byte_ends, strict=False):
            known.setdefault(token, document.text[start:end])
    shown: list[Record] = []
    left = budget
    for name in [name for name in wanted or found if name in found]:
        for limit in TEXTS:
            made = show_document(found[name], problems.get(name, []), sources, known, limit)
            size = len(json.dumps(made))
            if size <= budget // 3:
                break
        if size <= left:
            shown.append(made)
            left -= size
    return shown, _left_out(shown, sources, ids, len(problems) or None)


def _left_out(shown: Sequence[Record], sources: Sequence[Source], ids: set[str], documents: int | None) -> list[str]:
    notes = []
    positions = sum(len(one["positions"]) for one in shown)
    if documents is not None and (len(shown) < documents or positions < len(ids)):
        notes.append(
            f"Documents are sampled: {len(shown):,} of {documents:,} are shown, with {positions:,} of "
            f"{len(ids):,} chosen positions."
        )
    for number, source in enumerate(sources):
        there = sum(map(len, source.samples.values()))
        kept = sum(len(p["completions"].get(str(number), ())) for one in shown for p in one["positions"])
        if kept < there or source.share < 1:
            part = "" if source.share == 1 else f" read from {source.share:.0%} of the documents"
            notes.append(f"{source.label}: {kept:,} of {there:,} completions{part} are shown.")
    cut = sum(
        "cut" in c for one in shown for p in one["positions"] for group in p["completions"].values() for c in group
    )
    if cut:
        notes.append(f"{cut:,} very long completions are cut; each says how much is left out.")
    return notes

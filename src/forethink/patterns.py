"""Reasoning patterns by keyword, and the collapse watch: what responses hold, and whether they become all the same.

The six groups are the paper's (arXiv 2506.08007, section 4.4 and appendix). A response shows a pattern when it holds
one of the group's keywords, in any case, as whole words (`wait` is not in `await`); white space inside a keyword
matches any white space. Shares stand with Wilson's interval, which takes responses as independent, and with a
bootstrap over documents, which does not: the responses to one position, and of one document, resemble each other.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethink.rundir import read_jsonl
from forethink.types import ForethinkError

Record = dict[str, Any]

KEYWORDS: dict[str, tuple[str, ...]] = {
    "transition": ("alternatively", "think differently"),
    "reflection": ("wait", "initial answer", "original answer", "looking back", "thought process"),
    "breakdown": ("break down", "break this down"),
    "hypothesis": ("probably", "something like"),
    "divergent": ("etc.", "or something", "either", "sometimes it refers", "otherwise", "exploring", "options"),
    "deduction": ("summarize", "conclusion", "conclude", "finally", "logically", "consequently"),
}
_LETTER = r"[^\W\d_]"


def _pattern(word: str) -> str:
    """A keyword as a regular expression: whole words, but for the end of `etc.`."""
    end = rf"(?!{_LETTER})" if word[-1].isalpha() else ""
    return rf"(?<!{_LETTER})" + r"\s+".join(map(re.escape, word.split())) + end


_COMPILED = {name: re.compile("|".join(map(_pattern, words)), re.IGNORECASE) for name, words in KEYWORDS.items()}
_MOST = 2000  # thoughts of a window looked at for diversity
_OPENING = 120  # characters of an opening line
_DRAWS = 1000


def groups_in(text: str) -> frozenset[str]:
    """The pattern groups that a response shows."""
    return frozenset(name for name, pattern in _COMPILED.items() if pattern.search(text))


def wilson(successes: int, trials: int, level: float = 0.95) -> list[float] | None:
    """Wilson's interval of a share; None without a trial."""
    from scipy.stats import binomtest  # slow to import

    if not trials:
        return None
    interval = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return [float(interval.low), float(interval.high)]


@dataclass(frozen=True)
class Shares:
    """How many responses show each pattern, by document: ``counts`` is [documents, groups + 1], responses last."""

    source: str
    counts: NDArray[np.float64]

    def share(self, group: str) -> float:
        """Share of responses that show a pattern."""
        totals = self.counts.sum(axis=0)
        return float(totals[list(KEYWORDS).index(group)] / totals[-1])

    def drawn(self, rng: np.random.Generator, resamples: int) -> NDArray[np.float64] | None:
        """Shares [resamples, groups] over documents drawn anew; None with fewer than two."""
        count = len(self.counts)
        if count < 2:
            return None
        made = [self.counts[rng.integers(count, size=count)].sum(axis=0) for _ in range(resamples)]
        totals: NDArray[np.float64] = np.array(made)
        return totals[:, :-1] / totals[:, -1:]


def samples_of(run: Path) -> list[Path]:
    """The logs of responses that a name stands for: a ``samples.jsonl``, that of a folder, or of a run's stages."""
    if run.is_file():
        return [run]
    if (run / "samples.jsonl").is_file():
        return [run / "samples.jsonl"]
    found = sorted(run.glob("*/samples.jsonl"), key=lambda path: (path.parent.name != "train", path.parent.name))
    if not found:
        raise ForethinkError(f"{run}: holds no samples.jsonl; name a run that trained or was evaluated.")
    return found


def _responses(file: Path, lines: Iterable[Record] | None = None) -> Iterator[Record]:
    for number, line in enumerate(read_jsonl(file) if lines is None else lines, 1):
        if not isinstance(line, dict) or not {"text", "thought", "problem"} <= line.keys():
            raise ForethinkError(f"{file}: line {number} is no response (problem, text, thought); make it again.")
        yield line


def _document(problem: str) -> str:
    """Whose responses resemble each other: those of a document (``<document>:<token index>``), or of a question."""
    return problem.partition(":")[0] if problem.count(":") == 1 else problem


def count_patterns(file: Path, lines: Sequence[Record] | None = None) -> Shares:
    """Count the six groups over the responses of a ``samples.jsonl``, or over those of its ``lines`` at hand.

    Raises:
        ForethinkError: the file holds no response, or lines that are none.
    """
    names = list(KEYWORDS)
    documents: dict[str, NDArray[np.float64]] = {}
    for line in _responses(file, lines):
        counts = documents.setdefault(_document(str(line["problem"])), np.zeros(len(names) + 1))
        for name in groups_in(line["text"]):
            counts[names.index(name)] += 1
        counts[-1] += 1
    if not documents:
        raise ForethinkError(f"{file}: holds no response yet; wait for the first step, or name another run.")
    return Shares(str(file), np.array(list(documents.values())))


def pattern_table(shares: Sequence[Shares], seed: int = 0) -> list[Record]:
    """One record a source: shares with intervals, and their change against the first source.

    ``change`` is share / first source's share − 1 with a 95 % bootstrap interval (documents of both drawn anew,
    independently); None where the first share is 0, for the first source itself, or without an interval.
    """
    tails = [0.025, 0.975]
    drawn = [own.drawn(np.random.default_rng([seed, i]), _DRAWS) for i, own in enumerate(shares)]
    rows = []
    for i, own in enumerate(shares):
        totals = own.counts.sum(axis=0).astype(int)
        row: Record = {"source": own.source, "responses": int(totals[-1]), "documents": len(own.counts), "groups": {}}
        for k, name in enumerate(KEYWORDS):
            found, base = drawn[i], drawn[0]
            change = interval = None
            if i and shares[0].share(name) > 0:
                change = own.share(name) / shares[0].share(name) - 1
                if found is not None and base is not None and (base[:, k] > 0).all():
                    interval = np.quantile(found[:, k] / base[:, k] - 1, tails).tolist()
            row["groups"][name] = {
                "count": int(totals[k]),
                "value": own.share(name),
                "wilson": wilson(int(totals[k]), int(totals[-1])),
                "bootstrap": None if found is None else np.quantile(found[:, k], tails).tolist(),
                "change": change,
                "change_interval": interval,
            }
        rows.append(row)
    return rows


def diversity(thoughts: Sequence[str]) -> Record:
    """How varied thoughts are.

    ``distinct``: different word n-grams over all of them, n = 1, 2, 3, counted inside each thought; None where there
    is none. ``distinct_thoughts``: the same of whole thoughts. ``compression``: their UTF-8 bytes, one a line, over
    the bytes zlib makes of them: 2 to 3 for English, rising as they repeat. ``openings``: the most frequent first
    lines with the share of thoughts that begin so. ``characters``: the mean length. Thoughts without a visible
    character count in ``empty`` and nowhere else. Figures of different numbers of thoughts do not compare.
    """
    full = [thought for thought in thoughts if thought.strip()]
    record: Record = {"thoughts": len(full), "empty": len(thoughts) - len(full)}
    distinct: dict[str, float | None] = {}
    for n in (1, 2, 3):
        grams: Counter[tuple[str, ...]] = Counter()
        for thought in full:
            words = thought.split()
            grams.update(zip(*(words[i:] for i in range(n)), strict=False))
        distinct[str(n)] = len(grams) / grams.total() if grams else None
    raw = "\n".join(full).encode("utf-8", errors="backslashreplace")
    openings = Counter(thought.strip().splitlines()[0].strip()[:_OPENING] for thought in full)
    return record | {
        "characters": sum(map(len, full)) / len(full) if full else None,
        "distinct": distinct,
        "distinct_thoughts": len(set(full)) / len(full) if full else None,
        "compression": len(raw) / len(zlib.compress(raw, 9)) if full else None,
        "openings": [{"line": line, "share": count / len(full)} for line, count in openings.most_common(5)],
    }


def collapse_watch(file: Path, windows: int = 8, lines: Sequence[Record] | None = None) -> list[Record]:
    """`diversity` over time: steps in equal windows, each with as many thoughts, evenly taken.

    ``lines`` are those of the file, where they are at hand. A log without steps (an evaluation) is one window.
    ``share`` holds the pattern groups of all responses there.

    Raises:
        ForethinkError: ``windows`` is below 1, or the file holds lines that are no responses.
    """
    if windows < 1:
        raise ForethinkError(f"--windows is {windows}; ask for at least 1.")
    counts = Counter(int(line.get("step") or 0) for line in _responses(file, lines))
    if not counts:
        return []
    steps = sorted(counts)
    parts = [part.tolist() for part in np.array_split(np.array(steps), min(windows, len(steps)))]
    window = {step: i for i, part in enumerate(parts) for step in part}
    sizes = [sum(counts[step] for step in part) for part in parts]
    take = min(_MOST, *sizes, _MOST)
    seen, kept = [0] * len(parts), [list[str]() for _ in parts]
    groups: list[Counter[str]] = [Counter() for _ in parts]
    for line in _responses(file, lines):
        i = window.get(int(line.get("step") or 0))
        if i is None or seen[i] == sizes[i]:
            continue  # written since the first reading: the run is under way
        if (seen[i] + 1) * take // sizes[i] > seen[i] * take // sizes[i]:
            kept[i].append(line["thought"])
        groups[i].update(groups_in(line["text"]))
        seen[i] += 1
    return [
        {
            "from": part[0],
            "to": part[-1],
            "responses": size,
            "share": {name: found[name] / size for name in KEYWORDS},
            **diversity(own),
        }
        for part, size, own, found in zip(parts, sizes, kept, groups, strict=True)
    ]


def report_patterns(runs: Sequence[Path], windows: int = 8, seed: int = 0) -> Mapping[str, Any]:
    """Everything of ``forethink patterns``: keywords, the table (first source is the reference), the watch.

    Raises:
        ForethinkError: a run without responses.
    """
    files = [file for run in runs for file in samples_of(run)]
    return {
        "keywords": {name: list(words) for name, words in KEYWORDS.items()},
        "intervals": "95 %; wilson: responses independent; bootstrap: documents drawn anew, all responses together",
        "rows": pattern_table([count_patterns(file) for file in files], seed),
        "watch": [{"source": str(file), "windows": collapse_watch(file, windows)} for file in files],
    }

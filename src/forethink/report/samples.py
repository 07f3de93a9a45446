"""Sets of completions: the ``samples.jsonl`` of an evaluation or a training run, its lines as the page reads them."""

from __future__ import annotations

import base64
import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forethink.rundir import read_jsonl
from forethink.types import ForethinkError

Record = dict[str, Any]

SAMPLES_BYTES = 64_000_000  # of a samples.jsonl; of a larger one a part of the documents is read
TEXTS = (120_000, 20_000, 4_000, 1_000)  # characters kept of a completion: the first under which its document fits


@dataclass
class Source:
    """A set of completions: one evaluation, or the samples of a training run.

    Attributes:
        label: how the page names it.
        kind: ``"eval"`` or ``"train"``.
        folder: the stage's folder.
        samples: problem id → its lines of ``samples.jsonl``.
        plain: problem id → its line of ``positions.jsonl``.
        share: part of the documents that was read.
    """

    label: str
    kind: str
    folder: Path
    samples: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    plain: dict[str, Record] = field(default_factory=dict)
    share: float = 1.0


def document_of(problem: str) -> str:
    """The document's id in a problem's id, ``"<document id>:<token index>"``."""
    return problem.rpartition(":")[0]


def place_of(document: str) -> float:
    """A document's fixed place in [0, 1): the same documents are taken from every file."""
    return int.from_bytes(hashlib.sha256(document.encode("utf-8", "surrogatepass")).digest()[:6]) / 2**48


def read_source(label: str, kind: str, folder: Path) -> Source:
    """Read ``samples.jsonl`` and ``positions.jsonl`` of a folder.

    Raises:
        ForethinkError: a line that is not JSON, or lacks a field.
    """
    source = Source(label, kind, folder)
    file = folder / "samples.jsonl"
    if file.exists():
        source.share = min(1.0, SAMPLES_BYTES / max(1, file.stat().st_size))
    try:
        for record in read_jsonl(file):
            if source.share == 1.0 or place_of(document_of(record["problem"])) < source.share:
                source.samples[record["problem"]].append(record)
        source.plain = {record["problem"]: record for record in read_jsonl(folder / "positions.jsonl")}
    except (KeyError, TypeError, AttributeError) as error:
        raise ForethinkError(f"{file}: a line lacks {error}; make this stage again.") from None
    return source


def as_text(data: bytes) -> str:
    """Text in which bytes that are no UTF-8 come as U+DC80 … U+DCFF (``surrogateescape``)."""
    return data.decode("utf-8", "surrogateescape")


def _bytes(value: Any) -> bytes:
    try:
        return base64.b64decode(value or "")
    except ValueError as error:
        raise ForethinkError(f"samples.jsonl: a field is no base64 ({error}); make this stage again.") from None


def rounded(value: float | None, digits: int = 3) -> float | None:
    """Fewer digits; None for what is no number."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def completion(record: Mapping[str, Any], limit: int = TEXTS[0]) -> Record:
    """A line of ``samples.jsonl`` as the page reads it.

    ``thought`` is the part ``[start, end]`` of ``text`` where it occurs there, else the thought itself; ``cut`` is
    the number of characters left out of text or thought.
    """
    text = as_text(_bytes(record["bytes"])) if record.get("bytes") is not None else str(record.get("text", ""))
    thought = str(record.get("thought") or "")
    at = text.find(thought)
    made: Record = {
        "step": record.get("step", 0),
        "sample": record.get("sample", 0),
        "text": text[:limit],
        "thought": thought[:limit] if at < 0 else [min(at, limit), min(at + len(thought), limit)],
        "status": record.get("status"),
        "outcome": record.get("outcome"),
        "reward": rounded(record.get("reward"), 6),
        "tokens": record.get("tokens"),
        "finish": record.get("finish"),
    }
    if record.get("status") == "boxed":
        made["answer"] = as_text(_bytes(record.get("prediction")))[:limit]
    if max(len(text), len(thought)) > limit:
        made["cut"] = max(len(text), len(thought)) - limit
    return made


def plain(record: Mapping[str, Any]) -> Record:
    """A line of ``positions.jsonl`` as the page reads it."""
    made = {
        "right": bool(record["plain"]),
        "argmax": as_text(_bytes(record["argmax"])),
        "logprob": rounded(record.get("logprob")),
    }
    if record.get("top"):  # evaluations of before 0.1.0 have none
        made["top"] = [[as_text(_bytes(token)), rounded(share, 4)] for token, share in record["top"]]
    return made

"""Scored documents and problems as Parquet files, with an explicit schema and metadata.

The columns of a file are the fields of the record (:class:`~forethink.types.ScoredDocument`,
:class:`~forethink.types.Problem`), in their order. Token ids and byte ends are 32-bit integers, entropies and
log-probabilities 32-bit floats (nats), text is binary because a token may end inside a UTF-8 character.
The same records and metadata always give the same bytes, and a file is written whole or not at all. Samples are lines
of JSON (`sample_record`).
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forethink.rundir import write_atomic
from forethink.types import Answer, Completion, ForethinkError, Outcome, Problem, ScoredDocument, first_line

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_ROWS = 64  # records read at once: bounds the memory that a large shard takes


def _schema(record: type[ScoredDocument] | type[Problem]) -> pa.Schema:
    import pyarrow as pa

    types = {
        "str": pa.string(),
        "bytes": pa.binary(),
        "int": pa.int32(),
        "float": pa.float32(),
        "list[int]": pa.list_(pa.int32()),
        "tuple[int, ...]": pa.list_(pa.int32()),
        "list[float]": pa.list_(pa.float32()),
        "list[bool]": pa.list_(pa.bool_()),
    }
    # Annotations are strings: the records' module postpones their evaluation.
    return pa.schema([pa.field(f.name, types[str(f.type)], nullable=False) for f in dataclasses.fields(record)])


def _write(path: Path, records: Sequence[Any], kind: type[Any], metadata: Mapping[str, str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(kind).with_metadata(dict(metadata))
    columns = [pa.array([getattr(record, field.name) for record in records], field.type) for field in schema]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns, schema=schema), sink, compression="zstd", store_schema=True)
    write_atomic(path, sink.getvalue().to_pybytes())


def _open(path: Path, kind: type[Any]) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ForethinkError(f"{path}: not a readable Parquet file ({first_line(error)}); make it again.") from None
    wanted = {field.name: field.type for field in _schema(kind)}
    found = {field.name: field.type for field in file.schema_arrow}
    if list(wanted.items()) != list(found.items()):  # nullability may differ: other writers do not keep it
        wrong = next((name for name in [*wanted, *found] if wanted.get(name) != found.get(name)), "order of columns")
        raise ForethinkError(
            f"{path}: holds no {kind.__name__} records (column {wrong!r} differs); write it with the stage that "
            "belongs to this folder."
        )
    return file


def _column(column: Any) -> list[Any]:
    """A column as Python values; lists are cut from one flat list, about ten times faster than value by value."""
    import pyarrow as pa

    if not pa.types.is_list(column.type):
        return column.to_pylist()
    flat = column.flatten().to_numpy(zero_copy_only=False).tolist()
    ends = column.value_lengths().to_numpy(zero_copy_only=False).cumsum().tolist()
    return [flat[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _rows(path: Path, kind: type[Any]) -> Iterator[dict[str, Any]]:
    with _open(path, kind) as file:
        for batch in file.iter_batches(batch_size=_ROWS):
            columns = [_column(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield dict(zip(batch.schema.names, row, strict=True))


def _metadata(path: Path, kind: type[Any]) -> dict[str, str]:
    with _open(path, kind) as file:
        raw = file.schema_arrow.metadata or {}
        return {key.decode(): value.decode() for key, value in raw.items()}


def write_scored(path: Path, documents: Sequence[ScoredDocument], metadata: Mapping[str, str]) -> None:
    """Write one shard of scored documents.

    Args:
        path: the Parquet file.
        documents: the shard's documents, in corpus order.
        metadata: kept in the file's schema: the proxy's name, its tokenizer's fingerprint, top_k.

    Raises:
        ForethinkError: the file cannot be written.
    """
    _write(Path(path), documents, ScoredDocument, metadata)


def scored_shards(folder: Path) -> list[Path]:
    """The Parquet shards of a ``score`` folder in order: in its ``shards`` folder, in it, or the file itself.

    Raises:
        ForethinkError: there is none.
    """
    folder = Path(folder)
    if folder.is_file():
        return [folder]
    place = folder / "shards" if (folder / "shards").is_dir() else folder
    shards = sorted(p for p in place.glob("*.parquet") if not p.name.startswith(".")) if place.is_dir() else []
    if not shards:
        raise ForethinkError(f"{folder}: holds no scored documents; run `forethink score` with the same run=… first.")
    return shards


def read_scored(folder: Path) -> Iterator[ScoredDocument]:
    """The scored documents of a ``score`` folder (see :func:`scored_shards`), shard after shard.

    Raises:
        ForethinkError: no shard there, or a file that is no such shard.
    """
    for shard in scored_shards(folder):
        for row in _rows(shard, ScoredDocument):
            yield ScoredDocument(**row)


def scored_metadata(folder: Path) -> dict[str, str]:
    """The metadata that :func:`write_scored` was given, equal in every shard of the folder.

    Raises:
        ForethinkError: no shard there, or shards that come from different proxies.
    """
    first, *rest = scored_shards(folder)
    metadata = _metadata(first, ScoredDocument)
    for shard in rest:
        if _metadata(shard, ScoredDocument) != metadata:
            raise ForethinkError(f"{shard}: scored otherwise than {first.name}; score the corpus again in one folder.")
    return metadata


def write_problems(path: Path, problems: Sequence[Problem], metadata: Mapping[str, str]) -> None:
    """Write the problems of one split.

    Args:
        path: the Parquet file.
        problems: may be empty (a split with no document).
        metadata: kept in the file's schema: the policy's name, its tokenizer's fingerprint, the seed.

    Raises:
        ForethinkError: the file cannot be written.
    """
    _write(Path(path), problems, Problem, metadata)


def _split_file(folder: Path, split: str) -> Path:
    path = Path(folder) if Path(folder).is_file() else Path(folder) / f"{split}.parquet"
    if not path.is_file():
        raise ForethinkError(f"{path}: no such problems; run `forethink problems` with the same run=… first.")
    return path


def read_problems(folder: Path, split: str = "train") -> list[Problem]:
    """The problems of one split.

    Args:
        folder: the ``problems`` folder of a run, or one Parquet file of problems.
        split: ``"train"`` or ``"validation"``.

    Raises:
        ForethinkError: no such file, or one that holds no problems' schema.
    """
    lists = ("context_ids", "target_ids", "token_ends")
    rows = _rows(_split_file(folder, split), Problem)
    return [Problem(**{**row, **{name: tuple(row[name]) for name in lists}}) for row in rows]


def problems_metadata(folder: Path, split: str = "train") -> dict[str, str]:
    """The metadata that :func:`write_problems` was given: policy, tokenizer fingerprint, seed."""
    return _metadata(_split_file(folder, split), Problem)


def sample_record(
    step: int,
    problem: str,
    prompt_tokens: int,
    completion: Completion,
    answer: Answer,
    result: Outcome,
    reward: float | None,
) -> dict[str, Any]:
    """One line of ``samples.jsonl``.

    Args:
        step: the update it was sampled for, from 1; 0 in an evaluation.
        problem: the problem's id.
        prompt_tokens: length of its prompt.
        completion: as sampled; its bytes are kept in base64 beside the text.
        answer: as read.
        result: as judged.
        reward: as given; None where none was.
    """
    return {
        "step": step,
        "problem": problem,
        "sample": completion.sample,
        "text": completion.text.decode("utf-8", errors="backslashreplace"),
        "bytes": base64.b64encode(completion.text).decode(),
        "prompt_tokens": prompt_tokens,
        "tokens": len(completion.token_ids),
        "finish": completion.finish.value,
        "status": answer.status.value,
        "prediction": base64.b64encode(answer.prediction).decode(),
        "thought": answer.thought,
        "outcome": result.value,
        "reward": reward,
    }

"""Documents out of files, folders, `datasets` directories and hub data sets.

What ``corpus.path`` may name:

* a JSON-lines file (``.jsonl``, ``.ndjson``, ``.json``) or a Parquet file (``.parquet``): one document a record,
  the fields of ``corpus.field`` joined by ``corpus.separator``;
* any other file: plain text, one document, or several where ``corpus.text_split`` says where a document starts.
  WikiText, whose articles open with a line `` = Title = ``, is split by ``(?m)^(?= = [^=])``. The documents joined
  are the file, byte for byte;
* a folder: every file of the kinds above (plain text: ``.txt``, ``.text``, ``.md``, ``.rst``, ``.tex``) in it and
  below it, sorted by path; hidden files are passed over, files of unknown kind are counted;
* a directory written by ``datasets``' ``save_to_disk``;
* the id of a data set on the hub, ``owner/name`` or ``owner/name:configuration``, read as a stream.

JSON-lines and text files may be gzipped (``.gz``). JSON lines, Parquet and data sets are streamed; a text file is
read whole. Text is taken as it stands, white space and line ends included; only a byte-order mark at the start of a
file is no text.

A document's id is the first 16 hexadecimal digits of the SHA-256 of its UTF-8 bytes: the same whatever the order or
the kind of file. What cannot be read is an error; what can be read and is of no use is dropped, and counted.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from forethink.config import Corpus
from forethink.rundir import hash_inputs
from forethink.types import Document, ForethinkError, first_line

_JSON = (".jsonl", ".ndjson", ".json")
_TEXT = (".txt", ".text", ".md", ".rst", ".tex")
_ROWS = 256  # Parquet and `datasets` records read at once
_BOM = b"\xef\xbb\xbf"


def read_corpus(config: Corpus, dropped: Counter[str]) -> Iterator[Document]:
    """Read the documents of a corpus, one after another, in an order that is always the same.

    Args:
        config: the section ``[corpus]``.
        dropped: raised by one for every document left out: ``"empty text"`` (nothing but white space),
            ``"null field"``, ``"too short"`` (under ``corpus.min_bytes``), ``"duplicate"`` (the same text came
            before); and in a folder for every ``"empty file"`` and ``"file of unknown kind"``.

    Raises:
        ForethinkError: the path is absent or no data set; a file is empty, not UTF-8 or broken; a record lacks a
            field, or its value is no text; ``corpus.text_split`` matches nowhere; no document is left.
    """
    if config.path is None:
        raise ForethinkError("corpus.path: no corpus is named; give --corpus FILE, or corpus.path in the recipe.")
    seen: set[int] = set()
    for text, where in _texts(config, dropped):
        if text is None or not text.strip():
            dropped["null field" if text is None else "empty text"] += 1
            continue
        try:
            data = text.encode()
        except UnicodeEncodeError:
            raise ForethinkError(f"{where} holds half a surrogate pair, which is no text; mend it.") from None
        if len(data) < config.min_bytes:
            dropped["too short"] += 1
            continue
        number = int.from_bytes(hashlib.sha256(data).digest()[:8])
        if number in seen:
            dropped["duplicate"] += 1
            continue
        seen.add(number)
        yield Document(id=f"{number:016x}", text=text)
        if len(seen) == config.limit:
            return
    if not seen:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(dropped.items())) or "no record"
        raise ForethinkError(f"{config.path}: no document is left ({reasons}); name a corpus that holds text.")


def corpus_inputs(config: Corpus) -> dict[str, str]:
    """What identifies the corpus in a run folder: SHA-256 of every local file, or a hub data set's name and split."""
    path = Path(config.path or "")
    if config.path is not None and path.exists():
        return hash_inputs(path)
    return {str(config.path): f"hub:{config.path}:{config.split}"}


def _texts(config: Corpus, dropped: Counter[str]) -> Iterator[tuple[str | None, str]]:
    """(text, where it stands) of every record; None for the text where a field is null."""
    assert config.path is not None
    path = Path(config.path)
    if path.is_file():
        yield from _file_texts(path, config)
    elif path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        yield from _dataset_texts(_load_directory(path, config.split), config)
    elif path.is_dir():
        yield from _folder_texts(path, config, dropped)
    else:
        yield from _dataset_texts(_load_hub(config.path, config.split), config)


def _kind(path: Path) -> str:
    """``"json"``, ``"parquet"``, ``"text"`` or ``""`` (unknown), by the name's ending."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(_JSON):
        return "json"
    if name.endswith(_TEXT):
        return "text"
    return "parquet" if path.name.lower().endswith(".parquet") else ""


def _folder_texts(folder: Path, config: Corpus, dropped: Counter[str]) -> Iterator[tuple[str | None, str]]:
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    names = sorted((p for p in found if not any(part.startswith(".") for part in p.parts)), key=lambda p: p.parts)
    if not any(_kind(name) for name in names):
        raise ForethinkError(f"{folder}: holds no JSON-lines, Parquet or text file; name a file or another folder.")
    for name in names:
        if not _kind(name):
            dropped["file of unknown kind"] += 1
        elif (folder / name).stat().st_size == 0:
            dropped["empty file"] += 1
        else:
            yield from _file_texts(folder / name, config)


def _file_texts(path: Path, config: Corpus) -> Iterator[tuple[str | None, str]]:
    read = {"json": _json_texts, "parquet": _parquet_texts}.get(_kind(path), _plain_texts)
    try:
        if path.stat().st_size == 0:
            raise ForethinkError(f"{path}: the file is empty; name one that holds text.")
        yield from read(path, config)
    except (OSError, EOFError, zlib.error) as error:  # gzip's own error is an OSError
        raise ForethinkError(f"{path}: cannot be read ({error}); mend the file or its permissions.") from None


def _bytes_of(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _decode(data: bytes, where: str, lines: bool = False) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        place = f"{where}: line {data.count(10, 0, error.start) + 1}" if lines else where
        byte = f"0x{data[error.start]:02x}"
        raise ForethinkError(f"{place} is not UTF-8 (byte {byte}); convert it to UTF-8, or remove it.") from None


def _plain_texts(path: Path, config: Corpus) -> Iterator[tuple[str | None, str]]:
    with _bytes_of(path) as file:
        text = _decode(file.read().removeprefix(_BOM), str(path), lines=True)
    if config.text_split is None:
        yield text, str(path)
        return
    try:
        starts = [match.start() for match in re.finditer(config.text_split, text)]
    except re.error as error:
        raise ForethinkError(f"corpus.text_split: {config.text_split!r} is no expression ({error}).") from None
    if not starts:
        raise ForethinkError(
            f"{path}: corpus.text_split {config.text_split!r} matches nowhere; give an expression that matches where "
            "a document starts, with (?m) for line starts."
        )
    edges = sorted({0, *starts, len(text)})
    for number, (start, end) in enumerate(itertools.pairwise(edges), 1):
        yield text[start:end], f"{path}: document {number}"


def _json_texts(path: Path, config: Corpus) -> Iterator[tuple[str | None, str]]:
    with _bytes_of(path) as file:
        for number, line in enumerate(file, 1):
            data = line.removeprefix(_BOM) if number == 1 else line
            if not data.strip():
                continue
            where = f"{path}: line {number}"
            text = _decode(data, where)
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise ForethinkError(f"{where} is not JSON ({error}); mend or remove that line.") from None
            if not isinstance(record, dict):
                raise ForethinkError(f"{where} is {_type_name(record)}, not a JSON object; write one object a line.")
            yield _join(record, config, where), where


def _parquet_texts(path: Path, config: Corpus) -> Iterator[tuple[str | None, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_fields(file.schema_arrow.names, config, f"{path}: record 1")
            batches = file.iter_batches(batch_size=_ROWS, columns=list(dict.fromkeys(config.field)))
            yield from _arrow_texts(batches, config, str(path))
    except pa.ArrowInvalid as error:
        raise ForethinkError(f"{path}: no readable Parquet file ({first_line(error)}); mend or remove it.") from None


def _dataset_texts(dataset: Any, config: Corpus) -> Iterator[tuple[str | None, str]]:
    """Records of a `datasets` Dataset or IterableDataset, as Arrow tables."""
    fields = list(dict.fromkeys(config.field))
    if dataset.column_names is not None:  # unknown before the first record in some streams
        _check_fields(dataset.column_names, config, f"{config.path}: record 1")
        dataset = dataset.select_columns(fields)  # images and the like stay undecoded
    try:
        yield from _arrow_texts(dataset.with_format("arrow").iter(batch_size=_ROWS), config, str(config.path))
    except (OSError, ValueError) as error:  # the network, a broken shard
        raise ForethinkError(f"{config.path}: the data set cannot be read ({first_line(error)}); try again.") from None


def _arrow_texts(tables: Iterable[Any], config: Corpus, source: str) -> Iterator[tuple[str | None, str]]:
    """Records of Arrow tables or record batches."""
    number = 0
    for table in tables:
        _check_fields(table.schema.names, config, f"{source}: record {number + 1}")
        columns = {name: _binary(table.column(name), name, source, number + 1) for name in config.field}
        for row in range(table.num_rows):
            number += 1
            where = f"{source}: record {number}"
            record = {name: _decode(v, where) if (v := columns[name][row]) is not None else None for name in columns}
            yield _join(record, config, where), where


def _binary(column: Any, name: str, source: str, number: int) -> list[bytes | None]:
    """A text column's values as bytes: Arrow does not check that its strings are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    text = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null())
    if column.type not in text:
        raise ForethinkError(
            f"{source}: record {number}: field {name!r} is {column.type}, not text; name a text field with --field."
        )
    return column.cast(pa.large_binary()).to_pylist()


def _check_fields(names: Sequence[str], config: Corpus, where: str) -> None:
    for field in config.field:
        if field not in names:
            have = ", ".join(map(repr, names)) or "none"
            raise ForethinkError(f"{where} has no field {field!r} (it has {have}); name one with --field.")


def _join(record: Mapping[str, Any], config: Corpus, where: str) -> str | None:
    _check_fields(list(record), config, where)
    values = [record[field] for field in config.field]
    for field, value in zip(config.field, values, strict=True):
        if value is not None and not isinstance(value, str):
            raise ForethinkError(
                f"{where}: field {field!r} is {_type_name(value)}, not text; name a text field with --field."
            )
    return None if None in values else config.separator.join(values)


def _type_name(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


def _load_directory(path: Path, split: str) -> Any:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError) as error:
        raise ForethinkError(f"{path}: no `datasets` directory ({first_line(error)}); save it again.") from None
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            have = ", ".join(map(repr, loaded))
            raise ForethinkError(f"{path}: has no split {split!r} (it has {have}); set corpus.split.")
        loaded = loaded[split]
    return loaded


def _load_hub(name: str, split: str) -> Any:
    absent = f"{name}: no such file or folder; name an existing path, or a data set of the hub as owner/name."
    if Path(name).suffix.lower() in (*_JSON, *_TEXT, ".parquet", ".gz") or not re.fullmatch(
        r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?", name
    ):
        raise ForethinkError(absent)
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(repository, configuration or None, split=split, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:  # offline, unknown, private, unknown split or configuration
        raise ForethinkError(f"{absent.removesuffix('.')} (the hub says: {first_line(error)}).") from None

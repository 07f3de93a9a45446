"""Corpora: every kind of source gives the same documents, what is dropped is counted, what is wrong is named."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethink.config import Corpus
from forethink.corpus import corpus_inputs, read_corpus
from forethink.types import Document, ForethinkError

RECORDS = [
    {"q": "One?", "a": "1 ", "n": 1, "l": ["x"]},
    {"q": " Zwei\r\n?", "a": "²\t\u2028", "n": 2, "l": []},
    {"q": "三？", "a": "👩‍🔬", "n": 3, "l": None},
]
TEXTS = [f"{record['q']}\n\n{record['a']}" for record in RECORDS]


def _read(path: Path | str, **knobs: object) -> tuple[list[Document], Counter[str]]:
    dropped: Counter[str] = Counter()
    return list(read_corpus(Corpus(path=str(path), **knobs), dropped)), dropped


def _jsonl(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def _source(kind: str, folder: Path) -> Path:
    if kind in ("jsonl", "json"):
        return _jsonl(folder / f"x.{kind}", RECORDS)
    if kind == "jsonl.gz":
        (folder / "x.jsonl.gz").write_bytes(gzip.compress(_jsonl(folder / "y", RECORDS).read_bytes()))
        return folder / "x.jsonl.gz"
    if kind == "bom and CRLF":
        lines = b"\r\n\r\n".join(json.dumps(record).encode() for record in RECORDS)
        (folder / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
        return folder / "x.jsonl"
    table = pa.Table.from_pylist(RECORDS)
    if kind == "parquet of binary and dictionary":
        table = pa.table({"q": table["q"].cast(pa.binary()), "a": table["a"].dictionary_encode(), "n": table["n"]})
    if kind.startswith("parquet"):
        pq.write_table(table, folder / "x.parquet", row_group_size=2)
        return folder / "x.parquet"
    import datasets

    dataset = datasets.Dataset(table)
    if kind == "datasets with splits":
        dataset = datasets.DatasetDict({"other": datasets.Dataset.from_dict({"q": ["no"]}), "train": dataset})
    dataset.save_to_disk(str(folder / "saved"))
    return folder / "saved"


KINDS = ["jsonl", "json", "jsonl.gz", "bom and CRLF", "parquet", "parquet of binary and dictionary", "datasets",
         "datasets with splits"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_documents(kind: str, tmp_path: Path):
    source = _source(kind, tmp_path)
    documents, dropped = _read(source, field=("q", "a"))
    assert [document.text for document in documents] == TEXTS
    assert len({document.id for document in documents}) == 3
    assert not dropped
    assert documents[0].id == "74f98858f673d239"  # an id never changes: printf 'One?\n\n1 ' | sha256sum
    one, _ = _read(source, field=("a", "q", "a"), separator="|", limit=1)
    assert [document.text for document in one] == ["1 |One?|1 "]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("field", "words"),
    [("nowhere", "1 has no field 'nowhere'"), ("n", "field 'n' is"), ("l", "field 'l' is")],
)
def test_fields_that_are_absent_or_no_text(kind: str, field: str, words: str, tmp_path: Path):
    if field == "l" and "dictionary" in kind:
        words = "1 has no field 'l'"
    with pytest.raises(ForethinkError) as caught:
        _read(_source(kind, tmp_path), field=("q", field))
    message = str(caught.value)
    assert words in message
    assert "--field" in message
    assert "\n" not in message
    if words.startswith("field"):
        assert ("int64" in message or "a number" in message) if field == "n" else "list" in message


def test_ids_follow_the_text_and_not_the_order(tmp_path: Path):
    forward, _ = _read(_jsonl(tmp_path / "a.jsonl", RECORDS), field=("q",))
    backward, _ = _read(_jsonl(tmp_path / "b.jsonl", [{"id": 7, **record} for record in RECORDS[::-1]]), field=("q",))
    assert forward == backward[::-1]


def test_what_is_dropped_is_counted(tmp_path: Path):
    texts = ["keep this", "", " \n\t", "tiny", "keep this", None, "keep that", "keep this"]
    path = _jsonl(tmp_path / "x.jsonl", [{"text": text} for text in texts])
    documents, dropped = _read(path, min_bytes=5)
    assert [document.text for document in documents] == ["keep this", "keep that"]
    assert dropped == {"empty text": 2, "too short": 1, "duplicate": 2, "null field": 1}
    assert sum(dropped.values()) + len(documents) == len(texts)
    documents, dropped = _read(path, limit=2)  # a limit counts documents, not records
    assert [document.text for document in documents] == ["keep this", "tiny"]
    documents, _ = _read(_jsonl(tmp_path / "x.jsonl", [{"text": "éé"}]), min_bytes=4)
    assert len(documents) == 1  # bytes, not characters


def test_nothing_left_names_the_reasons(tmp_path: Path):
    path = _jsonl(tmp_path / "x.jsonl", [{"text": ""}, {"text": "abc"}])
    with pytest.raises(ForethinkError, match=r"no document is left \(empty text: 1, too short: 1\)"):
        _read(path, min_bytes=4)


def test_plain_text_is_taken_byte_for_byte(tmp_path: Path):
    data = "  a\r\nb\x00\u2028\ufeffc\n\n".encode()
    (tmp_path / "x.log").write_bytes(b"\xef\xbb\xbf" + data)
    documents, _ = _read(tmp_path / "x.log")
    assert [document.text.encode() for document in documents] == [data]


WIKI = " \n = First = \n \n Text . \n = = Part = = \n More . \n \n = Second one = \n \n End . \n"


def test_wikitext_splits_into_articles(tmp_path: Path):
    (tmp_path / "wiki.txt").write_text(WIKI)
    documents, dropped = _read(tmp_path / "wiki.txt", text_split="(?m)^(?= = [^=])")
    assert [document.text.splitlines()[0] for document in documents] == [" = First = ", " = Second one = "]
    assert "= = Part = =" in documents[0].text
    assert dropped == {"empty text": 1}  # the blank line before the first title


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("#ab\né "), min_size=1, max_size=30))
def test_split_documents_joined_are_the_file(tmp_path_factory: pytest.TempPathFactory, text: str):
    path = tmp_path_factory.getbasetemp() / "split.txt"
    text = text + "#x"
    path.write_bytes(text.encode())
    dropped: Counter[str] = Counter()
    documents = list(read_corpus(Corpus(path=str(path), text_split="#"), dropped))
    pieces = text.split("#")
    expected = [piece for piece in [pieces[0], *("#" + piece for piece in pieces[1:])] if piece.strip()]
    assert [document.text for document in documents] == list(dict.fromkeys(expected))
    assert len(expected) - len(documents) == dropped["duplicate"]


def test_folder_is_read_in_path_order(tmp_path: Path):
    folder = tmp_path / "corpus"
    for name in ("b/2.txt", "b/10.md", "a.txt", ".git/x.txt", "b/.hidden.txt", "c.png", "z.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    (folder / "z.txt").write_text("")
    _jsonl(folder / "b.jsonl", [{"text": "from jsonl"}])
    pq.write_table(pa.table({"text": ["from parquet"]}), folder / "y.parquet")
    documents, dropped = _read(folder)
    assert [document.text for document in documents] == [
        "text of a.txt", "text of b/10.md", "text of b/2.txt", "from jsonl", "from parquet",
    ]  # fmt: skip
    assert dropped == {"file of unknown kind": 1, "empty file": 1}
    assert len(corpus_inputs(Corpus(path=str(folder)))) == 6 + 1  # files of unknown kind too, hidden ones not


def test_streams_are_streamed(tmp_path: Path):
    """The first document is there before a broken second line is read."""
    (tmp_path / "x.jsonl").write_bytes(b'{"text": "first"}\n{"text": \n')
    stream = read_corpus(Corpus(path=str(tmp_path / "x.jsonl")), Counter())
    assert next(stream).text == "first"
    with pytest.raises(ForethinkError, match=r"x\.jsonl: line 2 is not JSON"):
        next(stream)
    assert len(_read(tmp_path / "x.jsonl", limit=1)[0]) == 1


def test_a_data_set_stream_reads_like_a_file(tmp_path: Path):
    import datasets

    from forethink.corpus import _dataset_texts

    stream = datasets.load_dataset(
        "json", data_files=str(_jsonl(tmp_path / "x.jsonl", RECORDS)), split="train", streaming=True,
        cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    texts = [text for text, _ in _dataset_texts(stream, Corpus(path="owner/name", field=("q", "a")))]
    assert texts == TEXTS
    with pytest.raises(ForethinkError, match="owner/name: record 1 has no field 'zz'"):
        list(_dataset_texts(stream, Corpus(path="owner/name", field=("zz",))))
    with pytest.raises(ForethinkError, match="owner/name: record 1: field 'n' is int64"):
        list(_dataset_texts(stream, Corpus(path="owner/name", field=("n",))))


BAD = {
    "broken.jsonl": (b'{"text": "a"}\n\n{"text": "b"\n', "broken.jsonl: line 3 is not JSON"),
    "deep.jsonl": (b"[" * 200_000, "deep.jsonl: line 1 is not JSON"),
    "array.jsonl": (b'[{"text": "a"}]\n', "array.jsonl: line 1 is a list, not a JSON object"),
    "missing.jsonl": (b'{"text": "a"}\n{"txt": "b"}\n', "line 2 has no field 'text' (it has 'txt')"),
    "number.jsonl": (b'{"text": 3}\n', "line 1: field 'text' is a number"),
    "bool.jsonl": (b'{"text": true}\n', "line 1: field 'text' is a boolean"),
    "object.jsonl": (b'{"text": {}}\n', "line 1: field 'text' is an object"),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "caf\xe9"}\n', "latin.jsonl: line 2 is not UTF-8 (byte 0xe9)"),
    "half.jsonl": (b'{"text": "a\\ud83d"}\n', "half.jsonl: line 1 holds half a surrogate pair"),
    "empty.jsonl": (b"", "empty.jsonl: the file is empty"),
    "blank.jsonl": (b"\n \n", "no document is left (no record)"),
    "empty.txt": (b"", "empty.txt: the file is empty"),
    "latin.txt": (b"ok\nok\ncaf\xe9\n", "latin.txt: line 3 is not UTF-8 (byte 0xe9)"),
    "cut.jsonl.gz": (gzip.compress(b'{"text": "a"}\n' * 99)[:-9], "cut.jsonl.gz: cannot be read"),
    "plain.jsonl.gz": (b'{"text": "a"}\n', "plain.jsonl.gz: cannot be read"),
    "no.parquet": (b"PAR1 not really", "no.parquet: no readable Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_one_sentence(name: str, tmp_path: Path):
    data, words = BAD[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ForethinkError) as caught:
        _read(tmp_path / name)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert len(message) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("knobs", "words"),
    [({"text_split": "^Chapter"}, "matches nowhere"), ({"text_split": "(x"}, "is no expression")],
)
def test_bad_splits(knobs: dict, words: str, tmp_path: Path):
    (tmp_path / "x.txt").write_text("Preface\nChapter 1\n")
    with pytest.raises(ForethinkError, match=words):
        _read(tmp_path / "x.txt", **knobs)
    assert len(_read(tmp_path / "x.txt", text_split="(?m)^Chapter")[0]) == 2


def test_parquet_that_is_not_utf8_or_empty(tmp_path: Path):
    bad = pa.array([b"fine", b"caf\xe9"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": bad}), tmp_path / "x.parquet")
    with pytest.raises(ForethinkError, match=r"x\.parquet: record 2 is not UTF-8"):
        _read(tmp_path / "x.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "x.parquet")
    with pytest.raises(ForethinkError, match="no document is left"):
        _read(tmp_path / "x.parquet")


@pytest.mark.parametrize("path", ["absent.jsonl", "no/such/deep/file.txt", "/absent", "owner/not a name", "x.txt.gz"])
def test_absent_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ForethinkError, match="no such file or folder"):
        _read(path)


def test_unknown_data_set_and_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ForethinkError, match=r"nobody/nothing: no such file or folder; .* \(the hub says: .*\)\.$"):
        _read("nobody/nothing")  # the tests are offline
    with pytest.raises(ForethinkError, match=r"corpus\.path"):
        next(read_corpus(Corpus(), Counter()))
    assert corpus_inputs(Corpus(path="nobody/nothing")) == {"nobody/nothing": "hub:nobody/nothing:train"}


def test_bad_directories(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ForethinkError, match="holds no JSON-lines, Parquet or text file"):
        _read(tmp_path / "empty")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(ForethinkError, match="no `datasets` directory"):
        _read(tmp_path / "saved")
    saved = _source("datasets with splits", (tmp_path / "saved"))
    with pytest.raises(ForethinkError, match="has no split 'dev' \\(it has 'other', 'train'\\)"):
        _read(saved, split="dev")

"""The exact bytes of a tokenizer's tokens, and documents tokenised verbatim.

No special token is added, the text of a special token inside a document is ordinary text, and a Unicode normaliser
(NFC) and the dummy space that SentencePiece puts before a text are left out. So the bytes of a document's tokens,
joined, are the document's bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from forethink.types import ForethinkError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "▁"  # U+2581, SentencePiece's spelling of a space
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# Added tokens that are not marked special and yet are text, not control: white space, plain words, HTML (Gemma).
_HTML = (
    "a|b|bbox|blockquote|body|br|caption|code|div|em|footer|h[1-6]|head|hr|html|i|iframe|img|li|ol|p|pre|s|span|"
    "strong|sub|sup|table|tbody|td|tfoot|th|thead|tr|u|ul"
)
_TEXT_TOKEN = re.compile(rf"\s+|[\w\s'-]+|</?(?:{_HTML})>")
# Scripts, white space, digits and marks: tokenizers that differ in how they cut text differ on this.
_PROBE = (
    "The  quick\tfox's 3.14159\r\n\n\n2024 — naïve cafe\u0301 漢字かな 한국어 العربية हिन्दी 👩‍👩‍👧🏽 "
    "\\frac{1}{2}\\boxed{x} <think>a</think><|im_end|> ▁ don't UPPERlower 1000000 \u00a0 end "
)


class _Encoding(Protocol):
    """What is used of a tiktoken encoding."""

    def encode_ordinary(self, text: str) -> list[int]: ...

    def decode_single_token_bytes(self, token: int) -> bytes: ...


class LossyTokenizerError(ForethinkError):
    """A tokenizer changes or drops characters of a document."""


@dataclass(frozen=True)
class _Verbatim:
    """A tokenizer's exact side: bytes of every id, control ids, and an encoder that changes nothing."""

    table: list[bytes]
    control: frozenset[int]
    backend: Any  # tokenizers.Tokenizer, or a tiktoken encoding
    byte_ids: tuple[int, ...]  # SentencePiece: ids of the 256 byte tokens; empty for the other kinds


_CACHE: weakref.WeakKeyDictionary[Any, tuple[int, _Verbatim]] = weakref.WeakKeyDictionary()


def _verbatim(tokenizer: PreTrainedTokenizerBase) -> _Verbatim:
    known = _CACHE.get(tokenizer)
    if known is None or known[0] != len(tokenizer):  # tokens may have been added since
        known = _CACHE[tokenizer] = (len(tokenizer), _build(tokenizer))
    return known[1]


def _build(tokenizer: PreTrainedTokenizerBase) -> _Verbatim:
    added = tokenizer.added_tokens_decoder
    control = {i for i, token in added.items() if token.special or not _TEXT_TOKEN.fullmatch(token.content)}
    control |= {i for i in tokenizer.all_special_ids if i is not None}
    texts = {i: token.content.encode() for i, token in added.items()}
    if not getattr(tokenizer, "is_fast", False):
        encoding = _tiktoken(tokenizer)
        table = [texts[i] if i in texts else _single(encoding, i) for i in range(len(tokenizer))]
        return _Verbatim(table, frozenset(control), encoding, ())
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tokenizer.get_vocab()
    byte_ids: tuple[int, ...] = ()
    if any("ByteLevel" in json.dumps(spec[part]) for part in ("pre_tokenizer", "normalizer", "decoder")):
        spell = _byte_level
    elif all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        spell = _byte_fallback
        byte_ids = tuple(vocabulary[f"<0x{byte:02X}>"] for byte in range(256))
    else:
        raise _no_byte_map(tokenizer)
    table = [b""] * len(tokenizer)
    for token, i in vocabulary.items():
        if i < len(table):
            table[i] = texts[i] if i in texts else spell(token)
    spec["normalizer"] = _neutral(spec["normalizer"])
    spec["pre_tokenizer"] = _neutral(spec["pre_tokenizer"])
    spec["truncation"] = spec["padding"] = None
    for token in spec["added_tokens"]:
        token["special"] = token["id"] in control
    backend = Tokenizer.from_str(json.dumps(spec))
    backend.encode_special_tokens = True  # control tokens' text is ordinary text
    return _Verbatim(table, frozenset(control), backend, byte_ids)


def _no_byte_map(tokenizer: PreTrainedTokenizerBase) -> ForethinkError:
    return ForethinkError(
        f"{tokenizer.name_or_path or type(tokenizer).__name__}: this tokenizer gives no bytes for its tokens; choose "
        "a model with a byte-level BPE tokenizer, SentencePiece with byte fallback, or tiktoken."
    )


def _tiktoken(tokenizer: PreTrainedTokenizerBase) -> _Encoding:
    for name in ("tokenizer", "encoding", "model", "_tokenizer"):
        found = getattr(tokenizer, name, None)
        if hasattr(found, "decode_single_token_bytes") and hasattr(found, "encode_ordinary"):
            return cast("_Encoding", found)
    raise _no_byte_map(tokenizer)


def _single(encoding: _Encoding, token: int) -> bytes:
    try:
        return encoding.decode_single_token_bytes(token)
    except KeyError:
        return b""  # a gap in the numbering


def _alphabet() -> dict[str, int]:
    """The GPT-2 spelling of bytes: printable Latin-1 stands for itself, the rest follows from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(0x100 + i): byte for i, byte in enumerate(rest)}


_ALPHABET = _alphabet()


def _byte_level(token: str) -> bytes:
    if all(char in _ALPHABET for char in token):
        return bytes(_ALPHABET[char] for char in token)
    return token.encode()  # never produced from text


def _byte_fallback(token: str) -> bytes:
    found = _BYTE.fullmatch(token)
    return bytes([int(found[1], 16)]) if found else token.replace(_SPACE, " ").encode()


def _neutral(node: dict[str, Any] | None) -> dict[str, Any] | None:
    """A tokenizers component without what adds to the text or recomposes its characters."""
    if node is None or node["type"] in ("NFC", "Prepend"):
        return None
    changed = dict(node)
    if node["type"] == "Sequence":
        key = "normalizers" if "normalizers" in node else "pretokenizers"
        changed[key] = [part for part in map(_neutral, node[key]) if part is not None]
        return changed if changed[key] else None
    if node["type"] == "ByteLevel":
        changed["add_prefix_space"] = False
    elif node["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    return changed


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The exact bytes of every id, ``len(tokenizer)`` entries; special and added tokens give their text's UTF-8.

    A token may end inside a UTF-8 character. The list is shared: do not change it.

    Raises:
        ForethinkError: a tokenizer of a kind that keeps no bytes (WordPiece, SentencePiece without byte fallback).
    """
    return _verbatim(tokenizer).table


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that a document's text never produces: special tokens, and added ones that control (``<think>``).

    Added tokens that are text stay ordinary: white space, plain words and HTML tags (Gemma has such).
    """
    return _verbatim(tokenizer).control


def encode_document(
    tokenizer: PreTrainedTokenizerBase, text: str, table: list[bytes] | None = None
) -> tuple[list[int], list[int]]:
    """Tokenise a document verbatim.

    Args:
        tokenizer: any that :func:`token_bytes` accepts.
        text: the document.
        table: :func:`token_bytes` of the tokenizer, where the caller has it at hand.

    Returns:
        ids: token ids, none of them in :func:`special_ids`.
        byte_ends: the cumulative byte end of every token, strictly increasing; the last is the document's length.

    Raises:
        LossyTokenizerError: the tokenizer changes the text: it makes it lower case, say, or lacks some characters
            (SmolLM2's lacks six control characters and the Unicode planes 4 to 11).
        ForethinkError: the text is no Unicode.
    """
    exact = _verbatim(tokenizer)
    table = exact.table if table is None else table
    try:
        true = text.encode()
    except UnicodeEncodeError as error:
        raise ForethinkError(
            f"document {text[:40]!r}: not Unicode text ({error.reason}); mend its encoding."
        ) from None
    ids = _encode(exact, text)
    ends = list(itertools.accumulate(len(table[i]) for i in ids))
    if b"".join(table[i] for i in ids) != true or any(not table[i] for i in ids):
        raise LossyTokenizerError(
            f"{tokenizer.name_or_path or type(tokenizer).__name__}: changes or drops characters of the document that "
            f"starts {text[:40]!r}; choose a model whose tokenizer keeps every byte, or leave the document out."
        )
    return ids, ends


def _encode(exact: _Verbatim, text: str) -> list[int]:
    if not exact.byte_ids:
        return _encode_part(exact, text)
    ids: list[int] = []
    for number, part in enumerate(text.split(_SPACE)):  # a literal U+2581 would come back as a space
        if number:
            ids += [exact.byte_ids[byte] for byte in _SPACE.encode()]
        ids += _encode_part(exact, part)
    return ids


def _encode_part(exact: _Verbatim, text: str) -> list[int]:
    if hasattr(exact.backend, "encode_ordinary"):
        return list(exact.backend.encode_ordinary(text))
    ids: list[int] = []
    waiting = [text]
    while waiting:
        part = waiting.pop()
        encoding = exact.backend.encode(part, add_special_tokens=False)
        # Merges may still spell out a control token that is also an ordinary entry: cut inside its text.
        cut = _first_control(encoding.ids, encoding.offsets, exact.control)
        if cut is None:
            ids += encoding.ids
        else:
            waiting += [part[cut:], part[:cut]]
    return ids


def _first_control(ids: Sequence[int], offsets: Sequence[tuple[int, int]], control: frozenset[int]) -> int | None:
    for i, (start, end) in zip(ids, offsets, strict=True):
        if i in control and end - start > 1:
            return start + 1
    return None


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A short hash of the vocabulary and of how text is cut: equal for a tokenizer saved and loaded again."""
    exact = _verbatim(tokenizer)
    digest = hashlib.sha256()
    for data in exact.table:
        digest.update(struct.pack("<I", len(data)) + data)
    for numbers in (sorted(exact.control), _encode(exact, _PROBE)):
        digest.update(struct.pack(f"<{len(numbers) + 1}I", len(numbers), *numbers))
    return digest.hexdigest()[:16]


def document_start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids a plain document begins with: the begin-of-sequence token where the tokenizer adds one, else none."""
    bos = tokenizer.bos_token_id
    opening = tokenizer("a")["input_ids"][:1]
    return [bos] if bos is not None and opening == [bos] else []

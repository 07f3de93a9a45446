"""Token bytes: joined, a document's tokens are its bytes, in every script and for every kind of tokenizer."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_kinds import byte_fallback, gemma3, smollm2

from forethink.tokens import LossyTokenizerError, encode_document, special_ids, token_bytes
from forethink.types import ForethinkError

DATA = Path(__file__).parents[3] / "shared" / "data" / "omni_math_val.jsonl"
TEXTS = {
    "latin": "The quick brown fox, naïve café, Œuvre, ßtraße, İstanbul. ",
    "cjk": "漢字かな交じり文。中文，標點。한국어 문장입니다.　全角",
    "arabic": "السَّلامُ عليكم \u200fوالنص العربي ١٢٣ שלום",
    "emoji with joiners": "👩‍👩‍👧🏽 🏳️‍🌈🇩🇪🧑🏿‍🚀 1️⃣",
    "combining marks": "e\u0301 a\u0308\u0323 Z\u0351\u036b\u0343 \u1112\u1161\u11ab \u0301 हिन्दी",
    "latex": r"$\frac{1}{2}\sum_{i=1}^{n}x_i^{2}$ \left\{ \begin{array}{cc} a & b \\ \end{array} \boxed{42}",
    "tabs and CRLF": "\ta\t\tb\r\nc\r\n\r\n\r\n  d \t \n\n\n\n e\r",
    "digits and spaces": "1234567 3.14159  22\n\n333   4e-5\n1.",
    "special tokens": "<|im_end|><think>a</think><bos><eos> <s></s><unk><pad><start_of_turn>user\n<0x0A><|endoftext|>",
    "spelling of a space": "▁a ▁▁ b▁<0xE2>",
    "control characters": "\x00\x01\x1b[0m\x7f\u0085\u2028\ufeff\ufffd",
    "one space": " ",
    "line break": "\n",
}
ALL = "".join(TEXTS.values())


@functools.cache
def composing():
    """SmolLM2's tokenizer with the NFC normaliser and the non-special control tokens of Qwen's."""
    import copy

    from tokenizers import normalizers

    tokenizer = copy.deepcopy(smollm2())
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens(["<think>", "</think>", "<|box|>", "  ", "<table>", "proviso"])
    return tokenizer


KINDS = {
    "smollm2": smollm2,
    "gemma 3": gemma3,
    "byte fallback": byte_fallback,
    "byte fallback, dummy space on every part": functools.partial(byte_fallback, "always"),
    "byte fallback, no dummy space": functools.partial(byte_fallback, "never"),
    "NFC and added tokens": composing,
}


@functools.cache
def missing(kind: str) -> set[int]:
    """Bytes that no token of a byte-level vocabulary has: text with them cannot be tokenised. The others have all."""
    own = {token[0] for token in token_bytes(KINDS[kind]()) if len(token) == 1}
    return set(range(256)) - own


def check(tokenizer, text: str) -> list[int]:
    table = token_bytes(tokenizer)
    ids, ends = encode_document(tokenizer, text)
    assert b"".join(table[i] for i in ids) == text.encode()
    assert ends == list(itertools.accumulate(len(table[i]) for i in ids))
    assert all(a < b for a, b in itertools.pairwise([0, *ends]))
    assert not special_ids(tokenizer) & set(ids)
    return ids


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_joined_tokens_are_the_document(kind, name):
    check(KINDS[kind](), TEXTS[name])


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "gemma 3"])
@given(text=st.text(max_size=60), parts=st.lists(st.sampled_from([*TEXTS.values(), *"▁ \n\té<>|"]), max_size=4))
@settings(max_examples=60, deadline=None)
def test_joined_tokens_are_the_document_whatever_its_text(kind, text, parts):
    whole = text + "".join(parts) + text
    if missing(kind) & set(whole.encode()):
        with pytest.raises(LossyTokenizerError, match="changes or drops characters"):
            encode_document(KINDS[kind](), whole)
    else:
        check(KINDS[kind](), whole)


def test_few_bytes_are_missing_and_none_where_bytes_are_the_fallback():
    possible = set(range(0x80)) | set("".join(map(chr, [*range(0x80, 0xD800), *range(0xE000, 0x110000)])).encode())
    assert missing("smollm2") & possible == {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D, 0xF1, 0xF2}
    assert not missing("byte fallback")


@given(text=st.text(max_size=60), tricky=st.text(alphabet="▁ \n\t<>bos_turn|é👩\u200d\u0301", max_size=30))
@settings(max_examples=60, deadline=None)
def test_joined_tokens_are_the_document_for_gemma(text, tricky):
    check(gemma3(), text + tricky)


@pytest.mark.parametrize("kind", KINDS)
def test_every_omni_math_document_keeps_its_bytes(kind):
    if not DATA.exists():
        pytest.skip(f"{DATA} is not there: the shared data are no part of the package")
    tokenizer, count = KINDS[kind](), 0
    with open(DATA, encoding="utf-8") as file:
        for line in file:
            record = json.loads(line)
            count += len(check(tokenizer, record["problem"] + "\n\n" + record["solution"]))
    assert count > 50_000


@pytest.mark.parametrize("kind", ["smollm2", "gemma 3", "byte fallback"])
def test_the_decoder_agrees_with_the_bytes(kind):
    """Against the tokenizer's own decoder, which knows nothing of our table."""
    tokenizer = KINDS[kind]()
    ids, _ = encode_document(tokenizer, "x " + ALL.replace("▁", "").replace("\x00", ""))
    table = token_bytes(tokenizer)
    theirs = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert b"".join(table[i] for i in ids).decode() == theirs


def test_plain_text_is_tokenised_as_the_model_was_trained():
    """Verbatim tokenising changes nothing where there is nothing to guard against."""
    text = "The sum of the first 10 numbers is 55.\n\nIn LaTeX: $\\sum_{i=1}^{10} i = 55$. 漢字 café 👩‍👧"
    for tokenizer in (smollm2(), composing(), gemma3()):
        assert check(tokenizer, text) == tokenizer.encode(text, add_special_tokens=False)


def test_digits_are_split_before_white_space_is_joined():
    """SmolLM2 was trained so; a GGUF file says it only in one word, ``smollm``."""
    tokenizer = smollm2()
    assert tokenizer.tokenize("a\n\n2  34") == ["a", "ĊĊ", "2", "ĠĠ", "3", "4"]


def test_tokens_may_end_inside_a_character():
    tokenizer = byte_fallback()
    table = token_bytes(tokenizer)
    ids, ends = encode_document(tokenizer, "a👩b")
    assert [table[i] for i in ids] == [b"a", b"\xf0", b"\x9f", b"\x91", b"\xa9", b"b"]
    assert ends == [1, 2, 3, 4, 5, 6]


def test_control_tokens_are_split_and_text_tokens_kept():
    tokenizer = composing()
    control = special_ids(tokenizer)
    added = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<think>", "<|box|>", "<table>", "proviso")}
    assert {added["<think>"], added["<|box|>"]} <= control
    assert not {added["<table>"], added["proviso"]} & control
    ids = check(tokenizer, "<think>a proviso<|box|><table> b")
    assert {added["<table>"], added["proviso"]} <= set(ids)
    assert token_bytes(tokenizer)[added["<think>"]] == b"<think>"


def test_gemma_keeps_its_white_space_and_html_tokens():
    tokenizer = gemma3()
    ids = check(tokenizer, "a\n\n\n\t\t<table>   b")
    assert tokenizer.convert_ids_to_tokens(ids) == ["a", "\n\n\n", "\t\t", "<table>", "▁▁▁", "b"]


def test_a_tokenizer_that_changes_text_is_refused():
    import copy

    from tokenizers import normalizers

    tokenizer = copy.deepcopy(smollm2())
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    assert check(tokenizer, "all lower case")
    with pytest.raises(ForethinkError, match="changes or drops characters of the document that starts 'Upper"):
        encode_document(tokenizer, "Upper case")


def test_half_a_surrogate_pair_is_no_text():
    with pytest.raises(ForethinkError, match="not Unicode text"):
        encode_document(smollm2(), "a\ud83d")


def test_a_tokenizer_without_bytes_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")
    with pytest.raises(ForethinkError, match="gives no bytes for its tokens"):
        token_bytes(tokenizer)


def test_a_tiktoken_tokenizer_gives_its_bytes():
    tiktoken = pytest.importorskip("tiktoken")
    from transformers import PreTrainedTokenizer

    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256, b"the": 257, b" the": 258, b"\xe6\xbc": 259}

    class Tokenizer(PreTrainedTokenizer):
        """As the remote code of such models has it: a Python tokenizer around an encoding."""

        def __init__(self) -> None:
            pattern = r"\s?\p{L}+|\s?[^\s\p{L}]+|\s+"
            self.tokenizer = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
            super().__init__(eos_token="<|end|>")

        @property
        def vocab_size(self) -> int:
            return len(ranks)

        def get_vocab(self) -> dict[str, int]:
            return {f"token {i}": i for i in ranks.values()} | self.added_tokens_encoder

        def _convert_token_to_id(self, token: str) -> int:
            return 0

    tokenizer = Tokenizer()
    table = token_bytes(tokenizer)
    assert len(table) == len(tokenizer) and table[258] == b" the" and table[-1] == b"<|end|>"
    ids = check(tokenizer, "the the 漢 <|end|>" + ALL)
    assert ids[:3] == [257, 258, ord(" ")]

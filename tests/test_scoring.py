"""Windows against a model run position by position, with entropies in plain float64 maths."""

from __future__ import annotations

import copy
import itertools
import math
import os
import random
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from forethink import config as settings
from forethink.scoring import Scorer, score_documents
from forethink.scoring.local import Window, batches, windows
from forethink.tokens import encode_document
from forethink.types import Document, ForethinkError, ScoredDocument
from test_entropy import reference

NAMES = ("entropy", "entropy_raw", "entropy_full", "logprob")
WORDS = [
    "the",
    "of",
    "and",
    "to",
    "in",
    "is",
    "that",
    "for",
    "was",
    "on",
    "as",
    "with",
    "by",
    "he",
    "be",
    "at",
    "from",
    "his",
    "it",
    "an",
    "are",
    "which",
    "you",
    "had",
    "not",
    "or",
    "her",
    "one",
    "all",
    "were",
    "their",
    "we",
    "been",
    "has",
    "have",
    "more",
    "when",
    "who",
    "will",
    "would",
]


def words(seed: int, count: int) -> str:
    """Text of exactly ``count`` tokens, each a common word with its space."""
    rng = random.Random(seed)
    return "".join(" " + rng.choice(WORDS) for _ in range(count))


def assert_scored(scored: ScoredDocument, model, start_of, bos: int | None = None, tolerance: float = 2e-4) -> None:
    """Every figure equals what the model gives on ``ids[start_of(t):t]`` alone."""
    ids = scored.token_ids
    prefix = [] if bos is None else [bos]
    for t in range(len(ids)):
        inputs = prefix + ids[start_of(t) : t]
        ours = [getattr(scored, name)[t] for name in NAMES]
        if not inputs:
            assert all(map(math.isnan, ours)) and scored.argmax[t] == -1
            continue
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([inputs])).logits[0, -1].float()
        assert ours == pytest.approx(reference(logits, ids[t]), abs=tolerance), t
        assert logits[scored.argmax[t]] >= logits.max() - tolerance


# ---- windows and batches


@given(st.integers(1, 300), st.integers(16, 60), st.data(), st.booleans())
@hypothesis_settings(max_examples=200, deadline=None)
def test_every_index_is_predicted_once_from_its_longest_context(tokens, window, data, bos):
    overlap = data.draw(st.integers(1, window - 2))
    parts = list(windows(0, tokens, window, overlap, bos))
    seen = []
    for part in parts:
        assert part.length + bos <= window
        assert 0 <= part.start <= part.first and part.start + part.length < max(tokens, 1)
        for index in range(part.first, part.start + part.length + 1):
            seen.append(index)
            context = index - part.start
            assert context == index or context >= overlap
            others = [index - p.start for p in parts if p.start <= index - (not bos) and index <= p.start + p.length]
            assert context == max(others)
    assert seen == list(range(0 if bos else 1, tokens))


@given(st.lists(st.integers(1, 90), max_size=40), st.integers(16, 200), st.booleans())
@hypothesis_settings(max_examples=100, deadline=None)
def test_batches_are_bounded_sorted_and_complete(lengths, batch_tokens, bos):
    parts = [Window(i, 0, length, 1) for i, length in enumerate(lengths)]
    made = list(batches(parts, batch_tokens, bos))
    assert sorted(itertools.chain(*made), key=lambda part: part.document) == parts
    for batch in made:
        widest = max(part.length for part in batch)
        assert widest == batch[0].length
        assert len(batch) == 1 or len(batch) * (widest + bos) <= batch_tokens
    order = [part.length for part in itertools.chain(*made)]
    assert order == sorted(order, reverse=True)


# ---- the scorer


def documents(*counts: int) -> list[Document]:
    return [Document(f"d{i}", words(i, count)) for i, count in enumerate(counts)]


@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma"])
def test_scores_equal_the_model_run_position_by_position(model, request, smollm2_tokenizer):
    model = request.getfixturevalue(model)
    texts = [*documents(1, 2, 40, 23), Document("u", "naïve 漢字\r\n\t👩‍👧 <|im_end|> 12")]
    seen: list[int] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # the chunked head is the model's own here
        scored = score_documents(model, smollm2_tokenizer, texts, settings.Score(batch_tokens=64), seen.append)
    assert [d.id for d in scored] == ["d0", "d1", "d2", "d3", "u"]
    for text, result in zip(texts, scored, strict=True):
        assert (result.token_ids, result.byte_ends) == encode_document(smollm2_tokenizer, text.text)
        assert result.text == text.text.encode()
        assert result.short == [t < 16 for t in range(len(result.token_ids))]
        assert_scored(result, model, lambda t: 0)
    assert sum(seen) == sum(len(d.token_ids) - 1 for d in scored) and len(seen) > 1


def test_long_documents_are_scored_with_enough_context(tiny_llama, smollm2_tokenizer):
    config = settings.Score(window=32, overlap=8, batch_tokens=70)
    (scored,) = score_documents(tiny_llama, smollm2_tokenizer, documents(100), config)
    starts = {t: start for start, first in ((0, 1), (25, 33), (50, 58), (75, 83)) for t in range(first, 100)}
    assert_scored(scored, tiny_llama, lambda t: starts.get(t, 0))


def test_a_beginning_token_stands_before_every_window(tiny_llama, smollm2_tokenizer):
    from tokenizers import processors

    tokenizer = copy.deepcopy(smollm2_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    config = settings.Score(window=17, overlap=8)
    scored = score_documents(tiny_llama, tokenizer, documents(40, 1), config)
    starts = {t: start for start, first in ((0, 0), (9, 17), (18, 26), (27, 35)) for t in range(first, 40)}
    assert_scored(scored[0], tiny_llama, lambda t: starts[t], bos=1)
    assert_scored(scored[1], tiny_llama, lambda t: 0, bos=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["tiny_llama", "tiny_gemma"])
def test_no_peeking(model, dtype, request, smollm2_tokenizer):
    """Other text from t on leaves entropy and arg-max up to t, and log-probabilities before t, equal bit for bit."""
    model = copy.deepcopy(request.getfixturevalue(model)).to(dtype)
    config = settings.Score(window=48, overlap=12, batch_tokens=100)
    texts = documents(70, 30, 45)
    scorer = Scorer(model, smollm2_tokenizer, config)
    before = scorer(texts)
    for t in (1, 20, 47, 52, 69):
        changed = before[0].text[: before[0].byte_ends[t - 1]].decode() + words(1000 + t, 70 - t)
        after = scorer([Document("d0", changed), *texts[1:]])
        assert repr(after[1:]) == repr(before[1:])  # NaN is not equal to itself
        a, b = before[0], after[0]
        assert a.token_ids[:t] == b.token_ids[:t] and a.token_ids[t:] != b.token_ids[t:]
        for name in ("entropy", "entropy_raw", "entropy_full", "argmax"):
            assert getattr(a, name)[1 : t + 1] == getattr(b, name)[1 : t + 1], (name, t)
        assert a.logprob[1:t] == b.logprob[1:t]
        assert t == 69 or a.entropy[t + 1 :] != b.entropy[t + 1 :]


def small(kind: str):
    """Decoders whose logits are the output embedding's and something more."""
    import transformers

    sizes = {"vocab_size": 49152, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.2}
    own = {
        "Cohere": {"logit_scale": 0.25},
        "Granite": {"logits_scaling": 3.0},
        "Gemma2": {"final_logit_softcapping": 2.0, "head_dim": 16},
        "Llama": {"tie_word_embeddings": False},
    }[kind]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes, **own, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", ["Cohere", "Granite", "Gemma2"])
def test_heads_that_scale_or_cap(kind, smollm2_tokenizer):
    model = small(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (scored,) = score_documents(model, smollm2_tokenizer, documents(12))
    assert_scored(scored, model, lambda t: 0)


def test_an_unknown_head_falls_back_on_the_models_own_logits(smollm2_tokenizer):
    model = small("Llama")
    plain = model.forward

    def forward(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 3 - 1
        return output

    model.forward = forward
    with pytest.warns(UserWarning, match="its logits are more than its output embedding makes"):
        scored = score_documents(model, smollm2_tokenizer, documents(30, 12), settings.Score(window=20, overlap=5))
    assert_scored(scored[1], model, lambda t: 0)
    assert_scored(scored[0], model, lambda t: 0 if t <= 20 else 16)


def test_broken_logits_name_the_document(smollm2_tokenizer):
    model = small("Llama")
    texts = [*documents(20, 20), Document("guilty", " the xylophone of the")]
    ids, _ = encode_document(smollm2_tokenizer, " xylophone")
    scorer = Scorer(model, smollm2_tokenizer, settings.Score(), "proxy-x")
    scorer(texts)
    with torch.no_grad():
        model.get_input_embeddings().weight[ids[0]] = math.nan
    with pytest.raises(ForethinkError, match="guilty: proxy-x gives logits that are no numbers"):
        scorer(texts)
    scorer(texts[:2])


def test_windows_that_cannot_be(tiny_llama, smollm2_tokenizer):
    with pytest.raises(ForethinkError, match=r"score\.window: 4096 is more than the 2048 tokens"):
        Scorer(tiny_llama, smollm2_tokenizer, settings.Score(window=4096))
    with pytest.raises(ForethinkError, match=r"score\.overlap: 64 fills the window of 64"):
        Scorer(tiny_llama, smollm2_tokenizer, settings.Score(window=64, overlap=64))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="peak memory cannot be reset here")
def test_a_large_vocabulary_takes_little_memory(smollm2_tokenizer):
    """262,144 entries at 2,048 tokens: whole logits would take 2 GiB in fp32; the bound is 1.5 GiB over the model."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=262144, **sizes), dtype=torch.float32).eval()
    scorer = Scorer(model, smollm2_tokenizer, settings.Score(window=2048, overlap=64, batch_tokens=2048))
    scorer.table = scorer.table + [b"x"] * (262144 - 49152)  # so that every column counts
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    (scored,) = scorer(documents(2000))
    assert all(map(math.isfinite, scored.entropy_full[1:]))
    assert _memory("VmHWM") - before < 1.5 * 2**30


def _memory(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@pytest.mark.model
def test_smollm2_reads_english(smollm2_folder, smollm2_tokenizer):
    """A real model's figures: plausible, and the same in fp32 from its own logits."""
    from forethink.models import load_model

    text = "The Eiffel Tower is a wrought-iron lattice tower in Paris, France. It is named after the engineer Gustave"
    model = load_model(smollm2_folder, dtype="float32", device="cpu")
    (scored,) = score_documents(model, smollm2_tokenizer, [Document("d", text + " Eiffel.")])
    assert_scored(scored, model, lambda t: 0, tolerance=1e-3)
    assert -2.5 < sum(scored.logprob[1:]) / (len(scored.logprob) - 1) < -0.5
    position = scored.byte_ends.index(len(text))
    assert scored.argmax[position + 1] == scored.token_ids[position + 1] and scored.entropy[position + 1] < 0.5

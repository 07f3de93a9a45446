"""Scoring: its speed beside a bare forward pass over the same batches, and its memory with a large vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from benchmarks.common import Size, alternate, compared, memory, policy, reset_peak, seconds, texts, tokenizer_of
from benchmarks.worker import Channel, Worker
from forethink.config import Score
from forethink.device import keep_memory
from forethink.scoring import Scorer
from forethink.scoring.local import batches, windows
from forethink.types import Document


class _Whole(Scorer):
    """Scores over all columns of the head, though the tokenizer here has fewer entries."""

    def _known(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


def _documents(size: Size, tokenizer: Any, tokens: int) -> list[Document]:
    """The corpus's first texts, about so many tokens in all."""
    found: list[Document] = []
    for number, text in enumerate(texts(size)):
        if tokens <= 0:
            break
        found.append(Document(str(number), text))
        tokens -= len(tokenizer(text)["input_ids"])
    return found


def _rows(scorer: Scorer, documents: list[Document]) -> list[torch.Tensor]:
    """The batches of token ids that the scorer runs, in its order."""
    bos = scorer.bos is not None
    encoded = [scorer.tokenizer(document.text)["input_ids"][int(bos) :] for document in documents]
    config = scorer.config
    parts = [
        part for i, ids in enumerate(encoded) for part in windows(i, len(ids), config.window, config.overlap, bos)
    ]
    starts = [0] * (len(encoded) + 1)
    return [scorer._layout(batch, encoded, starts)[0] for batch in batches(parts, config.batch_tokens, bos)]


def speed(size: Size, pairs: int) -> dict[str, Any]:
    """Tokens per second of scoring against ``model(input_ids)`` over the very batches that the scorer makes."""
    keep_memory(size.device)
    tokenizer, model = tokenizer_of(size), policy(size, torch.bfloat16)
    config = Score(window=min(1024, size.window), overlap=min(256, size.window // 4))
    scorer = Scorer(model, tokenizer, config)
    documents = _documents(size, tokenizer, size.scored)
    rows = [row.to(size.device) for row in _rows(scorer, documents)]

    @torch.inference_mode()
    def bare() -> None:
        for row in rows:
            model(input_ids=row, use_cache=False)

    taken = alternate(
        {
            "scoring": lambda: seconds(lambda: scorer(documents), size.device),
            "forward": lambda: seconds(bare, size.device),
        },
        pairs,
    )
    result = compared(taken, "scoring", "forward")
    tokens = sum(row.numel() for row in rows)
    return {**result, "tokens": tokens, "tokens_per_second": tokens / result["median_seconds"]["scoring"]}


def memory_worker(size: Size, channel: Channel) -> None:
    """Peak memory above the loaded model (weights and libraries), with a Gemma-like model of random weights."""
    tokenizer = tokenizer_of(size)
    torch.manual_seed(0)
    width = 640 if size.vocabulary > 100_000 else 32
    layers = 18 if size.vocabulary > 100_000 else 2
    config = Gemma3TextConfig(
        vocab_size=max(size.vocabulary, len(tokenizer)), hidden_size=width, intermediate_size=width * 16 // 5,
        num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=1, head_dim=max(width * 2 // 5, 8),
        sliding_window=512, max_position_embeddings=32_768,
    )  # fmt: skip
    with torch.device(size.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    scorer = _Whole(model, tokenizer, Score(window=size.window, overlap=size.window // 4))
    documents = _documents(size, tokenizer, size.scored // 4)
    channel.send(ready=True)
    while channel.receive() is not None:
        reset_peak(size.device)
        held = memory(size.device)[0]
        scorer(documents)
        channel.send(above_gib=memory(size.device)[1] - held, held_gib=held)


def run(size: Size, line: Mapping[str, float]) -> dict[str, Any]:
    """The part: figures and what stands at the top level of the results."""
    del line
    result = speed(size, size.pairs)
    with Worker("memory", size) as worker:
        peak = worker.ask(go=True)
    return {
        "scoring_fraction_of_forward": result["ratio"],
        "scoring_peak_gib": peak["above_gib"],
        "scoring": {**result, "memory": peak, "vocabulary": size.vocabulary, "window": size.window},
    }

"""What the parts share: sizes, prompts, models, clocks, memory, and the machine's roofline."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from forethink.flops import Flops
from forethink.models import encode_document, load_model, load_tokenizer, token_bytes
from forethink.templates import load_template
from forethink.types import ForethinkError, Problem

GIB = 2**30
# Decoders that are made here with random weights: for GPUs, and for tests. Widths as in models of that size.
RANDOM: dict[str, dict[str, int]] = {
    "random-tiny": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
                    "num_key_value_heads": 2},
    "random-1.5b": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 31,
                    "num_attention_heads": 12, "num_key_value_heads": 2},
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """What is measured. Context lengths, completion tokens and windows are in tokens."""

    model: str = "smollm2"
    corpus: str = ""
    device: str = "cpu"
    problems: int = 16
    group: int = 8
    tokens: int = 64
    shortest: int = 100
    longest: int = 400
    positions: int = 64
    document: int = 1000
    scored: int = 32_768
    vocabulary: int = 262_144
    window: int = 2048
    degenerate: float = 0.67
    pairs: int = 3
    micro: int = 8  # completions a backward pass of TRL's
    vllm: str | None = None

    @classmethod
    def tiny(cls, **given: Any) -> Size:
        """A size that shows that everything runs, and nothing else."""
        small: dict[str, Any] = {
            "model": "random-tiny", "problems": 2, "group": 2, "tokens": 8, "shortest": 12, "longest": 24,
            "positions": 4, "document": 48, "scored": 512, "vocabulary": 4096, "window": 64, "pairs": 1,
        }  # fmt: skip
        return cls(**{**small, **given})

    def text(self) -> str:
        """As JSON, for another process."""
        return json.dumps(asdict(self))


def texts(size: Size) -> list[str]:
    """The corpus's texts: ``problem`` and ``solution``, or ``text``, of every line of a JSONL file."""
    found = []
    for line in Path(size.corpus).read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        fields = [record[name] for name in ("problem", "solution", "text") if isinstance(record.get(name), str)]
        found.append("\n\n".join(fields))
    return found


def _documents(size: Size, tokenizer: Any, shortest: int) -> list[tuple[str, list[int], list[int]]]:
    """Texts of at least so many tokens, with ids and byte ends, in the corpus's order."""
    table = token_bytes(tokenizer)
    found = []
    for text in texts(size):
        if len(text) > shortest:  # a token is a character at least
            ids, ends = encode_document(tokenizer, text, table)
            if len(ids) > shortest:
                found.append((text, ids, ends))
        if len(found) == 256:
            break
    if not found:
        raise ForethinkError(f"{size.corpus}: no text has {shortest} tokens; name a longer corpus.")
    return found


def _problem(number: int, document: tuple[str, list[int], list[int]], index: int) -> Problem:
    text, ids, ends = document
    data, at, last = text.encode(), ends[index - 1], min(index + 4, len(ids))
    nothing = float("nan")
    return Problem(
        id=f"{number}:{index}", document=str(number), index=index, split="train", context=data[:at],
        context_ids=tuple(ids[:index]), target=data[at : ends[last - 1]], target_ids=tuple(ids[index:last]),
        token_ends=tuple(end - at for end in ends[index:last]), entropy=nothing, entropy_raw=nothing,
        entropy_full=nothing, logprob=nothing, argmax_bytes=b"",
    )  # fmt: skip


def problems(size: Size, tokenizer: Any) -> list[Problem]:
    """Problems of as many documents as there are, with contexts spread evenly from the shortest to the longest."""
    documents = _documents(size, tokenizer, size.longest)
    step = (size.longest - size.shortest) / max(size.problems - 1, 1)
    return [_problem(i, documents[i % len(documents)], size.shortest + round(i * step)) for i in range(size.problems)]


def document_problems(size: Size, tokenizer: Any) -> list[Problem]:
    """Evenly spread positions of one document of so many tokens, each with all that stands before it."""
    text, ids, ends = _documents(size, tokenizer, size.document)[0]
    cut = (text.encode()[: ends[size.document]].decode(errors="ignore"), ids[: size.document + 1], ends)
    first = max(size.document // size.positions, 1)
    return [_problem(0, cut, first + i * (size.document - first) // size.positions) for i in range(size.positions)]


def prompts(chosen: Sequence[Problem], tokenizer: Any) -> list[list[int]]:
    """Prompts in the training template."""
    template = load_template("v0")
    return [template.render(problem, tokenizer) for problem in chosen]


def tokenizer_of(size: Size) -> Any:
    """The model's tokenizer; a random model's is SmolLM2's."""
    return load_tokenizer("smollm2" if size.model in RANDOM else size.model)


def policy(size: Size, dtype: torch.dtype) -> Any:
    """The model in eval mode on the device."""
    if size.model not in RANDOM:
        return load_model(size.model, dtype=dtype, device=size.device)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer_of(size)), max_position_embeddings=8192, tie_word_embeddings=True,
        **RANDOM[size.model],
    )  # fmt: skip
    with torch.device(size.device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def clock(device: str) -> float:
    """Seconds, after the device has done what it was told."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds(work: Callable[[], object], device: str) -> float:
    """How long it takes, once."""
    begin = clock(device)
    work()
    return clock(device) - begin


def alternate(sides: Mapping[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Run all sides in turn, A B A B …, each once before as warm-up; seconds by side."""
    for side in sides.values():
        side()
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(pairs):
        for name, side in sides.items():
            taken[name].append(side())
    return taken


def compared(taken: Mapping[str, Sequence[float]], ours: str, other: str) -> dict[str, Any]:
    """Medians, every pair's ratio (other over ours: how many times faster ours is) and the ratios' median."""
    ratios = [b / a for a, b in zip(taken[ours], taken[other], strict=True)]
    medians = {name: statistics.median(taken[name]) for name in (ours, other)}
    return {"seconds": {n: list(taken[n]) for n in medians}, "median_seconds": medians, "ratios": ratios,
            "ratio": statistics.median(ratios)}  # fmt: skip


def reset_peak(device: str) -> None:
    """Begin to watch memory anew."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the resident size's high-water mark


def memory(device: str) -> tuple[float, float]:
    """GiB held now, and at most since `reset_peak`: of the GPU, or of this process."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated() / GIB, torch.cuda.max_memory_allocated() / GIB
    rows = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(rows[name].split()[0]) * 1024 / GIB for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def roofline(device: str, small: bool = False) -> dict[str, float]:
    """The best of several tries: TFLOP/s of square products in bf16 and fp32, GB/s read from memory.

    Memory is read by summing 1 GiB of fp32 (64 MiB where ``small``); caches are smaller than that.
    """
    n = 256 if small else 8192 if device.startswith("cuda") else 2048
    found: dict[str, float] = {}
    for name, dtype in (("bf16_tflops", torch.bfloat16), ("fp32_tflops", torch.float32)):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        best = min(seconds(lambda a=a, b=b: a @ b, device) for _ in range(6))
        found[name] = 2 * n**3 / best / 1e12
    data = torch.ones((64 if small else 1024) * 2**18, device=device)
    best = min(seconds(data.sum, device) for _ in range(6))
    found["memory_gbs"] = data.numel() * 4 / best / 1e9
    return found


def rollout_bound(
    model: Any, prompt_lengths: Sequence[int], group: int, tokens: int, line: Mapping[str, float]
) -> dict[str, float]:
    """Least seconds that sampling these groups can take on this machine in bf16.

    Prefill and every one of the ``tokens - 1`` decoding steps cost ``max(operations / bf16_tflops, bytes /
    memory_gbs)``. Operations are those of `forethink.flops` with every prompt computed once a group; bytes are the
    weights once a step, every prompt's keys and values once a group, and every completion's own once.
    """
    cost, text = Flops.of(model), model.config.get_text_config()
    weights = 2 * sum(p.numel() for p in model.parameters())
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kept = 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * width  # bytes of a token's keys and values

    def least(operations: float, data: float) -> float:
        return max(operations / (line["bf16_tflops"] * 1e12), data / (line["memory_gbs"] * 1e9))

    prefill = sum(cost.forward(p, p * p // 2, 1) for p in prompt_lengths)
    total, rows, held = least(prefill, weights), group * len(prompt_lengths), sum(prompt_lengths)
    operations = prefill
    for step in range(1, tokens):
        work = cost.forward(rows, group * held + rows * step, rows)
        operations += work
        total += least(work, weights + kept * (held + rows * step))
    return {"seconds": total, "operations": operations}

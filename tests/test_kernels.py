"""The compiled kernels give what plain tensors give: every type, window, width and number of threads."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from forethink import kernels, tree_attention
from forethink.packing import check_packing, sequence_logprobs
from forethink.rollout.attention import GroupCache, Prompts
from forethink.rollout.decoders import GroupDecoder

COMPILER = sys.platform.startswith("linux") and shutil.which("c++") is not None
pytestmark = pytest.mark.skipif(not COMPILER, reason="there is no C++ compiler")
MULTIPLIED = kernels._multiplied() if COMPILER else ()
DTYPES = [torch.float32, torch.bfloat16]
ERROR = {torch.float32: 2e-6, torch.bfloat16: 6e-3}  # of a whole tensor; bf16 itself rounds by up to 4e-3


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Puts the kernels out of use from the call on."""
    return lambda: monkeypatch.setattr(kernels, "takes", lambda *tensors, **options: False)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def distance(ours: Tensor, exact: Tensor) -> float:
    return float(torch.linalg.vector_norm(ours.double() - exact) / torch.linalg.vector_norm(exact))


def test_this_machine_multiplies() -> None:
    """A processor that should be able to is not passed over in silence."""
    assert ("float32" in str(MULTIPLIED)) == ("avx2" in Path("/proc/cpuinfo").read_text())
    assert ("bfloat16" in str(MULTIPLIED)) == torch.cpu._is_amx_tile_supported()


def a_tree(prompts: Sequence[int], group: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Ends and positions of prompts of these lengths, each with a group of completions behind it."""
    ends: list[int] = []
    positions: list[int] = []
    for length in prompts:
        first = len(ends)
        ends += [first + length + group * tokens] * length
        positions += range(length)
        for _ in range(group):
            ends += [len(ends) + tokens] * tokens
            positions += range(length, length + tokens)
    return torch.tensor(ends), torch.tensor(positions)


TREES = [  # prompts, completions, their tokens; window; key-value heads, queries a head, widths of keys and values
    ((5,), 2, 3, None, 3, 3, 64, 64),
    ((70, 130, 33), 4, 37, None, 3, 3, 64, 64),
    ((70, 130, 33), 4, 37, 40, 3, 3, 64, 64),
    ((100,), 3, 70, 1, 2, 1, 16, 32),
    ((100, 3), 3, 70, 90, 2, 5, 80, 48),
    ((40,), 1, 7, None, 1, 4, 256, 256),
    ((1,), 1, 1, None, 1, 1, 16, 16),
]


@pytest.mark.parametrize("case", TREES)
@pytest.mark.parametrize("dtype", [*DTYPES, "widened"])
def test_a_tree_s_attention_and_gradients(case, dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against fp64 on the whole mask; ``widened``: bf16 tensors on a machine that multiplies fp32 alone."""
    if dtype == "widened":
        dtype = torch.bfloat16
        monkeypatch.setattr(kernels, "_multiplied", lambda: (torch.float32,))
    elif dtype not in MULTIPLIED:
        pytest.skip(f"this machine does not multiply packed {dtype}")
    prompts, group, tokens, window, kv, rep, width, value_width = case
    ends, positions = a_tree(prompts, group, tokens)
    n = len(ends)
    generator = torch.Generator().manual_seed(0)
    shapes = (kv, rep, n, width), (kv, n, width), (kv, n, value_width)
    inputs = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    upstream = torch.randn(kv, rep, n, value_width, generator=generator).to(dtype)
    assert kernels.takes(*inputs, widened=True)
    plan = tree_attention.plan(ends.tolist(), positions.tolist())
    out = kernels.TreeAttention.apply(*inputs, plan, window, 0.2)
    found = [out, *torch.autograd.grad(out, inputs, upstream)]

    i = torch.arange(n)
    seen = (i <= i[:, None]) & (i[:, None] < ends)
    if window is not None:
        seen &= positions[:, None] - positions < window
    query, key, value = (x.detach().double().requires_grad_() for x in inputs)
    scores = (query @ key[:, None].transpose(-1, -2) * 0.2).masked_fill(~seen, -torch.inf)
    exact = scores.softmax(-1) @ value[:, None]
    gradients = torch.autograd.grad(exact, (query, key, value), upstream.double())
    for ours, theirs in zip(found, [exact, *gradients], strict=True):
        assert ours.dtype == dtype
        if float(theirs.detach().abs().max()) > 1e-9:  # where a token sees itself alone, scores have no gradient
            assert distance(ours.detach(), theirs.detach()) < ERROR[dtype]
        else:
            assert float(ours.abs().max()) < 0.05


def test_not_a_number_stays_one() -> None:
    ends, positions = a_tree((40,), 2, 5)
    inputs = [torch.randn(shape) for shape in ((1, 2, len(ends), 16), (1, len(ends), 16), (1, len(ends), 16))]
    inputs[1][0, 42] = torch.nan  # a key of the first completion
    plan = tree_attention.plan(ends.tolist(), positions.tolist())
    out = kernels.TreeAttention.apply(*inputs, plan, None, 0.2)
    lost = out.isnan().all(-1).all(1)[0]
    assert lost.nonzero()[:, 0].tolist() == [42, 43, 44]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_tree_s_bits_do_not_depend_on_threads(dtype, threads) -> None:
    ends, positions = a_tree((90, 61), 5, 33)
    shapes = (3, 3, len(ends), 32), (3, len(ends), 32), (3, len(ends), 32)
    inputs = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    upstream = torch.randn(shapes[0]).to(dtype)
    found = []
    for number in (1, 2, 7):
        threads(number)
        plan = tree_attention.plan(ends.tolist(), positions.tolist())
        out = kernels.TreeAttention.apply(*inputs, plan, None, 0.2)
        found.append([out, *torch.autograd.grad(out, inputs, upstream)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def a_cache(
    dtype: torch.dtype, window: int | None, lengths: Sequence[int], width: int, value_width: int
) -> GroupCache:
    """One layer, two key-value heads; four rows a group."""
    cache = GroupCache(torch.device("cpu"), {0: window})
    pairs = [(torch.randn(2, n, width).to(dtype), torch.randn(2, n, value_width).to(dtype)) for n in lengths]
    cache.arrange([], Prompts(list(lengths), {0: pairs}), 4)
    return cache


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", [None, 1, 30, 66])
@pytest.mark.parametrize(("width", "value_width", "rep"), [(16, 16, 1), (64, 64, 3), (80, 48, 5), (32, 32, 17)])
def test_a_step_s_attention(dtype, window, width, value_width, rep, plain, threads) -> None:
    """Prompts around a block's 64 keys; rows that end and groups that join; more own tokens than the first buffer."""
    if dtype not in MULTIPLIED:
        pytest.skip(f"this machine does not multiply packed {dtype}")
    torch.manual_seed(4)
    cache = a_cache(dtype, window, (1, 63, 64, 129), width, value_width)
    inputs, found = [], []
    for step in range(40):
        if step == 3:
            cache.arrange([0, 5, 6, 7, 12, 13, 14, 15], Prompts([20], {0: [
                (torch.randn(2, 20, width).to(dtype), torch.randn(2, 20, value_width).to(dtype))
            ]}), 4)  # fmt: skip
        cache.begin()
        rows = len(cache.group_of)
        cache.update(torch.randn(rows, 2, 1, width).to(dtype), torch.randn(rows, 2, 1, value_width).to(dtype), 0)
        query = torch.randn(rows, 2 * rep, 1, width).to(dtype)
        if step in (0, 2, 3, 39):
            inputs.append((copy.deepcopy(cache), query))
            threads(1)
            out = cache.attend(0, query, 0.2, window, None)
            threads(2)
            assert torch.equal(out, cache.attend(0, query, 0.2, window, None))
            assert cache.by_layer[0].packed_v is not None  # it was the kernel
            found.append(out)
        cache.end()
    plain()
    for (before, query), ours in zip(inputs, found, strict=True):
        layer = before.by_layer[0]
        for name in ("prompt_k", "prompt_v", "own_k", "own_v"):
            setattr(layer, name, getattr(layer, name).double())
        exact = before.attend(0, query.double(), 0.2, window, None)
        assert ours.shape == exact.shape and ours.dtype == dtype
        assert distance(ours, exact) < ERROR[dtype]


@pytest.fixture(scope="module")
def wide_llama(smollm2_tokenizer):
    """Llama-like, heads of a width that the kernels take."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(smollm2_tokenizer), hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["wide_llama", "tiny_gemma"])
def test_models_give_what_they_give_without(name, dtype, request, plain, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed log-probabilities, their gradients, and decoding steps, of grouped-query and sliding-window attention."""
    if dtype not in MULTIPLIED:
        pytest.skip(f"this machine does not multiply packed {dtype}")
    model = copy.deepcopy(request.getfixturevalue(name)).to(dtype)
    prompts = [torch.randint(5, 4000, (n,)).tolist() for n in (40, 25)]
    sequences = [prompt + torch.randint(5, 4000, (n,)).tolist() for prompt in prompts for n in (9, 20)]
    starts = [40, 40, 25, 25]
    assert check_packing(model, sequences, starts, 1e-3 if dtype == torch.float32 else 0.5, tiled=True) is None

    def work(model) -> list[Tensor]:
        model.zero_grad()
        found = {number: logprobs for number, logprobs, _ in sequence_logprobs(model, sequences, starts, tiled=True)}
        values = torch.cat([found[number] for number in range(len(sequences))])
        (values * torch.arange(len(values))).sum().backward()
        decoder = GroupDecoder(model)
        with torch.no_grad():
            logits = [decoder.arrange([], prompts, 3)]
            logits += [decoder.step(torch.arange(6) + 7 * step) for step in range(3)]
        grown = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        return [values.detach(), grown, torch.cat(logits).flatten()]

    used: list[str] = []
    call = kernels._call
    monkeypatch.setattr(kernels, "_call", lambda library, *rest: used.append(library) or call(library, *rest))
    ours = work(model)
    assert set(used) == {"tree_attention.cpp", "rollout/attention.cpp"}
    used.clear()
    plain()
    theirs, exact = work(model), work(model.double())
    assert not used
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert distance(a, c) < 2 * distance(b, c) + 1e-6


def test_what_the_kernels_do_not_take() -> None:
    one = torch.zeros(2, 16)
    assert kernels.takes(one, one) == (torch.float32 in MULTIPLIED)
    assert not kernels.takes(one, one.to(torch.bfloat16), widened=True)  # mixed
    assert not kernels.takes(torch.zeros(2, 24))  # not a multiple of 16
    assert not kernels.takes(torch.zeros(2, 512))  # wider than a row on the stack
    assert not kernels.takes(one.double())
    assert not kernels.takes(one.to("meta"))


def test_without_a_compiler_plain_tensors_serve(tmp_path: Path) -> None:
    code = """
import torch
from forethink import kernels, tree_attention
assert kernels.load("tree_attention.cpp") is None and not kernels.takes(torch.zeros(2, 16))
"""
    environment = {**os.environ, "CXX": str(tmp_path / "no-such-compiler"), "XDG_CACHE_HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)
    assert not list(tmp_path.rglob("*.so"))


def test_another_processor_compiles_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home shared by several machines: code for one's instructions would end the process on another."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ours = kernels.compiled("tree_attention.cpp", kernels._FAST, ("torch_cpu", "c10"))
    assert kernels.compiled("tree_attention.cpp", kernels._FAST, ("torch_cpu", "c10")) == ours
    monkeypatch.setattr(kernels, "_instructions", lambda: b"flags : others")
    theirs = kernels.compiled("tree_attention.cpp", kernels._FAST, ("torch_cpu", "c10"))
    assert theirs != ours and ours.exists() and theirs.exists()

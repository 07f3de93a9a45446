"""What PyTorch lacks on CPUs: weights laid out for matrix units, and C++ of our own, compiled on the user's machine.

Compiled code is optional. `load` gives None where there is no C++ compiler or none of the instructions it needs, and
callers go on with plain tensors: the same results to rounding, slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from forethink.tree_attention import Plan

_HERE = Path(__file__).parent
_FAST = ("-O3", "-march=native", "-fopenmp", "-DAT_PARALLEL_OPENMP=1")
_WIDEST = 256  # elements of a head, of which the kernels keep a row on their stack
_BLOCK = 64  # keys of a product in the kernels
_ROWS = 128  # rows of input a weight's layout is chosen for


def compiled(source: str, flags: tuple[str, ...], libraries: tuple[str, ...]) -> Path:
    """The shared library of a C++ file of this package, made where this machine has none of this version yet.

    Args:
        source: its name below the package's folder.
        flags: for the compiler; ``-march=native`` ties the library to the processor's instructions.
        libraries: torch's own that it calls.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: no compiler, an unwritable cache, a user without a home.
    """
    folder = Path(torch.__file__).parent
    told = [*shlex.split(os.environ.get("CXX") or "c++"), "-std=c++20", "-shared", "-fPIC", *flags]
    made_of = b"".join(path.read_bytes() for path in [_HERE / source, *sorted(_HERE.glob("*.h"))])
    made_of += f"{torch.__version__} {platform.machine()} {' '.join(flags)}".encode()
    if "-march=native" in flags:
        made_of += _instructions()
        told += ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forethink"
    library = cache / f"{Path(source).stem}-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as place:  # moved when whole: other processes may do the same
            command = [
                *told, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", f"-I{folder / 'include'}",
                f"-I{_HERE}", str(_HERE / source), "-o", f"{place}/{library.name}", f"-L{folder / 'lib'}",
                *(f"-l{name}" for name in libraries),
            ]  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, timeout=300)
            os.replace(f"{place}/{library.name}", library)
    return library


def _instructions() -> bytes:
    """What the processor can do, as Linux tells it."""
    lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    return next((line for line in lines if line.startswith((b"flags", b"Features"))), b"")


@functools.cache
def load(source: str) -> ctypes.CDLL | None:
    """The library of kernels in a C++ file, or None where it cannot be had; compiled at the first use on a machine."""
    if not sys.platform.startswith("linux"):
        return None
    with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):
        return ctypes.CDLL(str(compiled(source, _FAST, ("torch_cpu", "c10"))))
    return None


@functools.cache
def _multiplied() -> tuple[torch.dtype, ...]:
    """Types in which the attention kernels' products run on this machine."""
    library, other = load("tree_attention.cpp"), load("rollout/attention.cpp")
    found = 0 if library is None or other is None else library.forethink_multiplies()
    return tuple(dtype for bit, dtype in ((1, torch.bfloat16), (2, torch.float32)) if found & bit)


def takes(*tensors: Tensor, widened: bool = False) -> bool:
    """Whether the kernels compute with such tensors here: all on a CPU, of one type, widths multiples of 16.

    Args:
        tensors: what they are to be given.
        widened: whether bf16 may be made fp32 before, where only that is multiplied.
    """
    dtype = tensors[0].dtype
    fit = all(
        x.device.type == "cpu" and x.dtype == dtype and x.shape[-1] % 16 == 0 and x.shape[-1] <= _WIDEST
        for x in tensors
    )  # fmt: skip
    return fit and (dtype in _multiplied() or (widened and dtype == torch.bfloat16 and torch.float32 in _multiplied()))


class _Tree(ctypes.Structure):
    """The struct of the same name in tree_attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("kv", "rep", "tokens", "width", "value_width", "tiles", "window")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p)
          for name in ("first", "past", "runs", "run_begin", "run_past", "ends", "positions")),
    ]  # fmt: skip


def _call(library: str, name: str, *arguments: Any) -> None:
    """Call a kernel; tensors go as pointers to their data."""
    function = getattr(load(library), name)
    given = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, Tensor) else x for x in arguments]
    if function(*given):
        raise RuntimeError(f"{name} ran out of memory")


class _Groups(ctypes.Structure):
    """The struct of the same name in rollout/attention.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64)
          for name in ("groups", "kv", "rep", "width", "value_width", "places", "blocks", "capacity", "window")),
        ("scale", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("lengths", "steps", "first")),
    ]  # fmt: skip


def group_attention(
    query: Tensor,
    prompt_k: Tensor,
    prompt_v: Tensor,
    own_k: Tensor,
    own_v: Tensor,
    counts: tuple[Tensor, Tensor, Tensor],
    scale: float,
    window: int | None,
) -> Tensor:
    """Attention of one token a row to its group's prompt and its own tokens; see `rollout.attention`.

    Args:
        query: [R, kv, rep, d], a group's rows side by side.
        prompt_k: [N, kv, P, d].
        prompt_v: what `packed_values` made of [N, kv, P, e].
        own_k, own_v: [R, kv, capacity, d or e].
        counts: int64 [N], [N], [N + 1]: tokens of each prompt, own tokens of its rows before the newest, first rows.

    Returns:
        [R, kv, rep, e].
    """
    rows, kv, rep, width = query.shape
    out = query.new_empty(rows, kv, rep, own_v.shape[-1])
    groups = _Groups(
        len(prompt_k), kv, rep, width, own_v.shape[-1], prompt_k.shape[2], prompt_v.shape[2], own_k.shape[2],
        window or 0, scale, *(x.data_ptr() for x in counts),
    )  # fmt: skip
    _call(
        "rollout/attention.cpp", "forethink_group_attention", query.dtype == torch.bfloat16, ctypes.byref(groups),
        query.contiguous(), prompt_k, prompt_v, own_k, own_v, out,
    )  # fmt: skip
    return out


def packed_values(values: Tensor, lengths: Tensor) -> Tensor:
    """Values of prompts [N, kv, P, e], ``lengths`` int64 [N] of them each, as [N, kv, blocks, e, 64]."""
    n, kv, places, width = values.shape
    blocks = -(-int(lengths.max()) // _BLOCK)
    out = values.new_empty(n, kv, blocks, width, _BLOCK)
    groups = _Groups(n, kv, 1, width, width, places, blocks, 0, 0, 1.0, lengths.data_ptr(), None, None)
    _call(
        "rollout/attention.cpp", "forethink_pack_values", values.dtype == torch.bfloat16, ctypes.byref(groups), values,
        out,
    )  # fmt: skip
    return out


class TreeAttention(torch.autograd.Function):
    """Query [K, rep, N, d], key [K, N, d], value [K, N, e] of one type → [K, rep, N, e]; see `tree_attention`."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, plan: Plan, window: int | None, scale: float
    ) -> Tensor:
        tree = _Tree(
            *query.shape, value.shape[-1], len(plan.tiles), window or 0, scale,
            *(x.data_ptr() for x in (*plan.ranges(window), plan.ends, plan.positions_t)),
        )  # fmt: skip
        dtype = query.dtype if query.dtype in _multiplied() else torch.float32
        given = [x.to(dtype) for x in (query, key, value)]
        out = given[0].new_empty(*query.shape[:3], value.shape[-1])
        logsum = torch.empty(query.shape[:3], dtype=torch.float32)
        half = dtype == torch.bfloat16
        _call("tree_attention.cpp", "forethink_tree_forward", half, ctypes.byref(tree), *given, out, logsum)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, logsum)
        ctx.rest = dtype, tree, plan  # whose tensors the struct points to
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, out, logsum = ctx.saved_tensors
        dtype, tree, _ = ctx.rest
        given = [x.to(dtype) for x in (*inputs, out, gradients[0].contiguous())]
        found = [torch.empty_like(x) for x in given[:3]]
        half = dtype == torch.bfloat16
        _call("tree_attention.cpp", "forethink_tree_backward", half, ctypes.byref(tree), *given, logsum, *found)
        return *(x.to(inputs[0].dtype) for x in found), None, None, None


def row_sums(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """What `scoring.entropy` makes its figures of, or None where the kernel does not take such logits.

    Args:
        logits: [n, V], m the maximum of a row.
        k: at most V.

    Returns:
        The k highest logits of every row, fp32 [n, k], highest first; their columns, int64 [n, k], of equal ones the
        lowest first; Σ e^(x - m) and Σ e^(x - m) (x - m), fp32 [n], NaN where a row holds NaN or ``+inf``.
    """
    known = logits.dtype in (torch.float32, torch.bfloat16) and logits.device.type == "cpu"
    if not known or logits.stride(1) != 1 or load("scoring/entropy.cpp") is None:
        return None
    count, columns = logits.shape
    values, ids = torch.empty(count, k), torch.empty(count, k, dtype=torch.int64)
    total, moment = torch.empty(count), torch.empty(count)
    sizes = [ctypes.c_int64(x) for x in (count, columns, logits.stride(0), k)]
    half = logits.dtype == torch.bfloat16
    _call("scoring/entropy.cpp", "forethink_row_sums", half, logits, *sizes, values, ids, total, moment)
    return values, ids, total, moment


class PackedLinears:
    """The rearranged weights of a model's bf16 linear layers; nothing on other devices or in other dtypes."""

    def __init__(self, model: nn.Module) -> None:
        possible = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        self._layers = [
            module
            for module in model.modules()
            if possible
            and type(module) is nn.Linear  # subclasses may compute something else
            and module.weight.dtype == torch.bfloat16
            and module.weight.device.type == "cpu"
        ]
        self._forwards: dict[int, tuple[tuple[int, int], Callable[[Tensor], Tensor]]] = {}

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        """Let the layers use their rearranged weights inside the ``with`` block."""
        try:
            for layer in self._layers:
                layer.__dict__["forward"] = self._forward(layer)
            yield
        finally:
            for layer in self._layers:
                layer.__dict__.pop("forward", None)

    def _forward(self, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        state = (layer.weight.data_ptr(), layer.weight._version)
        known = self._forwards.get(id(layer))
        if known is None or known[0] != state:
            packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), _ROWS)
            bias = layer.bias if layer.bias is None else layer.bias.detach()
            multiply = torch.ops.mkldnn._linear_pointwise

            def forward(x: Tensor) -> Tensor:
                result: Tensor = multiply(x, packed, bias, "none", [], "")
                return result

            known = self._forwards[id(layer)] = (state, forward)
        return known[1]

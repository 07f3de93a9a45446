"""What the machine computes on and in: the device, the dtype that pays there, and memory kept between steps."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys

import torch

from forethink.kernels import compiled


def pick_device(device: str) -> torch.device:
    """The device that a name means; ``auto`` is the best there is."""
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype that a name means on a device; ``auto`` is bf16 where the device has instructions for it."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    return torch.bfloat16 if multiplies_bf16(device) else torch.float32


def multiplies_bf16(device: str | torch.device) -> bool:
    """Whether a device has instructions for bf16: without, every product converts to fp32 and back, at a loss."""
    kind = pick_device(device).type if isinstance(device, str) else device.type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # The two are private names of torch, which has no public ones.
    return kind == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def computes_in_bf16(precision: str, device: str | torch.device) -> bool:
    """What a stage's ``precision`` means on a device: anything but fp32, and ``auto`` where that pays."""
    return multiplies_bf16(device) if precision == "auto" else precision != "fp32"


def keep_memory(device: str) -> None:
    """Keep freed memory in the process, where a stage computes on the CPU (Linux; elsewhere nothing happens).

    Call it before large tensors are made. ``device`` is the stage's: elsewhere, the memory in which its weights were
    read shall go back.

    By default glibc hands every large freed block back and takes it anew, zeroed page by page. Training on a CPU frees
    and takes the same hundreds of megabytes at each step: without this it is slower, up to twice, and unsteady. Large
    tensors come from a heap of their own (memory.cpp), compiled at the first call on a machine; where there is no C++
    compiler, or ``LD_PRELOAD`` names an allocator, the C library's serves them too, whose search among its free blocks
    grows longer from step to step.
    """
    if not sys.platform.startswith("linux") or pick_device(device).type != "cpu":
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap keeps its top
    if "malloc" not in os.environ.get("LD_PRELOAD", ""):
        with contextlib.suppress(OSError, RuntimeError, subprocess.SubprocessError):  # RuntimeError: no home
            ctypes.CDLL(str(compiled("memory.cpp", ("-O2",), ("c10",)))).forethink_keep_memory()

"""The heap of large CPU tensors: what it hands out, what it joins, and what happens without a compiler.

Every case runs in a process of its own, since an allocator once set stays.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's memory is Linux's")
compiled = pytest.mark.skipif(shutil.which("c++") is None, reason="there is no C++ compiler")

BEGIN = """
import ctypes, os, threading
import torch
from forethink.device import keep_memory
from forethink.kernels import compiled

early = torch.full((1 << 20,), 7.0)  # of the allocator that was there before
keep_memory("cpu")
"""
HEAP = """
library = ctypes.CDLL(str(compiled("memory.cpp", ("-O2",), ("c10",))))
library.forethink_keep_memory.restype = ctypes.c_int64
held = library.forethink_keep_memory  # bytes
"""


def run(code: str, cache: Path, begin: str = BEGIN, **environment: str) -> str:
    """What the code prints, or its error as the test's."""
    names = {k: v for k, v in os.environ.items() if k not in ("CXX", "LD_PRELOAD")}
    done = subprocess.run(
        [sys.executable, "-c", begin + code], capture_output=True, text=True, check=False, timeout=60,
        env={**names, "XDG_CACHE_HOME": str(cache), **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@compiled
def test_blocks_are_apart_aligned_and_used_again(cache: Path) -> None:
    """Blocks of all sizes, freed in any order by several threads, never overlap; the heap stops growing."""
    run(
        HEAP
        + """
import random

def work(seed, rounds=400):
    draw, live = random.Random(seed), []
    for number in range(rounds):
        size = int(2 ** draw.uniform(3, 22))
        block = torch.full((size,), number % 251, dtype=torch.uint8)
        assert block.data_ptr() % 64 == 0
        live.append((number % 251, block))
        if len(live) > 40:
            mark, old = live.pop(draw.randrange(len(live)))
            assert bool((old == mark).all()), "another block was written into this one"
    for mark, old in live:
        assert bool((old == mark).all())

def together():
    failures = []
    def guarded(seed):
        try:
            work(seed)
        except BaseException as error:
            failures.append(error)
    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not failures, failures

together()
assert held() > 0, "nothing came from the heap"
together()
before = held()
for _ in range(3):
    together()
# Four threads' blocks lie next to each other in another order at every run, so a growth or two may still come.
assert held() - before <= 128 << 20, (before, held())
assert bool((early == 7).all())
del early
""",
        cache,
    )


@compiled
def test_free_neighbours_are_joined(cache: Path) -> None:
    """What many small blocks held serves one large block, and a large block's memory many small ones."""
    run(
        HEAP
        + """
start = held()
parts = [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(60)]
full = held()
assert full - start == 64 << 20, (start, full)
for order in (slice(None, None, 2), slice(1, None, 2)):  # every second first: then each of the rest joins two
    parts[order] = [None] * len(parts[order])
whole = torch.empty(60 << 20, dtype=torch.uint8)
assert held() == full, "the freed parts were not joined"
del whole
parts = [torch.empty(1 << 20, dtype=torch.uint8) for _ in range(60)]
assert held() == full, "the rest of a divided block was lost"
""",
        cache,
    )


@compiled
def test_memory_is_not_taken_from_the_system_again(cache: Path) -> None:
    """Freed memory stays mapped: writing to a block of the same size a second time has next to no page faults."""
    run(
        """
import resource

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
again = faults()
assert again < 64, again  # four times 32 MiB are 32,768 pages
""",
        cache,
    )


@compiled
def test_what_torch_does_with_memory_goes_on(cache: Path) -> None:
    """Storages grow and shrink, NumPy shares them, children of a fork have their own, the profiler sees them."""
    out = run(
        """
import numpy as np
from torch.profiler import ProfilerActivity, profile

x = torch.arange(100_000)
x.resize_(300_000)
assert int(x[99_999]) == 99_999
kept = torch.arange(100_000.0).numpy()
for _ in range(50):
    torch.full((100_000,), -1.0)
assert (kept == np.arange(100_000)).all(), "memory that NumPy holds was given away"
w = torch.randn(300, 300, requires_grad=True)
torch.nn.functional.gelu(w @ w).sum().backward()
assert torch.isfinite(w.grad).all()
child = os.fork()
if child == 0:
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    good = all(bool((torch.full((1 << 18,), i) == i).all()) for i in range(20))
    os._exit(0 if good else 1)
assert os.waitpid(child, 0)[1] == 0
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
    y = torch.empty(1 << 20)
assert any(event.self_cpu_memory_usage == 4 << 20 for event in found.key_averages())
try:
    torch.empty(1 << 60, dtype=torch.uint8)
except RuntimeError as error:
    print("refused:", str(error).splitlines()[0])
assert bool((torch.full((1 << 20,), 3) == 3).all())  # and the heap works on
""",
        cache,
    )
    assert "refused: not enough memory: you tried to allocate" in out


@compiled
def test_the_heap_is_compiled_once(cache: Path) -> None:
    """A second process finds the library; nothing half made is left beside it."""
    code = 'path = compiled("memory.cpp", ("-O2",), ("c10",)); print(path, path.stat().st_mtime_ns)'
    assert run(code, cache) == run(code, cache)
    assert [file.suffix for file in (cache / "forethink").iterdir()] == [".so"]


WITHOUT = """
assert bool((torch.full((1 << 20,), 3) == 3).all())
print("memory-" in open("/proc/self/maps").read())
"""


@pytest.mark.parametrize(
    "environment",
    [{"CXX": "false"}, {"CXX": "no-such-compiler"}, {"LD_PRELOAD": "/nowhere/libjemalloc.so.2"}],
    ids=["compiler-fails", "no-compiler", "own-allocator"],
)
def test_without_it_the_c_library_serves_all(tmp_path: Path, environment: dict[str, str]) -> None:
    """No compiler, or an allocator of the user's own: no error, and no heap of ours."""
    assert run(WITHOUT, tmp_path, **environment) == "False\n"


@compiled
def test_with_it_the_heap_is_loaded(cache: Path) -> None:
    """So that the case without it shows something."""
    assert run(WITHOUT, cache) == "True\n"


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A home that is a file: no heap, no error."""
    (tmp_path / "home").write_text("")
    assert run(WITHOUT, tmp_path / "home") == "False\n"


@compiled
def test_a_stage_on_another_device_has_no_heap(tmp_path: Path) -> None:
    """Weights are read on the CPU and moved: what they took here shall go back."""
    code = """
keep_memory("meta")
print("memory-" in open("/proc/self/maps").read())
"""
    begin = BEGIN.replace('keep_memory("cpu")\n', "")
    assert run(code, tmp_path, begin=begin) == "False\n"


@compiled
def test_a_user_without_a_home(tmp_path: Path) -> None:
    """No home to keep the heap in (a container's nameless user): no heap, no error."""
    begin = BEGIN.replace(
        'keep_memory("cpu")',
        """
def nowhere():
    raise RuntimeError("Could not determine home directory.")

import pathlib
pathlib.Path.home = nowhere
del os.environ["XDG_CACHE_HOME"]
keep_memory("cpu")
""",
    )
    assert run(WITHOUT, tmp_path, begin=begin) == "False\n"

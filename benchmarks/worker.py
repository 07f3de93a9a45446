"""One side of a comparison in a process of its own, which waits while another side is measured.

The parent writes a request a line, the worker answers a line: its own seconds and memory. So every side has its own
allocator and its own settings, and its memory can be told from the others'.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

from benchmarks.common import Size

SIDES = {
    "ours": "benchmarks.trainers:ours",
    "stock": "benchmarks.trainers:stock",
    "engine": "benchmarks.samplers:engine",
    "generate": "benchmarks.samplers:generate",
    "vllm": "benchmarks.samplers:vllm",
    "memory": "benchmarks.scoring:memory_worker",
}


class Channel:
    """The worker's end."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes where it cannot be taken for an answer

    def receive(self) -> dict[str, Any] | None:
        """The next request; None when there will be no more."""
        line = sys.stdin.readline()
        return json.loads(line) if line else None

    def send(self, **answer: Any) -> None:
        self._out.write(json.dumps(answer) + "\n")
        self._out.flush()


class Worker:
    """The parent's end: starts a side, and asks it. Sides start together: `wait` for all before the first is asked."""

    def __init__(self, side: str, size: Size, python: str = sys.executable, **options: Any) -> None:
        self.side = side
        command = [python, "-m", "benchmarks.worker", side, size.text(), json.dumps(options)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._ready = False

    def wait(self) -> None:
        """Until it is ready to be asked."""
        if not self._ready:
            self._answer()
            self._ready = True

    def ask(self, **request: Any) -> dict[str, Any]:
        self.wait()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.side}: ended with {self._process.wait()}; its own message stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()


def main(side: str, size: str, options: str) -> None:
    channel = Channel()
    module, _, name = SIDES[side].partition(":")
    getattr(importlib.import_module(module), name)(Size(**json.loads(size)), channel, **json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])

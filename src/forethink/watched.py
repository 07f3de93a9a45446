"""What a stage that is working has written so far, read piece by piece from its folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forethink.types import ForethinkError

Record = dict[str, Any]

TAIL = 1 << 18  # bytes at the end of a samples.jsonl looked at for the last completion
RATE = 20  # steps that the time left is reckoned from


class Log:
    """A growing ``.jsonl`` file read piece by piece; one that was cut (a resumed run) is read anew."""

    def __init__(self, path: Path, tail: int | None = None) -> None:
        self.path, self.tail, self.at, self.node = path, tail, 0, 0

    def new(self) -> tuple[list[Record], bool]:
        """The whole lines written since the last call, and whether all read before is to be forgotten."""
        try:
            with open(self.path, "rb") as file:
                status = self.path.stat()
                again = status.st_size < self.at or (self.at > 0 and status.st_ino != self.node)
                self.node = status.st_ino
                skip = 0
                if again or self.at == 0:
                    skip = max(0, status.st_size - self.tail) if self.tail is not None else 0
                    self.at = skip
                file.seek(self.at)
                data = file.read()
        except FileNotFoundError:
            return [], self.at > 0
        whole = data[: data.rfind(b"\n") + 1]
        self.at += len(whole)
        lines = whole.splitlines()[1 if skip else 0 :]  # the first of a tail is torn
        found = []
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found += [record] if isinstance(record, dict) else []
        return found, again


def _state(folder: Path) -> Record:
    try:
        found = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForethinkError(f"{folder / 'run.json'}: cannot be read ({error}).") from None
    if not isinstance(found, dict):
        raise ForethinkError(f"{folder / 'run.json'}: holds no table.")
    return found


def current(run: Path) -> Path:
    """The stage to look at: one that is running, else the last one; of several the one started last."""
    if (run / "run.json").is_file():
        return run
    folders = [p.parent for p in run.rglob("run.json") if not any(q.startswith(".") for q in p.relative_to(run).parts)]
    if not folders:
        raise ForethinkError(
            f"{run}: holds no stage yet; name the folder given as --run, once a stage has been started there."
        )
    states = [(_state(folder), folder) for folder in folders]
    return max(states, key=lambda own: (own[0].get("status") == "running", str(own[0].get("created")), str(own[1])))[1]


@dataclass
class Watched:
    """What is known of a stage: grows with every `look`."""

    folder: Path
    state: Record = field(default_factory=dict)
    steps: dict[int, Record] = field(default_factory=dict)
    last: Record | None = None
    outcomes: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._metrics = Log(self.folder / "metrics.jsonl")
        self.state = _state(self.folder)
        # Training's shares are in its metrics; those of an evaluation are counted here.
        self.counts = self.state.get("stage") == "eval"
        self._samples = Log(self.folder / "samples.jsonl", None if self.counts else TAIL)

    def look(self) -> bool:
        """Read what is new; whether there was anything."""
        state = _state(self.folder)
        changed = (state.get("status"), state.get("warnings")) != (
            self.state.get("status"),
            self.state.get("warnings"),
        )
        self.state = state
        lines, again = self._metrics.new()
        if again:
            self.steps.clear()
        for number, line in enumerate(lines):
            step = line.get("step", line.get("shard", len(self.steps) + number))
            if isinstance(step, int):  # two lines of one step, its probe and its loss, are one
                self.steps[step] = self.steps.get(step, {}) | line
        samples, again = self._samples.new()
        if again:
            self.outcomes.clear()
        if samples:
            self.last = samples[-1]
            if self.counts:
                self.outcomes.update(str(sample.get("outcome")) for sample in samples)
        return bool(lines or samples or changed)

    @property
    def done(self) -> bool:
        """Whether the stage says that it is finished."""
        return self.state.get("status") == "done"

    @property
    def step(self) -> int | None:
        """The newest step."""
        return max(self.steps) if self.steps else None

    @property
    def total(self) -> int | None:
        """Steps in all, where the stage's own settings tell; a warm start may end before."""
        own = self._own()
        if isinstance(own.get("steps"), int):
            return int(own["steps"])
        if isinstance(own.get("examples"), int) and isinstance(own.get("batch"), int):
            return max(1, int(own["examples"]) // int(own["batch"]))
        return None

    def _own(self) -> Record:
        settings = self.state.get("settings")
        own = settings.get(self.state.get("stage")) if isinstance(settings, dict) else None
        return own if isinstance(own, dict) else {}

    def column(self, name: str) -> list[float]:
        """The finite values of a column, in step order."""
        values = [self.steps[step].get(name) for step in sorted(self.steps)]
        return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]

    def left(self) -> float | None:
        """Seconds to the last step, at the speed of the last ones."""
        known = [(s, self.steps[s]["seconds"]) for s in sorted(self.steps) if "seconds" in self.steps[s]][-RATE:]
        if self.total is None or self.step is None or not known:
            return None
        first = (0, 0.0) if len(known) < 2 else known[0]
        passed = known[-1][0] - first[0]
        return (self.total - self.step) * (known[-1][1] - first[1]) / passed if passed > 0 else None

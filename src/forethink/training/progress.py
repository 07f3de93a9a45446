"""What a training run says while it runs: metrics.jsonl, a line in the terminal, alarms."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

from transformers import TrainerCallback

from forethink.rundir import RunDir, read_jsonl

WINDOW = 10  # steps that the degenerate share is averaged over
SAME_THOUGHTS = 0.1  # distinct thoughts below this share: the policy says one thing
SHRUNK = 1 / 3  # thoughts shorter than this part of their first length
LINE_EVERY = 10.0  # seconds between lines where nobody watches


class Progress(TrainerCallback):
    """Writes every log to the run folder and watches it.

    Args:
        run: the run folder; None on every process but the first.
        alarm: share of degenerate groups, averaged over 10 steps, above which a warning is raised.
    """

    def __init__(self, run: RunDir | None, alarm: float) -> None:
        self.run, self.alarm = run, alarm
        self._degenerate: deque[float] = deque(maxlen=WINDOW)
        self._first_length: float | None = None
        self._bar = Bar()
        self._printed = 0.0
        if run is not None:
            for record in read_jsonl(run.path / "metrics.jsonl"):  # a resumed run goes on watching
                self._see(record)

    def _see(self, record: dict[str, Any]) -> None:
        self._degenerate.append(record["groups/degenerate"])
        if self._first_length is None:
            self._first_length = record["thought_characters"]

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        if self.run is None or not logs or "groups/degenerate" not in logs:
            return
        record = {"step": state.global_step, **{key: value for key, value in logs.items() if key != "epoch"}}
        self.run.append("metrics", [record])
        self._see(record)
        self._watch(self.run, record)
        self._show(record, state.max_steps)

    def _watch(self, run: RunDir, record: dict[str, Any]) -> None:
        share = sum(self._degenerate) / len(self._degenerate)
        length, first = record["thought_characters"], self._first_length
        if len(self._degenerate) == WINDOW and share > self.alarm:
            why = f"{share:.0%} {{}}: all right or all wrong, over {WINDOW} steps"
            remedy = "choose other positions (problems.selector) or a longer warm start"
            self._warn(run, record["step"], "of groups give no gradient", f"{why}; {remedy}")
        if record["distinct_thoughts"] < SAME_THOUGHTS:
            self._warn(run, record["step"], "of thoughts are distinct", f"only {record['distinct_thoughts']:.0%} {{}}")
        if first and length < SHRUNK * first:
            self._warn(
                run, record["step"], "thoughts have shrunk", f"{{}} from {first:.0f} to {length:.0f} characters"
            )

    @staticmethod
    def _warn(run: RunDir, step: int, what: str, message: str) -> None:
        """Once a run, resumed or not."""
        if not any(what in told for told in run.record["warnings"]):
            run.warn(f"step {step}: {message.format(what)}")

    def _show(self, record: dict[str, Any], steps: int) -> None:
        line = (
            f"reward {record['reward']:.3f}  right {record['accuracy']:.1%}  signal {record['groups/signal']:.0%}  "
            f"thought {record['thought_characters']:.0f}  {record['step_seconds']:.1f} s"
        )
        if sys.stderr.isatty():
            self._bar.draw(record["step"] / steps, f"{record['step']}/{steps}  {line}")
        elif record["step"] in (1, steps) or time.monotonic() - self._printed >= LINE_EVERY:
            self._printed = time.monotonic()
            print(f"step {record['step']}/{steps}  {line}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        self._bar.close()


class Bar:
    """A bar on a terminal's stderr, with a line beside it."""

    def __init__(self) -> None:
        self._bar: Any = None

    def draw(self, share: float, line: str) -> None:
        """Show how much is done, from 0 to 1, and the line."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        if self._bar is None:
            columns = (BarColumn(20), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._bar.add_task("", total=1.0)
        self._bar.update(self._bar.task_ids[0], completed=share, description=line)

    def close(self) -> None:
        """Give the terminal back."""
        if self._bar is not None:
            self._bar.stop()

"""The look at a running stage: what it reads, that it ends, and that a terminal obeys nothing in it."""

from __future__ import annotations

import base64
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from forethink import cli
from forethink.config import load_config
from forethink.rundir import RunDir
from forethink.watch import line, printable, sparkline
from forethink.watched import Log, Watched, current

COMMAND = [sys.executable, "-m", "forethink", "watch"]


def stage(top: Path, name: str = "train", kind: str = "train") -> RunDir:
    return RunDir(top / name, kind, load_config(None, [f"run={top}", "train.steps=10"]), ("train", "warmup"), {})


def metric(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "reward": step / 10, "accuracy": step / 10, "outcome/wrong": 1 - step / 10,
            "groups/degenerate": 0.5, "thought_characters": 40.0, "entropy": 0.7, "step_seconds": 2.0,
            "seconds": 2.0 * step, **more}  # fmt: skip


def sample(thought: str, outcome: str = "right") -> dict[str, Any]:
    return {"step": 1, "problem": "d:1", "sample": 0, "thought": thought, "status": "boxed", "outcome": outcome,
            "prediction": base64.b64encode(b" it").decode(), "reward": 1.0}  # fmt: skip


def test_figures_time_left_and_the_newest_step(tmp_path: Path) -> None:
    run = stage(tmp_path)
    run.append("metrics", [metric(step) for step in range(1, 5)])
    one = Watched(current(tmp_path))
    assert one.look() and not one.look()
    assert (one.step, one.total, one.left()) == (4, 10, 12.0)
    text = line(one)
    assert "step 4/10" in text and "reward 0.400" in text and "0:00:08 so far" in text and "0:00:12 left" in text
    run.append("metrics", [metric(5)])
    assert one.look() and one.step == 5


def test_a_warm_start_has_probes_between_its_losses(tmp_path: Path) -> None:
    run = stage(tmp_path, "warmup", "warmup")
    run.append(
        "metrics",
        [{"step": 0, "probe/box": 0.01}, {"step": 5, "loss": 2.5, "seconds": 9.0}, {"step": 5, "probe/box": 0.4}],
    )
    one = Watched(current(tmp_path))
    one.look()
    assert one.steps[5] == {"step": 5, "loss": 2.5, "seconds": 9.0, "probe/box": 0.4}
    assert "boxed 40%" in line(one) and "loss 2.5000" in line(one)


def test_an_evaluation_counts_its_completions(tmp_path: Path) -> None:
    run = stage(tmp_path, "after", "eval")
    run.append("samples", [sample("a"), sample("b", "wrong"), sample("c", "wrong"), sample("d", "cut_off")])
    one = Watched(current(tmp_path))
    one.look()
    assert "completions 4  wrong 50.0%  right 25.0%  cut off 25.0%" in line(one)


def test_the_stage_that_runs_is_watched(tmp_path: Path) -> None:
    stage(tmp_path, "score", "score").finish()
    assert current(tmp_path) == tmp_path / "score"
    running = stage(tmp_path)
    stage(tmp_path, "zz-later", "eval").finish()
    assert current(tmp_path) == running.path and current(running.path) == running.path


def test_a_log_that_is_cut_on_resume_is_read_anew(tmp_path: Path) -> None:
    run = stage(tmp_path)
    run.append("metrics", [metric(step) for step in range(1, 7)])
    one = Watched(run.path)
    one.look()
    run.truncate("metrics", lambda record: record["step"] <= 3)
    one.look()
    assert one.step == 3
    with open(run.path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "rew')  # torn: its writer is at work
    assert not one.look() and one.step == 3


def test_only_the_end_of_a_long_log_is_read(tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(sample(f"{i}")) + "\n" for i in range(500)), encoding="utf-8")
    log = Log(file, tail=1000)
    found, _ = log.new()
    assert 0 < len(found) < 8 and found[-1]["thought"] == "499"
    assert log.new() == ([], False)


def test_no_character_of_a_model_reaches_the_terminal_raw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b[2J\x1b]0;owned\x07 \u202eback\u2066 \x00\x9b31m [red]markup[/red] \ud800 " + "x" * 100_000
    run = stage(tmp_path)
    run.append("metrics", [metric(1)])
    run.append("samples", [sample(hostile)])
    run.warn("a warning with \x1b[31m red")
    capsys.readouterr()
    assert cli.main(["watch", str(tmp_path), "--once"]) == 0
    shown = capsys.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in shown)
    assert r"\x1b[2J\x1b]0;owned\x07 \u202eback" in shown.replace("\n", "") and "[red]markup" in shown
    assert r"a warning with \x1b[31m red" in shown and len(shown) < 5000


def test_bars_and_escapes() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([1.0] * 3) == "▁▁▁" and sparkline([]) == "" and len(sparkline(range(1000), 40)) == 40
    assert printable("a\nb\x1b", 10) == r"a↵b\x1b" and printable("abcdef", 4) == "abc…"


def test_mistakes_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["watch", str(tmp_path)]) == 2
    assert "holds no stage yet" in capsys.readouterr().err
    stage(tmp_path)
    assert cli.main(["watch", str(tmp_path), "--interval", "0"]) == 2


def test_without_a_terminal_every_new_step_is_a_line_until_the_end(tmp_path: Path) -> None:
    run = stage(tmp_path)
    run.append("metrics", [metric(1)])
    process = subprocess.Popen([*COMMAND, str(tmp_path), "--interval", "0.05"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    shown = [process.stdout.readline()]
    for step in (2, 3):
        run.append("metrics", [metric(step)])
        shown.append(process.stdout.readline())
    run.finish()
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert ["step 1/10" in shown[0], "step 2/10" in shown[1], "step 3/10" in shown[2]] == [True] * 3
    assert "train, done" in rest


def test_in_a_terminal_it_is_drawn_and_ctrl_c_ends_it_quietly(tmp_path: Path) -> None:
    run = stage(tmp_path)
    run.append("metrics", [metric(step) for step in range(1, 9)])
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path), "--interval", "0.1"], stdin=child, stdout=child, stderr=child, env=environment
    )
    os.close(child)
    shown = bytearray()

    def read() -> None:
        while select.select([parent], [], [], 60)[0]:
            try:
                data = os.read(parent, 65536)
            except OSError:
                return
            if not data:
                return
            shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    deadline = time.monotonic() + 60
    while "▁".encode() not in shown and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 130
    reader.join(timeout=60)
    os.close(parent)
    text = shown.decode("utf-8", "replace")
    assert "step 8/10" in text and "reward" in text
    assert "Traceback" not in text and "forethink: stopped" not in text

"""Run folders: whole files whatever happens, resuming, and refusing another configuration's folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forethink.config import Config, load_config
from forethink.rundir import RunDir, hash_file, hash_inputs, read_jsonl, write_atomic
from forethink.types import ForethinkError


def _run(path: Path, *overrides: str, inputs: dict[str, str] | None = None) -> RunDir:
    return RunDir(path, "score", load_config(None, overrides), ("corpus", "score"), inputs)


def _record(path: Path) -> dict:
    return json.loads((path / "run.json").read_text())


def test_write_atomic(tmp_path: Path):
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomic(path, b"\x00\xff")
    write_atomic(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask  # others may read it


def test_write_that_fails_says_so_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ForethinkError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "below", "y")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ForethinkError, match="cannot be written"):
        write_atomic(tmp_path / "folder", "y")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


_WORKER = """
import sys, time
from forethink.config import load_config
from forethink.rundir import RunDir
run = RunDir(sys.argv[1], "score", load_config(), ("corpus", "score"))
run.append("metrics", [{"step": 1}])
print("at work", flush=True)
time.sleep(600)
"""


def test_two_processes_do_not_write_to_one_folder(tmp_path: Path):
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", _WORKER, folder], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == "at work\n"
        with pytest.raises(ForethinkError, match="run: another process is at work in this folder"):
            _run(folder)
        assert _run(tmp_path / "other").record["status"] == "running"
        worker.kill()  # it cannot clean up
    again = _run(folder)
    assert again.record["resumed"] == 1 and [line["step"] for line in read_jsonl(folder / "metrics.jsonl")] == [1]
    assert _run(folder).record["resumed"] == 2  # this process may call the stage again
    again.finish()
    assert sorted(path.name for path in folder.iterdir()) == ["config.toml", "metrics.jsonl", "run.json"]
    assert _run(folder).done


_WRITER = """
import sys
from pathlib import Path
from forethink.rundir import write_atomic
path, n = Path(sys.argv[1]), 0
while True:
    write_atomic(path, chr(97 + n % 26) * 300_000)
    n += 1
"""


def test_killed_writer_leaves_a_whole_file(tmp_path: Path):
    path = tmp_path / "file"
    for pause in (0.0, 0.011, 0.023):
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)])
        path.unlink(missing_ok=True)
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        text = path.read_text()
        assert len(text) == 300_000
        assert len(set(text)) == 1


def test_record_of_a_run(tmp_path: Path):
    run = _run(tmp_path / "run", "seed=5", inputs={"a.txt": "00"})
    run.warn("too hot")
    run.warn("too hot")
    run.dropped({"empty text": 2})
    record = _record(run.path)
    assert record["status"] == "running"
    assert record["settings"]["seed"] == 5
    assert set(record["settings"]) == {"stage", "seed", "corpus", "score"}
    assert record["inputs"] == {"a.txt": "00"}
    assert record["warnings"] == ["too hot"]
    assert record["versions"]["python"].startswith("3.")
    assert json.loads((run.path / "dropped.json").read_text()) == {"empty text": 2}
    assert load_config(run.path / "config.toml") == load_config(None, ["seed=5"])
    run.finish({"documents": 3})
    assert _record(run.path)["result"] == {"documents": 3}


def test_resume_goes_on(tmp_path: Path):
    run = _run(tmp_path / "run")
    run.warn("too hot")
    run.append("metrics", [{"step": 0}])
    created = _record(run.path)["created"]
    again = _run(tmp_path / "run")
    assert not again.done
    assert again.record["resumed"] == 1
    assert again.record["created"] == created
    assert again.record["warnings"] == ["too hot"]
    assert _run(tmp_path / "run").record["resumed"] == 2


def test_done_run_keeps_its_record(tmp_path: Path):
    run = _run(tmp_path / "run")
    run.append("metrics", [{"step": 0}])
    run.finish({"loss": 1.5})
    before = (run.path / "run.json").read_bytes()
    again = _run(tmp_path / "run")
    assert again.done
    assert again.record["result"] == {"loss": 1.5}
    assert (run.path / "run.json").read_bytes() == before


def test_folder_of_another_configuration_is_refused(tmp_path: Path):
    run = _run(tmp_path / "run", inputs={"a": "00", "b": "11"})
    run.append("metrics", [{"step": 0}])
    before = (run.path / "config.toml").read_bytes()
    for overrides, inputs, words in (
        (["score.window=512"], {"a": "00", "b": "11"}, r"score\.window was 1024, now 512"),
        (["seed=1"], {"a": "00", "b": "11"}, "seed was 0, now 1"),
        ([], {"a": "00", "b": "22"}, "inputs"),
        ([], {"a": "00"}, "inputs"),
    ):
        with pytest.raises(ForethinkError, match=words) as caught:
            _run(tmp_path / "run", *overrides, inputs=inputs)
        assert "another configuration" in str(caught.value)
    with pytest.raises(ForethinkError, match="stage was 'score', now 'train'"):
        RunDir(tmp_path / "run", "train", Config(), ("corpus", "score"), {"a": "00", "b": "11"})
    assert (run.path / "config.toml").read_bytes() == before
    # What the stage does not depend on may change, and so may an input's name.
    _run(tmp_path / "run", "train.steps=3", inputs={"moved/a": "00", "moved/b": "11"})


def test_a_run_of_an_earlier_version_goes_on(tmp_path: Path):
    """A key that its version did not know counts as its default; another value of it is another configuration."""
    run = _run(tmp_path / "run")
    run.append("metrics", [{"step": 0}])
    record = _record(run.path)
    del record["settings"]["score"]["top_k"]
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ForethinkError, match=r"score\.top_k was 16, now 8"):
        _run(tmp_path / "run", "score.top_k=8")
    _run(tmp_path / "run")
    record["settings"]["score"]["gone"] = 1  # a key that is no more may have mattered
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(ForethinkError, match=r"score\.gone was 1, now None"):
        _run(tmp_path / "run")


def test_run_that_made_nothing_yet_may_be_changed(tmp_path: Path):
    """A user who is told to lower a threshold must not be sent away from the folder of the failed attempt."""
    run = _run(tmp_path / "run", "score.window=512")
    run.dropped({"not selected": 9})
    again = _run(tmp_path / "run", "score.window=256")
    assert _record(again.path)["settings"]["score"]["window"] == 256
    again.append("metrics", [{"step": 0}])
    with pytest.raises(ForethinkError, match="another configuration"):
        _run(tmp_path / "run", "score.window=512")
    (tmp_path / "done").mkdir()
    _run(tmp_path / "done", "score.window=512").finish()
    with pytest.raises(ForethinkError, match="another configuration"):
        _run(tmp_path / "done")


def test_foreign_folder_is_refused_and_leftovers_are_not(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ForethinkError, match="not empty and no run folder"):
        _run(tmp_path / "mine")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / ".run.json.0a1b2c3d").write_text('{"st')  # killed while it wrote its first file
    assert _run(tmp_path / "killed").record["resumed"] == 0
    (tmp_path / "file").write_text("x")
    with pytest.raises(ForethinkError, match="no run folder"):
        _run(tmp_path / "file")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text('{"st')
    with pytest.raises(ForethinkError, match=r"run\.json: cannot be read"):
        _run(tmp_path / "broken")


def test_torn_line_is_passed_over_and_never_glued(tmp_path: Path):
    run = _run(tmp_path / "run")
    assert list(read_jsonl(run.path / "metrics.jsonl")) == []
    run.append("metrics", [{"step": 0}, {"step": 1, "text": "é\n\ud800"}])
    path = run.path / "metrics.jsonl"
    with open(path, "ab") as file:
        file.write(b'{"step": 2, "lo')
    assert [record["step"] for record in read_jsonl(path)] == [0, 1]
    run.append("metrics", [{"step": 2}])
    assert [record["step"] for record in read_jsonl(path)] == [0, 1, 2]
    path.write_bytes(b'{"step": 0')
    run.append("metrics", [{"step": 0}])
    assert path.read_bytes() == b'{"step": 0}\n'


def test_broken_line_in_the_middle_is_named(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 0}\n{"st\n{"step": 2}\n')
    with pytest.raises(ForethinkError, match="line 2 is not JSON"):
        list(read_jsonl(path))


def test_truncate_on_resume(tmp_path: Path):
    run = _run(tmp_path / "run")
    run.truncate("samples", lambda record: True)
    assert not (run.path / "samples.jsonl").exists()
    run.append("samples", [{"step": step, "x": 0.1 * step} for step in range(6)])
    whole = (run.path / "samples.jsonl").read_bytes()
    with open(run.path / "samples.jsonl", "ab") as file:
        file.write(b'{"step": 6')
    run.truncate("samples", lambda record: record["step"] < 4)
    kept = (run.path / "samples.jsonl").read_bytes()
    assert whole.startswith(kept)
    assert kept.count(b"\n") == 4


def test_append_to_a_full_disk_is_one_sentence(tmp_path: Path):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full on this system")
    run = _run(tmp_path / "run")
    (run.path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(ForethinkError, match="cannot be written"):
        run.append("metrics", [{"step": 0}])


def test_hashes(tmp_path: Path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two").write_bytes(b"2")
    (tmp_path / "one").write_bytes(b"")
    (tmp_path / ".hidden").write_bytes(b"x")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert hash_file(tmp_path / "one") == empty
    assert list(hash_inputs(tmp_path)) == [str(tmp_path / "b" / "two"), str(tmp_path / "one")]
    assert hash_inputs(tmp_path / "one") == {str(tmp_path / "one"): empty}

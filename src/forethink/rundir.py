"""A run folder: what was asked for, on what, with what, and what came of it.

Every stage writes one folder::

    run.json        command, configuration hash, git sha, versions, machine, input hashes, warnings, status, seconds
    config.toml     the resolved configuration, readable by `--config`
    dropped.json    what was left out, counted by reason
    metrics.jsonl   one line a step
    samples.jsonl   one line a completion, with its answer, outcome and reward

Writing is atomic (a temporary file, then a rename), so a run killed at any moment leaves whole files. The two
``.jsonl`` logs are appended line by line; on resume, lines after the checkpoint are cut off. While a process works in
the folder it holds a lock on ``.lock`` there, which the system drops when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import secrets
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from forethink.config import Config
from forethink.recipe import alike, completed, config_toml, first_difference
from forethink.types import ForethinkError

_PACKAGES = ("forethink", "torch", "transformers", "trl", "accelerate", "peft", "datasets", "vllm")


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a whole file or nothing: a reader never sees half of it.

    Raises:
        ForethinkError: the disk is full or the folder cannot be written.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"  # hidden: no reader takes it for a file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:  # not mkstemp, whose files nobody else may read
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise ForethinkError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder with run=…, "
            "then start again with the same command: what was finished is kept."
        ) from None


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_inputs(path: Path) -> dict[str, str]:
    """SHA-256 of a file, or of every file directly or deeper inside a folder (hidden ones apart), keyed by path."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    files = [f for f in files if f == path or not any(part.startswith(".") for part in f.relative_to(path).parts)]
    return {str(file): hash_file(file) for file in files}


def read_json(path: Path) -> dict[str, Any]:
    """The record in a JSON file of ours.

    Raises:
        ForethinkError: it cannot be read, or is no record.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ForethinkError(f"{path}: cannot be read ({error}); make this folder again.") from None
    if not isinstance(found, dict):
        raise ForethinkError(f"{path}: holds no record; make this folder again.")
    return found


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL log of ours. A torn last line (the writer was killed) is passed over."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError:
                raise ForethinkError(f"{path}: line {number} is not JSON; cut the file before it.") from None


def _git_sha() -> str | None:
    here = Path(__file__).parent
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class RunDir:
    """The folder of one stage's run.

    Args:
        path: the folder; made when absent.
        stage: the command's name.
        config: the resolved configuration.
        sections: the configuration sections this stage's results depend on; only these decide whether an existing
            folder belongs to the same configuration.
        inputs: input files with their hashes.

    Raises:
        ForethinkError: the folder belongs to another configuration or other inputs, or another process is at work in
            it.
    """

    def __init__(
        self,
        path: str | Path,
        stage: str,
        config: Config,
        sections: Iterable[str],
        inputs: Mapping[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        self.config = config
        data = config.model_dump(mode="json")
        own = {"stage": stage, "seed": config.seed, **{name: data[name] for name in sections}}
        self._started = time.monotonic()
        self.record: dict[str, Any] = {
            "stage": stage,
            "settings": own,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "git": _git_sha(),
            "versions": _versions(),
            "machine": {"system": platform.platform(), "cores": os.cpu_count()},
            "inputs": dict(inputs or {}),
            "warnings": [],
            "status": "running",
            "seconds": 0.0,
            "resumed": 0,
        }
        self._before = 0.0
        self._lock: FileLock | None = None
        self._continue_or_refuse()
        if not self.done:
            self._lock = self._locked()
            self._save()  # first: a folder is known by its run.json
            write_atomic(self.path / "config.toml", config_toml(config))

    def _locked(self) -> FileLock | None:
        """Hold the folder until the run is finished or the process ends: two writers would mix up their logs."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # One lock a path in a process: a stage that was interrupted may be called again.
            lock = FileLock(self.path.resolve() / ".lock", timeout=0, thread_local=False, is_singleton=True)
            lock.acquire()
        except Timeout:
            raise ForethinkError(
                f"{self.path}: another process is at work in this folder; wait for its end, or choose "
                "another folder with run=…."
            ) from None
        except (OSError, NotImplementedError):
            return None  # a file system without locks; one that cannot be written says so at the first file
        return lock

    def _continue_or_refuse(self) -> None:
        old_path = self.path / "run.json"
        if not old_path.exists():
            if self.path.exists() and (not self.path.is_dir() or self._contents()):
                raise ForethinkError(f"{self.path}: not empty and no run folder; choose another with run=….")
            return
        try:
            old = json.loads(old_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ForethinkError(f"{old_path}: cannot be read ({error}); choose another folder with run=….") from None
        if old.get("status") != "done" and self._contents() <= {"run.json", "config.toml", "dropped.json"}:
            return  # it ended before it made anything: there is nothing to mix up, so the configuration may change
        known, made_of = completed(old.get("settings") or {}, self.config), old.get("inputs") or {}
        settings, inputs = self.record["settings"], self.record["inputs"]
        # Inputs are compared by content: a moved or renamed file is still the same input.
        unchanged = sorted(inputs.values()) == sorted(made_of.values())
        for part, ours, theirs, same in (
            ("settings", settings, known, alike(known, settings)), ("inputs", inputs, made_of, unchanged)
        ):  # fmt: skip
            if not same:
                changed = first_difference(theirs, ours)
                raise ForethinkError(
                    f"{self.path}: belongs to another configuration ({part}: {changed}); choose another folder with "
                    "run=…, or remove this one."
                )
        self._before = float(old.get("seconds", 0.0))
        if old.get("status") == "done":
            self.record = old  # the record says what made the results, not who looked at them later
            return
        for key in ("created", "warnings"):
            if key in old:
                self.record[key] = old[key]
        self.record["resumed"] = int(old.get("resumed", 0)) + 1

    def _contents(self) -> set[str]:
        """Names of the folder's files, less hidden ones: a killed writer may leave its temporary file."""
        return {path.name for path in self.path.iterdir() if not path.name.startswith(".")}

    def _save(self) -> None:
        self.record["seconds"] = round(self._before + time.monotonic() - self._started, 3)
        write_atomic(self.path / "run.json", json.dumps(self.record, indent=1, ensure_ascii=False) + "\n")

    @property
    def done(self) -> bool:
        """True where this very run was finished before."""
        return self.record["status"] == "done"

    def warn(self, message: str) -> None:
        """Raise a warning: printed once, and kept in run.json for the report."""
        if message not in self.record["warnings"]:
            self.record["warnings"].append(message)
            print(f"warning: {message}", file=sys.stderr)
            self._save()

    def dropped(self, counts: Mapping[str, int]) -> None:
        """Write what was left out, by reason. An empty table is written too: nothing dropped is a finding."""
        write_atomic(self.path / "dropped.json", json.dumps(dict(Counter(counts)), indent=1) + "\n")

    def append(self, name: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records to ``<name>.jsonl`` and flush them to the disk's cache."""
        path = self.path / f"{name}.jsonl"
        try:
            _cut_torn_line(path)
            with open(path, "a", encoding="utf-8") as file:
                for record in records:
                    file.write(json.dumps(record, ensure_ascii=True) + "\n")
        except OSError as error:
            raise ForethinkError(
                f"{path}: cannot be written ({error.strerror}); free some space and start again with the same "
                "command: what was finished is kept."
            ) from None

    def truncate(self, name: str, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Keep only the records of ``<name>.jsonl`` that ``keep`` accepts (on resume: up to the checkpoint)."""
        path = self.path / f"{name}.jsonl"
        if path.exists():
            kept = [json.dumps(record, ensure_ascii=True) + "\n" for record in read_jsonl(path) if keep(record)]
            write_atomic(path, "".join(kept))

    def finish(self, result: Mapping[str, Any] | None = None) -> None:
        """Mark the run as done, with its result."""
        self.record["status"] = "done"
        if result is not None:
            self.record["result"] = dict(result)
        self._save()
        if self._lock is not None:
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink(missing_ok=True)
            self._lock.release(force=True)


def _cut_torn_line(path: Path) -> None:
    """Cut a last line without its end, which a killed writer left: the next record must not be glued to it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.seek(0)
            file.truncate(sum(len(line) for line in file.readlines() if line.endswith(b"\n")))

"""The examples of docs/extending.md, run as they stand: a reward, a template and a selector outside the package."""

from __future__ import annotations

import base64
import json
import re
import shlex
from pathlib import Path

import pytest

from forethink import cli
from forethink.records import read_problems
from forethink.templates import load_template

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILE = re.compile(r"^`([\w.]+)`:\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Only what makes it quick: a tiny model, few tokens, one step.
QUICK = [
    "model.dtype=float32", "model.device=cpu", "score.short_context=2", "problems.min_context=4", "rollout.group=2",
    "rollout.max_tokens=4", "train.steps=1", "train.problems=2", "train.precision=fp32", "train.refill=0",
]  # fmt: skip


def test_the_examples_work_from_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama, smollm2_tokenizer
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_llama.save_pretrained("policy")
    smollm2_tokenizer.save_pretrained("policy")
    Path("notes.txt").write_text(
        "".join(f"In the year {1900 + i}, there were {7 * i} ships at sea.\n" for i in range(9))
    )
    page = PAGE.read_text(encoding="utf-8")
    files = dict(FILE.findall(page))
    assert set(files) == {"my_reward.py", "my_template.toml", "my_selector.py"}
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    commands = [shlex.split(line) for block in SHELL.findall(page) for line in block.splitlines()]
    assert [command[1] for command in commands] == ["score", "problems", "train", "rescore"]
    for program, *arguments in commands:
        assert program == "forethink"
        own = ["policy" if argument == "smollm2" else argument for argument in arguments]
        assert cli.main([*own, *QUICK]) == 0

    problems = {problem.id: problem for problem in read_problems(Path("runs/mine/problems"))}
    assert problems and all(problem.context[-1:].isdigit() for problem in problems.values())
    template = load_template("my_template.toml")
    for place in ("train", "rescore/train-my_reward.py-near"):
        lines = Path("runs/mine", place, "samples.jsonl").read_text().splitlines()
        samples = [json.loads(line) for line in lines]
        assert len(samples) == 4  # one step of two problems, in groups of two
        for sample in samples:
            problem = problems[sample["problem"]]
            prompt = template.render(problem, smollm2_tokenizer)
            assert sample["prompt_tokens"] == len(prompt)
            assert "You finish other people's sentences." in smollm2_tokenizer.decode(prompt)
            assert sample["reward"] == expected(sample, problem.next_token)


def expected(sample: dict[str, object], true: bytes) -> float:
    """The example's reward, worked out anew from the saved line."""
    prediction = base64.b64decode(str(sample["prediction"]))
    if sample["status"] != "boxed":
        return -0.1
    if prediction == true:
        return 1.0
    return 0.5 * len(prediction) / len(true) if true.startswith(prediction) else 0.0

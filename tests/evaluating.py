"""What the tests of evaluation share: problems of a few texts, a run with them, scripted answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forethink.config import Config, load_config
from forethink.models import fingerprint
from forethink.problems import write_problems
from forethink.rollout.scripted import ScriptedEngine
from forethink.templates import box_closed
from forethink.tokens import encode_document
from forethink.types import Problem

ENTROPIES = (0.3, 0.7, 1.2, 1.8)
TEXTS = [
    f"Chapter {i}. The {animal} went to the {place} and saw that nothing there had changed since the spring of "
    f"19{i}7; it drank some water, looked twice over its shoulder, and then slowly walked back along the narrow path, "
    "past the mill and the two old bridges, until the light was gone and the stars stood above the village."
    for i, (animal, place) in enumerate([("fox", "river"), ("heron", "pond"), ("goat", "hill"), ("cat", "barn")])
]


def make_problems(tokenizer, max_context: int = 400, step: int = 3, split: str = "validation") -> list[Problem]:
    problems = []
    for number, text in enumerate(TEXTS):
        ids, ends = encode_document(tokenizer, text)
        for count, t in enumerate(range(8, len(ids) - 4, step)):
            first = max(0, t - max_context)
            start = ends[t - 1]
            problems.append(
                Problem(
                    id=f"d{number}:{t}", document=f"d{number}", index=t, split=split,
                    context=text.encode()[ends[first - 1] if first else 0 : start], context_ids=tuple(ids[first:t]),
                    target=text.encode()[start : ends[t + 3]], target_ids=tuple(ids[t : t + 4]),
                    token_ends=tuple(end - start for end in ends[t : t + 4]), entropy=ENTROPIES[count % 4],
                    entropy_raw=1.0, entropy_full=1.0, logprob=-1.0, argmax_bytes=b" the",
                )
            )  # fmt: skip
    return problems


@pytest.fixture(scope="session")
def model_folder(tiny_llama, smollm2_tokenizer, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama.save_pretrained(folder)
    smollm2_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def setting(model_folder, smollm2_tokenizer, tmp_path):
    """A run with problems, and a function that makes its configuration."""
    problems = make_problems(smollm2_tokenizer)
    metadata = {"fingerprint": fingerprint(smollm2_tokenizer), "proxy": "the-proxy"}
    folder = tmp_path / "run" / "problems"
    write_problems(folder / "train.parquet", [], metadata)
    write_problems(folder / "validation.parquet", problems, metadata)

    def config(**keys: object) -> Config:
        base = {
            "run": str(tmp_path / "run"), "model.name": str(model_folder), "model.dtype": "float32",
            "model.device": "cpu", "rollout.max_tokens": 8, "rollout.batch": 8, "eval.bootstrap": 200,
        }  # fmt: skip
        given = {key.replace("__", "."): value for key, value in keys.items()}
        return load_config(None, [f"{key}={json.dumps(value)}" for key, value in {**base, **given}.items()])

    return config, {problem.id: problem for problem in problems}


def scripted(answers, tokenizer, group: int) -> ScriptedEngine:
    return ScriptedEngine(
        answers, tokenizer, group=group, max_tokens=24, stop=lambda text: box_closed(text, thought_open=False)
    )


def positions_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "positions.jsonl").read_text().splitlines()]

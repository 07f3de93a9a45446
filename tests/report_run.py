"""A run folder of real text and made-up figures, in the stages' own formats and as large as a demonstration's.

CPython's documentation topics are the documents. Six checkpoints are evaluated on the same positions, and their
accuracy follows a law, so that scaling curves, paired differences, patterns and the collapse watch have something to
show.
``python tests/report_run.py DIR`` writes one to look at.
"""

from __future__ import annotations

import base64
import json
import pydoc_data.topics
import random
import re
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from forethink.config import load_config
from forethink.evaluate.tables import tabulate
from forethink.records import write_problems, write_scored
from forethink.rundir import RunDir, write_atomic
from forethink.types import Problem, ScoredDocument

THRESHOLDS = (0.5, 1.0, 1.5)
STEPS = (6, 12, 24, 48, 80, 120)
OPENINGS = (
    "The text ends with", "We have just read", "Looking back at the sentence, it says", "Alternatively, after",
    "The last words are", "Probably the list goes on after",
)  # fmt: skip


def document(name: str, text: str, rng: random.Random) -> ScoredDocument:
    pieces = [piece.encode() for piece in re.findall(r" ?\w{1,9}|\n+| +|[^\w\s]", text)]
    ends = [sum(map(len, pieces[: i + 1])) for i in range(len(pieces))]
    ids = [zlib.crc32(piece) % 50_000 for piece in pieces]
    entropy = [float("nan"), *(rng.gammavariate(1.1, 0.75) for _ in ids[1:])]
    logprob = [float("nan"), *(-rng.expovariate(1.0) for _ in ids[1:])]
    argmax = [-1, *(own if rng.random() < 0.5 else rng.choice(ids) for own in ids[1:])]
    return ScoredDocument(
        name, b"".join(pieces), ids, ends, entropy, entropy, entropy, argmax, logprob, [False] * len(ids)
    )


def problems_of(one: ScoredDocument, split: str, count: int, rng: random.Random) -> list[Problem]:
    hard = [i for i in range(8, len(one.token_ids) - 4) if one.entropy[i] > 0.5]
    made = []
    for index in sorted(rng.sample(hard, min(count, len(hard)))):
        start = one.byte_ends[index - 1]
        after = one.byte_ends[index : index + 12]
        made.append(Problem(
            f"{one.id}:{index}", one.id, index, split, one.text[:start], tuple(one.token_ids[:index]),
            one.text[start : after[-1]], tuple(one.token_ids[index : index + 12]), tuple(end - start for end in after),
            one.entropy[index], one.entropy[index], one.entropy[index] * 1.4, one.logprob[index], b" and",
        ))  # fmt: skip
    return made


def first(problem: Problem) -> bytes:
    return problem.target[: problem.token_ends[0]]


def completion(problem: Problem, number: int, right: float, step: int, rng: random.Random) -> dict[str, Any]:
    """A line of samples.jsonl; thoughts grow more alike with the steps."""
    ending = problem.context.decode("utf-8", "replace")[-24:]
    opening = OPENINGS[min(len(OPENINGS) - 1, int(rng.random() ** (1 + step / 40) * len(OPENINGS)))]
    hit = rng.random() < right
    answer = first(problem) if hit else rng.choice([b" the", b" a", b" and", b"\n", b" of", b" <b>"])
    hit = hit or answer == first(problem)
    boxed = hit or rng.random() < 0.93
    thought = f"{opening} “{ending}”.\nThe next piece is probably {answer.decode()!r}, or something close to it.\n"
    text = thought + (f"\\boxed{{{answer.decode()}}}" if boxed else "so it goes on and on")
    outcome = "right" if hit else "wrong" if boxed else "cut_off"
    return {
        "step": step, "problem": problem.id, "sample": number, "text": text,
        "bytes": base64.b64encode(text.encode()).decode(), "prompt_tokens": 160, "tokens": len(text) // 4,
        "finish": "stop" if boxed else "length", "status": "boxed" if boxed else "cut_off",
        "prediction": base64.b64encode(answer if boxed else b"").decode(), "thought": thought,
        "outcome": outcome, "reward": float(hit),
    }  # fmt: skip


def stage(top: Path, name: str, kind: str, result: Mapping[str, Any], done: bool = True, warning: str = "") -> Path:
    recipe = [f"run={top}", "train.steps=120", "train.problems=8"]
    run = RunDir(
        top / name, kind, load_config(None, recipe), ("corpus", "model", "train"), {"corpus.jsonl": "5e" * 32}
    )
    run.record["created"] = f"2026-01-01T{len(list(top.rglob('run.json'))):02}:00:00Z"  # a stage an hour
    run.dropped({"entropy not above 0.5": 4012, "not drawn": 118})
    if warning:
        run.warn(warning)
    if done:
        run.finish(result)
    return run.path


def lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))


def evaluation(top: Path, name: str, model: str, chosen: Sequence[Problem], right: float, samples: int) -> None:
    """One evaluation; a position is as hard in every one of them."""
    rng = random.Random(name)
    found, positions = [], []
    for problem in chosen:
        own = random.Random(problem.id).random()
        share = min(0.97, max(0.02, right + 0.5 * (own - 0.5) - 0.1 * (problem.entropy - 1)))
        group = [completion(problem, i, share, 0, rng) for i in range(samples)]
        found += group
        plain = own > 0.55
        top5 = [
            (first(problem) if plain else b" and", 0.41),
            (b" the", 0.22),
            (b"\n", 0.09),
            (b" of", 0.05),
            (b",", 0.03),
        ]
        bands = [low for low in THRESHOLDS if problem.entropy > low]
        positions.append({
            "problem": problem.id, "document": problem.document, "index": problem.index, "entropy": problem.entropy,
            "plain": plain, "argmax": base64.b64encode(top5[0][0]).decode(), "logprob": -0.9, "own_entropy": 2.0,
            "top": [[base64.b64encode(token).decode(), share] for token, share in top5], "inexpressible": None,
            "samples": samples,
            **{k: sum(c["outcome"] == k for c in group) for k in ("right", "wrong", "missing", "cut_off")},
            "boxed": sum(c["status"] == "boxed" for c in group), "agree": samples // 3, "stripped": 0,
            "tokens": sum(c["tokens"] for c in group),
            "splits": ["easy", "medium", "hard"][: len(bands)],
            "band": ("0.5–1.0", "1.0–1.5", "> 1.5")[len(bands) - 1],
        })  # fmt: skip
    result = {
        "model": {"name": model, "adapter": None}, "problems": {"file": ""}, "template": "v0", "temperature": 0.8,
        "max_tokens": 48, "samples": samples, "thresholds": list(THRESHOLDS), "per_split": False,
        "documents": len({p.document for p in chosen}), "perplexity": 18.4, "context_tokens": 21_000,
        "rows": tabulate(positions, THRESHOLDS, samples, 200, 0), "against": [],
    }  # fmt: skip
    folder = stage(top, name, "eval", result)
    lines(folder / "samples.jsonl", found)
    lines(folder / "positions.jsonl", positions)
    write_atomic(folder / "eval.json", json.dumps(result))


def training(top: Path, chosen: Sequence[Problem], name: str, kind: str, done: bool, gain: float) -> None:
    rng = random.Random(f"{name}{gain}")
    warning = "step 31: 84% of groups give no gradient: all right or all wrong, over 10 steps"
    folder = stage(top, name, kind, {"steps": 120}, done, warning if kind == "train" else "")
    metrics, found = [], []
    for step in range(1, STEPS[-1] + 1):
        level = 0.12 + gain * (1 - (1 + step / 10) ** -0.6) + rng.gauss(0, 0.02)
        record = {"step": step, "loss": rng.gauss(0, 0.02), "seconds": 31.0 * step, "step_seconds": rng.gauss(31, 2),
                  "flops/total": 2.1e14 * step, "tokens/update": 5100 * step}  # fmt: skip
        if kind == "train":
            record |= {
                "reward": level, "accuracy": level, "outcome/right": level, "outcome/cut_off": 0.03,
                "outcome/missing": 0.05, "outcome/wrong": 0.92 - level, "groups/degenerate": 0.8 - level,
                "groups/all_right": level / 4, "groups/all_wrong": 0.8 - 1.25 * level, "groups/signal": 0.2 + level,
                "thought_characters": 96 - step / 6 + rng.gauss(0, 3), "completion_tokens": 24.0,
                "distinct_thoughts": 0.9 - step / 400,
                "entropy": 0.9 * 0.995**step + rng.gauss(0, 0.02), "tokens/generated": 1540 * step,
                "flops/rollout": 0.6e14 * step, "flops/update": 1.2e14 * step, "flops/scores": 0.3e14 * step,
            }  # fmt: skip
            for problem in rng.sample(list(chosen), 4):
                found += [completion(problem, i, level, step, rng) for i in range(4)]
        metrics.append(record)
    lines(folder / "metrics.jsonl", metrics)
    if found:
        lines(folder / "samples.jsonl", found)


def write_large(top: Path, documents: int = 14, gain: float = 0.5, done: bool = True, samples: int = 4) -> Path:
    """A whole run below ``top``: score, problems, warm start's evaluation, training, six evaluated checkpoints."""
    rng = random.Random(0)
    names = sorted(pydoc_data.topics.topics, key=lambda name: abs(len(pydoc_data.topics.topics[name]) - 3500))
    made = [document(name, pydoc_data.topics.topics[name].strip(), rng) for name in names[:documents]]
    write_scored(stage(top, "score", "score", {"documents": documents}) / "shards" / "00000.parquet", made, {})
    held = [p for one in made[: documents // 2] for p in problems_of(one, "validation", 24, rng)]
    train = [p for one in made[documents // 2 :] for p in problems_of(one, "train", 24, rng)]
    folder = stage(top, "problems", "problems", {"problems": len(held) + len(train)})
    write_problems(folder / "validation.parquet", held, {})
    write_problems(folder / "train.parquet", train, {})
    stage(top, "eval_corpus/another_corpus_with_a_rather_long_name.jsonl/problems", "problems", {"problems": 0})
    evaluation(top, "before", "smollm2", held, 0.02, samples)
    training(top, train, "train", "train", done, gain)
    for step in STEPS:
        model = "model" if step == STEPS[-1] else f"checkpoint-{step}"
        right = 0.12 + gain * (1 - (1 + step / 10) ** -0.6)
        evaluation(top, f"step-{step:03}", f"{top}/train/{model}", held, right, samples)
    return top


if __name__ == "__main__":
    write_large(Path(sys.argv[1]))

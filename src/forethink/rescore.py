"""Score saved completions again under another reward, without generating.

Answers are taken as they were read when the completions were made; outcome and reward are computed anew from the
problems. So a reward can be tried on finished runs, and a changed one held against what it gave before.
"""

from __future__ import annotations

import base64
import inspect
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from forethink.config import Config
from forethink.recipe import stage_folder
from forethink.records import read_problems
from forethink.rewards import REWARDS, Reward, degenerate, load_reward, needs, outcome, right_if_stripped, score_group
from forethink.rundir import RunDir, hash_file, read_jsonl
from forethink.types import Answer, ForethinkError, Outcome, PolicyScores, Problem, Status

Scorer = Callable[[Problem, Sequence[Answer], Sequence[bytes], frozenset[str]], Sequence[PolicyScores]]
"""(problem, its group's answers, the completions' bytes, fields asked for) → one ``PolicyScores`` per answer."""

Record = dict[str, Any]


def _answer(record: Record, where: str) -> tuple[Answer, bytes]:
    try:
        answer = Answer(
            status=Status(record["status"]),
            prediction=base64.b64decode(record["prediction"], validate=True),
            thought=str(record["thought"]),
            tokens=int(record["tokens"]),
        )
        return answer, base64.b64decode(record["bytes"], validate=True)
    except KeyError as error:
        raise ForethinkError(
            f"{where}: no field {error.args[0]!r}; name a samples.jsonl that forethink wrote."
        ) from None
    except (TypeError, ValueError) as error:
        raise ForethinkError(f"{where}: not a sample ({error}); name a samples.jsonl that forethink wrote.") from None


def _groups(records: Iterable[tuple[str, Record]]) -> Iterator[list[tuple[str, Record]]]:
    """The groups of one step, in order. A problem drawn twice makes two groups: sample numbers do not repeat."""
    groups: dict[str, list[dict[int, tuple[str, Record]]]] = {}
    for where, record in records:
        if "problem" not in record or "sample" not in record:
            raise ForethinkError(
                f"{where}: no field 'problem' or 'sample'; name a samples.jsonl that forethink wrote."
            )
        own = groups.setdefault(record["problem"], [{}])
        place = next((group for group in own if record["sample"] not in group), None)
        if place is None:
            place = {}
            own.append(place)
        place[record["sample"]] = (where, record)
    for own in groups.values():
        yield from (list(group.values()) for group in own)


def rescore(
    samples: Path, problems: Mapping[str, Problem], reward: Reward, scorer: Scorer | None = None
) -> Iterator[list[Record]]:
    """Score every group of a ``samples.jsonl`` again.

    Args:
        samples: the file.
        problems: by id.
        reward: see :func:`forethink.rewards.load_reward`.
        scorer: computes policy scores; needed for rewards that ask for them.

    Yields:
        One group at a time: its records with ``outcome`` and ``reward`` new, the former reward as ``reward_before``,
        and ``right_if_stripped``.

    Raises:
        ForethinkError: a line is no sample, its problem is unknown, or the reward needs a scorer and there is none.
    """
    fields = needs(reward) - {"group"}
    if fields and scorer is None:
        name = getattr(reward, "__name__", "this reward")
        raise ForethinkError(
            f"{samples}: holds no {' and no '.join(sorted(fields))}, which {name} needs; give the policy that made "
            "the samples, or choose a reward of the answers alone."
        )
    lines = ((f"{samples}: line {number}", record) for number, record in enumerate(read_jsonl(samples), 1))
    for _, step in itertools.groupby(lines, key=lambda line: line[1].get("step")):
        for group in _groups(step):
            where, first = group[0]
            if first["problem"] not in problems:
                raise ForethinkError(
                    f"{where}: no problem {first['problem']!r}; name the problems the run was made on."
                )
            problem = problems[first["problem"]]
            read = [_answer(record, where) for where, record in group]
            answers = [answer for answer, _ in read]
            scores = scorer(problem, answers, [text for _, text in read], fields) if fields and scorer else None
            values = score_group(reward, answers, problem, scores)
            yield [
                {
                    **record,
                    "outcome": outcome(answer, problem).value,
                    "reward": value,
                    "reward_before": record.get("reward"),
                    "right_if_stripped": right_if_stripped(answer, problem),
                }
                for (_, record), answer, value in zip(group, answers, values, strict=True)
            ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def summarise(groups: Sequence[Sequence[Record]]) -> Record:
    """Figures over rescored groups: mean rewards, shares of outcomes, of degenerate groups, of groups with a signal.

    A group has a signal where its rewards differ; it is degenerate by its plain outcomes, whatever the reward.
    """
    records = [record for group in groups for record in group]
    outcomes = Counter(record["outcome"] for record in records)
    kinds = Counter(degenerate([Outcome(record["outcome"]) for record in group]) for group in groups)
    signal = sum(len({record["reward"] for record in group if record["reward"] is not None}) > 1 for group in groups)
    return {
        "completions": len(records),
        "groups": len(groups),
        "reward": _mean(record["reward"] for record in records),
        "reward_before": _mean(record["reward_before"] for record in records),
        **{kind.value: outcomes[kind.value] / len(records) for kind in Outcome},
        "all_right": kinds["all_right"] / len(groups),
        "all_wrong": kinds["all_wrong"] / len(groups),
        "signal": signal / len(groups),
        "right_if_stripped": _mean(float(record["right_if_stripped"]) for record in records),
    }


def run_rescore(
    config: Config,
    samples: str | Path | None = None,
    problems: str | Path | None = None,
    scorer: Scorer | None = None,
) -> Path:
    """The stage: score a ``samples.jsonl`` under ``config.reward``, into ``<run>/rescore/<source>-<reward>``.

    ``samples.jsonl`` there holds the records with their new reward, ``metrics.jsonl`` one line a step (see
    :func:`summarise`), ``run.json`` the same figures over all.

    Args:
        config: ``run`` and ``reward`` count.
        samples: the file; ``<run>/train/samples.jsonl`` when absent.
        problems: a problems folder or file; ``<run>/problems`` when absent.
        scorer: see :func:`rescore`.

    Raises:
        ForethinkError: a file is absent or empty; see :func:`rescore`.
    """
    source = Path(samples) if samples is not None else Path(config.run) / "train" / "samples.jsonl"
    place = Path(problems) if problems is not None else stage_folder(config, "problems")
    if not source.is_file():
        raise ForethinkError(f"{source}: no such file; name a samples.jsonl of a finished stage.")
    if not place.exists():
        raise ForethinkError(f"{place}: no such problems; name the problems the samples were made on.")
    reward = load_reward(config.reward)
    name = f"{source.resolve().parent.name}-{config.reward.name}{'-length' if config.reward.length_weight > 0 else ''}"
    path = Path(config.run) / "rescore" / re.sub(r"[^\w.-]+", "-", name)
    files = [place] if place.is_file() else sorted(place.glob("*.parquet"))
    inputs = {str(file): hash_file(file) for file in (source, *files, *_own_source(config.reward.name, reward))}
    known = _read_all(place)
    groups = rescore(source, known, reward, scorer)
    first = next(groups, None)  # before the run folder is made: a mistake in the call leaves nothing behind
    if first is None:
        raise ForethinkError(f"{source}: holds no sample; name a samples.jsonl of a finished stage.")
    run = RunDir(path, "rescore", config, ("reward",), inputs)
    if run.done:
        return path
    for log in ("samples", "metrics"):  # what a killed run left is made again
        run.truncate(log, lambda record: False)
    small: list[list[Record]] = []
    for step, own in itertools.groupby(itertools.chain([first], groups), key=lambda group: group[0].get("step")):
        whole = list(own)
        run.append("samples", (record for group in whole for record in group))
        run.append("metrics", [{"step": step, **summarise(whole)}])
        small += [[{key: record[key] for key in _COUNTED} for record in group] for group in whole]
    run.dropped({})
    run.finish(summarise(small))
    return path


def _own_source(name: str, reward: Reward) -> list[Path]:
    """The file of a user's own reward: part of what the result depends on."""
    source = None if name in REWARDS else inspect.getsourcefile(inspect.unwrap(reward))
    return [Path(source)] if source else []


_COUNTED = ("outcome", "reward", "reward_before", "right_if_stripped")


def _read_all(place: Path) -> dict[str, Problem]:
    splits = (
        ["train"] if place.is_file() else [s for s in ("train", "validation") if (place / f"{s}.parquet").exists()]
    )
    if not splits:
        raise ForethinkError(f"{place}: holds no problems; name the problems the samples were made on.")
    return {problem.id: problem for split in splits for problem in read_problems(place, split)}

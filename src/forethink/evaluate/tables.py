"""Positions by difficulty: which are drawn, their figures split by split, and comparisons of evaluations."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethink.config import Config
from forethink.evaluate.stats import pass_at_k, powers_of_two, wilson_of
from forethink.paired import Split, cluster_bootstrap, compare, differences, nats, splits
from forethink.types import ForethinkError

__all__ = ["Split", "compare", "differences", "draw", "show", "splits", "tabulate"]

Record = dict[str, Any]


def draw(entropies: Mapping[str, float], config: Config) -> dict[str, tuple[list[str], str]]:
    """The positions to evaluate: problem id → (nested splits it counts for, disjoint band).

    Positions are ranked by a hash of the seed and their id. The first ``eval.positions`` of those above the lowest
    threshold are taken; with ``eval.per_split`` the first ``eval.positions`` above *each* threshold, each counting
    for the splits it was taken for, so every split is a fair sample of its own range.

    Raises:
        ForethinkError: the thresholds do not ascend, or no position lies above the lowest.
    """
    knobs = config.eval
    if not knobs.thresholds or list(knobs.thresholds) != sorted(set(knobs.thresholds)):
        raise ForethinkError(f"eval.thresholds is {list(knobs.thresholds)}; give ascending entropies in nats.")
    nested = [split for split in splits(knobs.thresholds) if split.kind == "nested"]
    bands = [split for split in splits(knobs.thresholds) if split.kind == "disjoint"]

    def place(problem: str) -> bytes:
        return hashlib.sha256(f"eval\0{config.seed}\0{problem}".encode()).digest()

    ranked = sorted((name for name, value in entropies.items() if value > nested[0].above), key=place)
    if not ranked:
        raise ForethinkError(
            f"eval: none of {len(entropies)} positions has an entropy above {nested[0].above:g} nats; "
            "lower eval.thresholds."
        )
    pool = ranked if knobs.per_split else ranked[: knobs.positions]
    names: dict[str, list[str]] = {}
    for split in nested:
        inside = [name for name in pool if entropies[name] > split.above]
        for name in inside[: knobs.positions]:
            names.setdefault(name, []).append(split.name)
    return {name: (own, _band(bands, entropies[name])) for name, own in names.items()}


def _band(bands: Sequence[Split], entropy: float) -> str:
    return [band.name for band in bands if entropy > band.above][-1]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _share(values: NDArray[np.float64], bounds: NDArray[np.float64], single: bool) -> Record:
    return {
        "value": _number(values.mean()) if len(values) else None,
        "wilson": wilson_of(values, single),
        "bootstrap": None if np.isnan(bounds).any() else [float(bound) for bound in bounds],
    }


def _row(own: Sequence[Mapping[str, Any]], samples: int, resamples: int, seed: int) -> Record:
    powers = powers_of_two(samples)
    names = ["plain", "reasoning", "box", "agree", *(f"pass@{k}" for k in powers)]
    table = np.array(
        [
            [float(p["plain"]), *(p[key] / samples for key in ("right", "boxed", "agree"))]
            + [pass_at_k(samples, p["right"], k) for k in powers]
            for p in own
        ]
    ).reshape(len(own), len(names))
    bounds = cluster_bootstrap(table, [p["document"] for p in own], resamples, seed)
    shares = {name: _share(table[:, i], bounds[:, i], name == "plain" or samples == 1) for i, name in enumerate(names)}
    completions = samples * len(own)
    sums = Counter({key: sum(p[key] for p in own) for key in ("right", "wrong", "missing", "cut_off", "tokens")})

    def over(total: float, count: int) -> float | None:
        return total / count if count else None

    signal = sum(0 < p["right"] < samples for p in own)
    return {
        "positions": len(own),
        "documents": len({p["document"] for p in own}),
        **{name: shares[name] for name in names[:4]},
        "pass_at": {str(k): shares[f"pass@{k}"] for k in powers},
        "outcomes": {key: over(sums[key], completions) for key in ("right", "wrong", "missing", "cut_off")},
        "signal": over(signal, len(own)) if samples > 1 else None,
        "all_right": over(sum(p["right"] == samples for p in own), len(own)),
        "all_wrong": over(sum(p["right"] == 0 for p in own), len(own)),
        "right_if_stripped": sum(p["stripped"] for p in own),
        "completion_tokens": over(sums["tokens"], completions),
        "inexpressible": over(sum(p["inexpressible"] is not None for p in own), len(own)),
    }


def tabulate(
    positions: Sequence[Mapping[str, Any]], thresholds: Sequence[float], samples: int, resamples: int, seed: int
) -> list[Record]:
    """The figures of every split, nested first, from the records of ``positions.jsonl``.

    Shares are over completions (``reasoning``, ``box``, ``agree``, ``outcomes``) or over positions (``plain``,
    ``signal``, ``all_right``, ``all_wrong``, ``inexpressible``); None where a split holds no position.
    ``right_if_stripped`` is a count of completions, ``completion_tokens`` their mean length.
    """
    return [
        {
            "split": split.name,
            "kind": split.kind,
            "above": split.above,
            "up_to": split.up_to,
            **_row([p for p in positions if split.holds(p)], samples, resamples, seed),
        }
        for split in splits(thresholds)
    ]


def _percent(value: float | None, interval: Sequence[float] | None = None, sign: str = "") -> str:
    if value is None:
        return "–"
    text = f"{100 * value:{sign}.1f}"
    return text if interval is None else f"{text} ({100 * interval[0]:{sign}.1f} … {100 * interval[1]:{sign}.1f})"


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['split']} (> {nats(row['above'])})" if row["kind"] == "nested" and "above" in row else row["split"]


# What a comparison's columns are called; the last is our reasoning accuracy less their plain one.
_COMPARED = {"plain": "plain", "reasoning": "reasoning", "reasoning_less_plain": "reasoning − plain"}


def show(result: Mapping[str, Any]) -> None:
    """Print an evaluation's table, and one for every comparison; plain text where standard output is no terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=100)  # a file has no width
    title = f"{result['model']['name']}: next-token accuracy in %"

    def table(title: str, *columns: str) -> Table:
        made = Table(title=title, title_justify="left", box=box.SIMPLE)
        for number, column in enumerate(columns):
            made.add_column(column, justify="right" if number else "left", no_wrap=True)
        return made

    main = table(title, "split", "n", "plain", "reasoning", "box", "agree")
    for row in result["rows"]:
        shares = [row["plain"], row["reasoning"]]
        cells = [_percent(share["value"], share["wilson"] or share["bootstrap"]) for share in shares]
        cells += [_percent(row["box"]["value"]), _percent(row["agree"]["value"])]
        main.add_row(
            _label(row), str(row["positions"]), *cells, end_section=row is result["rows"][_last_nested(result)]
        )
    console.print(main)
    kind = "Wilson" if result["samples"] == 1 else "Wilson for plain, bootstrap over documents for reasoning"
    console.print(f"95 % intervals: {kind}; {result['samples']} sample(s) a position")
    perplexity = result["perplexity"]
    console.print(
        f"perplexity {'–' if perplexity is None else f'{perplexity:.2f}'} over {result['context_tokens']:,} tokens"
    )
    for one in result["against"]:
        made = table(f"difference to {one['folder']}, percentage points", "split", "n", *_COMPARED.values())
        for row in one["rows"]:
            cells = [_percent(row[k]["difference"], row[k]["interval"], "+") if k in row else "–" for k in _COMPARED]
            made.add_row(row["split"], str(row["positions"]), *cells)
        console.print(made)


def _last_nested(result: Mapping[str, Any]) -> int:
    return sum(row["kind"] == "nested" for row in result["rows"]) - 1

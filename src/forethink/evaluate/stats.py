"""Intervals of shares and of differences, and pass@k: pure functions.

Two intervals stand beside every share. *Wilson*: binomial, right where every trial is one independent draw; it is
left out where a position has several samples. *Bootstrap*: documents are drawn anew with replacement, all their
positions together (a cluster bootstrap), because positions of one document resemble each other. It holds for any
number of samples, and for differences between two models on the same positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 1 << 22  # (resample, document) pairs in memory at once


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a binomial share; (NaN, NaN) without a trial."""
    from scipy.stats import binomtest  # slow to import

    if trials == 0:
        return math.nan, math.nan
    interval = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of ``k`` of the samples, drawn without replacement, is right: unbiased.

    Source: Chen et al., arXiv 2107.03374, equation 1.

    Raises:
        ValueError: not 0 ≤ right ≤ samples, or not 1 ≤ k ≤ samples.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(f"pass@{k} of {samples} samples with {right} right")
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4 … up to ``limit``."""
    return [1 << i for i in range(limit.bit_length())]


def cluster_bootstrap(
    values: NDArray[np.float64] | Sequence[Any],
    clusters: Sequence[str],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> NDArray[np.float64]:
    """Percentile intervals of means, whole clusters drawn with replacement.

    Args:
        values: [N] or [N, M]: M quantities of N positions, resampled together.
        clusters: [N], the document of each position.
        resamples: number of bootstrap draws.
        seed: of the draws.
        level: coverage.

    Returns:
        [2] or [2, M]: low and high. NaN with fewer than two clusters, which tell nothing about spread.
    """
    table = np.asarray(values, dtype=np.float64)
    names, member = np.unique(np.asarray(clusters), return_inverse=True)
    count = len(names)
    if count < 2:
        return np.full((2, *table.shape[1:]), np.nan)
    columns = table.reshape(len(table), -1)
    sums = np.zeros((count, columns.shape[1]))
    np.add.at(sums, member, columns)
    sizes = np.bincount(member, minlength=count).astype(np.float64)
    rng = np.random.default_rng(seed)
    means = []
    step = max(1, _DRAWS // count)
    for start in range(0, resamples, step):
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=min(step, resamples - start))
        means.append((drawn @ sums) / (drawn @ sizes)[:, None])
    tail = (1 - level) / 2
    bounds = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return bounds.reshape(2, *table.shape[1:])


def paired_bootstrap(
    ours: Sequence[float],
    theirs: Sequence[float],
    clusters: Sequence[str],
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float, float]:
    """Mean difference ``ours − theirs`` over the same positions with its cluster-bootstrap interval (low, high)."""
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    low, high = cluster_bootstrap(differences, clusters, resamples, seed, level)
    return float(differences.mean()), float(low), float(high)

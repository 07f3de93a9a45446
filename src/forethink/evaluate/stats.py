"""Shares and pass@k: pure functions.

Two intervals stand beside every share. *Wilson*: binomial, right where every trial is one independent draw; it is
left out where a position has several samples, unless they all say the same (`wilson_of`). *Bootstrap* over documents
(`forethink.paired`): it holds for any number of samples, and for differences between two models on the same positions.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from forethink.paired import cluster_bootstrap, paired_bootstrap

__all__ = ["cluster_bootstrap", "paired_bootstrap", "pass_at_k", "powers_of_two", "wilson", "wilson_of"]


def wilson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a binomial share; (NaN, NaN) without a trial."""
    from scipy.stats import binomtest  # slow to import

    if trials == 0:
        return math.nan, math.nan
    interval = binomtest(successes, trials).proportion_ci(level, method="wilson")
    return float(interval.low), float(interval.high)


def wilson_of(values: NDArray[np.float64], single: bool) -> list[float] | None:
    """Wilson's interval of the mean of ``values`` [positions], each a position's share of right samples; None without.

    It is given where a position has one sample (``single``), and where all values are 0 or all are 1: whatever a
    bootstrap draws there is the same, and its interval a point. A position counts as one trial then, however many
    samples it has, since they resemble each other; the interval is rather too wide than too narrow.
    """
    if not len(values) or not (single or values.min() == values.max() in (0, 1)):
        return None
    return list(wilson(round(float(values.sum())), len(values)))


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

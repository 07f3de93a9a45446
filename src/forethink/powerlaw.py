"""Least squares of P* − B · (C / C_min)^(−alpha) with B ≥ 0 and P* ≤ 1, alpha searched, the rest solved exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

PARAMETERS = 3
ALPHA = (0.01, 10.0)  # where alpha is searched; an end of an interval that lies there is open
GRID = 400


class Lines:
    """P − B·x, x = (C/C_min)^(−alpha), for every alpha of a grid and many sets of accuracies at once.

    Shapes: ``_k`` alphas, ``_n`` points, ``_r`` sets of accuracies.
    """

    def __init__(self, compute_n: Array, alpha_k: Array) -> None:
        self.alpha_k = alpha_k
        self.x_kn = (compute_n / compute_n.min()) ** -alpha_k[:, None]
        self.mean_k = self.x_kn.mean(axis=1)
        self.spread_k = ((self.x_kn - self.mean_k[:, None]) ** 2).sum(axis=1)
        self.square_k = (self.x_kn**2).sum(axis=1)

    def free(self, y_rn: Array) -> tuple[Array, Array, Array]:
        """Without bounds on P and B: sum of squares, P and B, each [r, k]."""
        mean_r1 = y_rn.mean(axis=1, keepdims=True)
        variance_r1 = ((y_rn - mean_r1) ** 2).sum(axis=1, keepdims=True)
        b_rk = -((y_rn - mean_r1) @ (self.x_kn - self.mean_k[:, None]).T) / self.spread_k
        rss_rk = np.maximum(variance_r1 - b_rk**2 * self.spread_k, variance_r1 * 1e-16)
        return rss_rk, mean_r1 + b_rk * self.mean_k, b_rk

    def solve(self, y_rn: Array) -> tuple[Array, Array, Array]:
        """With B ≥ 0 and P ≤ 1: sum of squares, P and B, each [r, k]."""
        rss_rk, p_rk, b_rk = self.free(y_rn)
        mean_r1 = y_rn.mean(axis=1, keepdims=True)
        falls = b_rk < 0
        rss_rk = np.where(falls, ((y_rn - mean_r1) ** 2).sum(axis=1, keepdims=True), rss_rk)
        p_rk, b_rk = np.where(falls, mean_r1, p_rk), np.where(falls, 0.0, b_rk)
        over = p_rk > 1
        one_rk, b_one_rk = self.at_p(y_rn, 1.0)
        return np.where(over, one_rk, rss_rk), np.where(over, 1.0, p_rk), np.where(over, b_one_rk, b_rk)

    def at_p(self, y_rn: Array, p: float) -> tuple[Array, Array]:
        """With P given and B ≥ 0: sum of squares and B, each [r, k]."""
        gap_rn = p - y_rn
        b_rk = np.maximum(0.0, gap_rn @ self.x_kn.T / self.square_k)
        whole_r1 = (gap_rn**2).sum(axis=1, keepdims=True)
        rss_rk = whole_r1 - 2 * b_rk * (gap_rn @ self.x_kn.T) + b_rk**2 * self.square_k
        return np.maximum(rss_rk, 0.0), b_rk

    def at_b(self, y_rn: Array, b_k: Array) -> Array:
        """With B given for every alpha and P ≤ 1: sum of squares [r, k]."""
        mean_r1 = y_rn.mean(axis=1, keepdims=True)
        cross_rk = (y_rn - mean_r1) @ (self.x_kn - self.mean_k[:, None]).T
        variance_r1 = ((y_rn - mean_r1) ** 2).sum(axis=1, keepdims=True)
        level_rk = mean_r1 + b_k * self.mean_k
        rss_rk = variance_r1 + 2 * b_k * cross_rk + b_k**2 * self.spread_k
        return np.maximum(rss_rk, 0.0) + y_rn.shape[1] * np.maximum(0.0, level_rk - 1) ** 2


@dataclass(frozen=True)
class Best:
    """The best fit of one set of points, and a grid of alphas fine about it."""

    lines: Lines
    compute_n: Array
    y_n: Array
    at: int
    rss_k: Array
    p: float
    b: float

    @property
    def df(self) -> int:
        return len(self.y_n) - PARAMETERS

    @property
    def alpha(self) -> float:
        return float(self.lines.alpha_k[self.at])

    def refits(self, y_rn: Array) -> tuple[Array, Array, Array]:
        """Alpha, P and B of other accuracies at the same points, each [r]."""
        rss_rk, p_rk, b_rk = self.lines.solve(y_rn)
        rows, best = np.arange(len(y_rn)), rss_rk.argmin(axis=1)
        return self.lines.alpha_k[best], p_rk[rows, best], b_rk[rows, best]

    def fitted(self) -> Array:
        values: Array = self.p - self.b * self.lines.x_kn[self.at]
        return values

    def resampled(self, resamples: int, seed: int) -> tuple[Array, Array]:
        """Accuracies [r, n] of the law with residuals drawn anew, and the residuals' pool [n]."""
        residuals = self.y_n - self.fitted()
        # Residuals of a fit are smaller than the errors behind them, by the parameters it took.
        pool = (residuals - residuals.mean()) * math.sqrt(len(residuals) / self.df)
        drawn = np.random.default_rng(seed).choice(pool, size=(resamples, len(pool)))
        return self.fitted() + drawn, pool


def search(compute_n: Array, y_n: Array, level: float) -> Best:
    """Search alpha over its whole range, then ever finer about the best, as wide as an interval may become."""
    from scipy.stats import f as f_distribution

    low, high = ALPHA
    wide = 3 * float(f_distribution.ppf(level, 1, len(y_n) - PARAMETERS)) / (len(y_n) - PARAMETERS)
    for _ in range(8):
        lines = Lines(compute_n, np.geomspace(low, high, GRID))
        rss, p, b = (values[0] for values in lines.solve(y_n[None]))
        near = np.flatnonzero(rss <= rss.min() * (1 + wide))
        first, last = max(0, int(near[0]) - 1), min(GRID - 1, int(near[-1]) + 1)
        at = int(rss.argmin())
        if last - first > GRID // 2:
            break
        low, high = float(lines.alpha_k[first]), float(lines.alpha_k[last])
    return Best(lines, compute_n, y_n, at, rss, float(p[at]), float(b[at]))

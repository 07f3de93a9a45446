"""The scaling law P(C) = A / C^alpha + P* fitted to evaluated checkpoints (arXiv 2506.08007, section 3.3).

P is next-token accuracy as a share, C what training took. Accuracy grows with C, so A < 0 and P* is where it levels
off, at most 1. The fit is P* − B · (C / C_min)^(−alpha) with B ≥ 0: for every alpha a straight line in P* and B,
solved exactly, so only alpha is searched, over its whole range, and no start value can mislead.

Two bootstraps answer two questions. *Residuals*: how far may the curve be off, given how the points scatter about it?
An interval holds every value whose best fit is not worse than 95 % of bootstrap samples allow (the profile of the sum
of squares, its threshold from the bootstrap and never below the F distribution's): it needs no symmetry.
*Documents*: what if other documents had been drawn for the evaluation? All checkpoints are evaluated on the same
drawn documents again and fitted again; percentiles. It needs the evaluations' ``positions.jsonl``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forethink.powerlaw import ALPHA, GRID, PARAMETERS, Array, Best, Lines, search
from forethink.types import ForethinkError

_CHANCE = 0.05  # refused where more of the random orderings of the accuracies fit as well
_ORDERINGS = 5040  # all of them up to seven points, as many random ones from there
_EXACT = 1e-13  # a smaller part of the variance left over is rounding


class NoLaw(ForethinkError):
    """Accuracies that a law cannot be told of. ``r2`` is what it would explain of them all the same."""

    def __init__(self, message: str, r2: float) -> None:
        super().__init__(message)
        self.r2 = r2


@dataclass(frozen=True, slots=True)
class Estimate:
    """A parameter with its intervals (low, high); an open end is infinite. ``documents`` is None where not asked."""

    value: float
    residuals: tuple[float, float]
    documents: tuple[float, float] | None

    def record(self) -> dict[str, Any]:
        """As JSON: open ends are None."""

        def ends(pair: tuple[float, float] | None) -> list[float | None] | None:
            return None if pair is None else [end if math.isfinite(end) else None for end in pair]

        return {"value": self.value, "residuals": ends(self.residuals), "documents": ends(self.documents)}


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted law.

    Attributes:
        a, alpha, p_star: the parameters, C in the unit it was given in.
        r2: share of the variance explained.
        residuals: [n] accuracy − law, in the order of the points given.
        chance: share of orderings of the same accuracies that fit as well.
        curve: ``compute``, ``accuracy``, ``low`` and ``high`` (pointwise 95 % band, residual bootstrap), for drawing.
        hold_out: the law fitted without the largest C, asked for it: ``compute``, ``observed``, ``predicted``,
            ``interval`` (95 %, scatter of a point included), ``error`` = observed − predicted; None with fewer than
            five compute values, since four points must remain.
    """

    a: Estimate
    alpha: Estimate
    p_star: Estimate
    r2: float
    residuals: list[float]
    chance: float
    curve: dict[str, list[float]]
    hold_out: dict[str, Any] | None

    def at(self, compute: float) -> float:
        """The law's accuracy at C."""
        # C^alpha and A may each be out of a float's range where their quotient is not.
        return self.p_star.value - math.exp(math.log(-self.a.value) - self.alpha.value * math.log(compute))

    def record(self) -> dict[str, Any]:
        """As JSON."""
        names = {"A": self.a, "alpha": self.alpha, "p_star": self.p_star}
        plain = ("r2", "residuals", "chance", "curve", "hold_out")
        return {k: e.record() for k, e in names.items()} | {k: getattr(self, k) for k in plain}


def _thresholds(best: Best, y_rn: Array, level: float) -> dict[str, float]:
    """How much worse than the best fit, in units of the residual variance, the true value's fit may be."""
    from scipy.stats import f as f_distribution

    lines = best.lines
    rss_rk = lines.solve(y_rn)[0]
    least_r = np.maximum(rss_rk.min(axis=1), 1e-300)
    b_k = best.b * best.compute_n.min() ** (best.alpha - lines.alpha_k)  # B that gives the same A = −B · C_min^alpha
    at = {
        "alpha": rss_rk[:, best.at],
        "p_star": lines.at_p(y_rn, best.p)[0].min(axis=1),
        "a": lines.at_b(y_rn, b_k).min(axis=1),
    }
    drawn = {k: float(np.quantile(np.maximum(0.0, v - least_r) / least_r, level)) * best.df for k, v in at.items()}
    normal = float(f_distribution.ppf(level, 1, best.df))  # few residuals, drawn anew, know little of the tails
    return {name: max(value, normal) for name, value in drawn.items()}


def _profile(best: Best, limits: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Intervals of alpha, P* and A: all values that some fit within the threshold has."""
    lines, y_1n = best.lines, best.y_n[None]
    free_k, p_k, b_k = (values[0] for values in lines.free(y_1n))
    one_k, b_one_k = (values[0] for values in lines.at_p(y_1n, 1.0))
    count, mean = len(best.y_n), best.y_n.mean()

    def inside(name: str) -> tuple[NDArray[np.intp], float]:
        limit = float(best.rss_k.min()) * (1 + limits[name] / best.df)
        return np.flatnonzero(best.rss_k <= limit), limit

    own, _ = inside("alpha")
    low, high = float(lines.alpha_k[own[0]]), float(lines.alpha_k[own[-1]])
    alpha = (0.0 if low <= ALPHA[0] * 1.001 else low, math.inf if high >= ALPHA[1] * 0.999 else high)
    own, limit = inside("p_star")
    half = np.sqrt(np.maximum(0.0, limit - free_k) * lines.square_k / (count * lines.spread_k))[own]
    p_star = (max(0.0, float((p_k[own] - half).min())), min(1.0, float((p_k[own] + half).max())))
    own, limit = inside("a")
    half = np.sqrt(np.maximum(0.0, limit - free_k) / lines.spread_k)
    half_one = np.sqrt(np.maximum(0.0, limit - one_k) / lines.square_k)
    turn_k = (1 - mean) / lines.mean_k  # a larger B would lift P* above 1, where it is held
    top = np.where(b_k + half <= turn_k, b_k + half, b_one_k + half_one)[own]
    bottom = np.where(b_k - half <= turn_k, b_k - half, b_one_k - half_one)[own]
    scale = lines.alpha_k[own] * math.log(best.compute_n.min())
    open_end = lines.alpha_k[own[-1]] >= ALPHA[1] * 0.999
    lowest = -math.inf if open_end else -float(np.exp(np.log(np.maximum(top, 1e-300)) + scale).max())
    highest = -float((np.exp(np.log(np.maximum(bottom, 1e-300)) + scale)).min()) if (bottom > 0).all() else 0.0
    return {"alpha": alpha, "p_star": p_star, "a": (lowest, highest)}


def _chance(compute_n: Array, y_n: Array, seed: int) -> float:
    """Share of the orderings of the accuracies, this one among them, that the law fits at least as well."""
    count = len(y_n)
    if math.factorial(min(count, 8)) <= _ORDERINGS:
        order = np.array(list(itertools.permutations(range(count))))
    else:
        order = np.random.default_rng(seed).permuted(np.tile(np.arange(count), (_ORDERINGS - 1, 1)), axis=1)
        order = np.concatenate([np.arange(count)[None], order])
    lines = Lines(compute_n, np.geomspace(*ALPHA, 40))
    rss_r = lines.solve(y_n[order])[0].min(axis=1)
    return float((rss_r <= rss_r[0] * (1 + 1e-9)).mean())


def _refuse(compute_n: Array, y_n: Array, seed: int, level: float) -> float:
    """The chance of the fit; an error with the reason where there is nothing to fit."""
    if not (np.isfinite(compute_n).all() and np.isfinite(y_n).all() and (compute_n > 0).all()):
        raise ForethinkError("a point is no number, or its compute is not above 0; leave it out.")
    distinct = len(np.unique(compute_n))
    if distinct <= PARAMETERS:
        raise ForethinkError(
            f"{distinct} different amounts of compute are too few for a law of {PARAMETERS} parameters; evaluate at "
            f"least {PARAMETERS + 1} checkpoints (`forethink eval --checkpoint …`), better six."
        )
    if np.ptp(y_n) <= 1e-12:
        raise ForethinkError(f"the accuracy is {y_n[0]:.4g} at every point, flat: there is no law to fit.")
    chance = _chance(compute_n, y_n, seed)
    if chance > _CHANCE:
        falls = np.polyfit(np.log(compute_n), y_n, 1)[0] <= 0
        why = "the accuracy does not grow with compute" if falls else "the accuracies look like noise on a flat line"
        r2 = _r2(y_n, search(compute_n, y_n, level).fitted())
        raise NoLaw(
            f"{why} ({chance:.0%} of their orderings fit the law as well); evaluate checkpoints further apart, or "
            "more positions.",
            r2,
        )
    return chance


def _r2(y_n: Array, fitted_n: Array) -> float:
    return 1 - float(((y_n - fitted_n) ** 2).sum()) / float(((y_n - y_n.mean()) ** 2).sum())


def _curve(best: Best, at_m: Array, y_rn: Array, level: float) -> dict[str, list[float]]:
    """The law over `at_m` with its band from refits."""
    start = best.compute_n.min()
    alpha_r, p_r, b_r = best.refits(y_rn)
    many_rm = p_r[:, None] - b_r[:, None] * (at_m / start) ** -alpha_r[:, None]
    low_m, high_m = np.quantile(many_rm, [(1 - level) / 2, (1 + level) / 2], axis=0)
    mean_m = best.p - best.b * (at_m / start) ** -best.alpha
    curve = {"compute": at_m, "accuracy": mean_m, "low": low_m, "high": high_m}
    return {name: values.tolist() for name, values in curve.items()}


def _hold_out(compute_n: Array, y_n: Array, resamples: int, seed: int, level: float) -> dict[str, Any] | None:
    last = int(compute_n.argmax())
    keep = np.arange(len(y_n)) != last
    if len(np.unique(compute_n[keep])) <= PARAMETERS:
        return None
    best = search(compute_n[keep], y_n[keep], level)
    y_rn, pool = best.resampled(resamples, seed)
    alpha_r, p_r, b_r = best.refits(y_rn)
    ratio = compute_n[last] / best.compute_n.min()
    scatter_r = np.random.default_rng([seed, 1]).choice(pool, size=resamples)
    ends = np.quantile(p_r - b_r * ratio**-alpha_r + scatter_r, [(1 - level) / 2, (1 + level) / 2])
    predicted = float(best.p - best.b * ratio**-best.alpha)
    return {
        "compute": float(compute_n[last]),
        "observed": float(y_n[last]),
        "predicted": predicted,
        "interval": ends.tolist(),
        "error": float(y_n[last]) - predicted,
    }


def _documents(compute_n: Array, draws_rn: Array, level: float) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the parameters over evaluations on other documents."""
    lines = Lines(compute_n, np.geomspace(*ALPHA, 2 * GRID))
    rss_rk, p_rk, b_rk = lines.solve(draws_rn)
    rows, best = np.arange(len(draws_rn)), rss_rk.argmin(axis=1)
    alpha_r = lines.alpha_k[best]
    found = {"alpha": alpha_r, "p_star": p_rk[rows, best], "a": -b_rk[rows, best] * compute_n.min() ** alpha_r}
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = {name: np.quantile(values, tails) for name, values in found.items()}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}


def fit(
    points: Sequence[tuple[float, float]],
    draws: Array | Sequence[Sequence[float]] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Fit:
    """Fit P(C) = A / C^alpha + P*.

    Args:
        points: [n] of (C, P): compute in any unit, above 0, and accuracy as a share.
        draws: [r, n], the same accuracies on r bootstrap draws of the evaluation's documents.
        resamples: draws of the residual bootstrap.
        seed: of these draws.
        level: coverage of the intervals.

    Raises:
        NoLaw: the accuracies do not grow with C beyond chance (more than 5 % of their orderings fit as well).
        ForethinkError: fewer than four different C, or equal accuracies.
    """
    compute_n, y_n = np.array(points, dtype=np.float64).reshape(-1, 2).T
    chance = _refuse(compute_n, y_n, seed, level)
    best = search(compute_n, y_n, level)
    variance = float(((y_n - y_n.mean()) ** 2).sum())
    residuals = y_n - best.fitted()
    y_rn, _ = best.resampled(resamples, seed)
    # A law that goes through its points leaves no scatter to draw from; its intervals are as wide as the search.
    exact = float(best.rss_k.min()) <= _EXACT * variance
    limits = dict.fromkeys(("alpha", "p_star", "a"), 1.0) if exact else _thresholds(best, y_rn, level)
    own = _profile(best, limits)
    other = None if draws is None else _documents(compute_n, np.asarray(draws, dtype=np.float64), level)
    values = {"alpha": best.alpha, "p_star": best.p, "a": -best.b * float(compute_n.min()) ** best.alpha}
    estimates = {k: Estimate(v, own[k], None if other is None else other[k]) for k, v in values.items()}
    return Fit(
        **estimates,
        r2=_r2(y_n, best.fitted()),
        residuals=residuals.tolist(),
        chance=chance,
        curve=_curve(best, np.geomspace(compute_n.min(), compute_n.max(), 40), y_rn, level),
        hold_out=_hold_out(compute_n, y_n, resamples, seed, level),
    )

"""Intervals and pass@k against hand-computed values and full enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from forethink.evaluate.stats import cluster_bootstrap, paired_bootstrap, pass_at_k, powers_of_two, wilson, wilson_of


def test_wilson_equals_the_formula():
    # centre (p + z²/2n) / (1 + z²/n), half-width z·sqrt(p(1−p)/n + z²/4n²) / (1 + z²/n), here p = 0.2, n = 50.
    z = 1.959963984540054
    centre = (0.2 + z * z / 100) / (1 + z * z / 50)
    half = z * math.sqrt(0.2 * 0.8 / 50 + z * z / (4 * 50 * 50)) / (1 + z * z / 50)
    assert wilson(10, 50) == pytest.approx((centre - half, centre + half), abs=1e-12)
    assert wilson(10, 50) == pytest.approx((0.112, 0.330), abs=1e-3)


def test_samples_that_all_say_the_same_have_wilsons_interval():
    """A bootstrap of zeros alone is a point at zero, however few they are."""
    for value in (0.0, 1.0):
        same = np.full(20, value)
        assert wilson_of(same, single=False) == wilson_of(same, single=True) == list(wilson(int(20 * value), 20))
    half, mixed = np.full(20, 0.5), np.array([0.0, 1.0, 1.0])
    assert wilson_of(half, single=False) is None and wilson_of(mixed, single=False) is None
    assert wilson_of(mixed, single=True) == list(wilson(2, 3))
    assert wilson_of(np.zeros(0), single=True) is None


def test_wilson_at_the_edges():
    low, high = wilson(0, 20)
    assert low == 0
    assert high == pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-6)  # z² / (n + z²)
    assert all(math.isnan(bound) for bound in wilson(0, 0))


def test_pass_at_k_by_hand():
    assert pass_at_k(8, 0, 4) == 0
    assert pass_at_k(8, 8, 1) == 1
    assert pass_at_k(8, 2, 1) == pytest.approx(2 / 8)
    assert pass_at_k(4, 1, 2) == pytest.approx(1 - 3 / 6)  # C(3,2) / C(4,2)
    assert pass_at_k(8, 2, 7) == 1  # one of seven is right whatever is left out
    for bad in ((4, 5, 1), (4, 1, 5), (4, -1, 1), (4, 1, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*bad)


@pytest.mark.parametrize(("samples", "right", "k"), [(6, 2, 3), (5, 1, 2), (7, 4, 4)])
def test_pass_at_k_counts_the_draws(samples, right, k):
    draws = list(itertools.combinations([1] * right + [0] * (samples - right), k))
    assert pass_at_k(samples, right, k) == pytest.approx(sum(any(draw) for draw in draws) / len(draws))


def test_powers_of_two():
    assert [powers_of_two(n) for n in (1, 2, 3, 8, 9)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8], [1, 2, 4, 8]]


def test_two_documents_by_hand():
    # Drawn twice from {0, 1}: means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4, so 2.5 % and 97.5 % lie at 0 and 1;
    # the 50 % interval's ends, the quartiles' edges, are tested below on a finer case.
    assert cluster_bootstrap([0.0, 1.0], ["a", "b"], 2000, 0).tolist() == [0, 1]


def test_the_bootstrap_draws_documents_not_positions():
    # One document of three positions that differ from the others' one: every draw takes all three or none.
    values, documents = [1.0, 1.0, 1.0, 0.0, 0.0], ["a", "a", "a", "b", "c"]
    sums, sizes = np.array([3.0, 0.0, 0.0]), np.array([3.0, 1.0, 1.0])
    means = [sums[list(drawn)].sum() / sizes[list(drawn)].sum() for drawn in itertools.product(range(3), repeat=3)]
    for level in (0.5, 0.8, 0.9):
        exact = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
        found = cluster_bootstrap(values, documents, 20000, 3, level)
        assert found == pytest.approx(exact, abs=1e-12)
    # Positions drawn one by one would hardly ever be all wrong: (2/5)^5 = 1 %, below the 2.5 % tail.
    assert cluster_bootstrap(values, documents, 20000, 3)[0] == 0
    assert cluster_bootstrap(values, list("vwxyz"), 20000, 3)[0] > 0


def test_columns_are_drawn_together_and_seeded():
    values = np.random.default_rng(0).random((30, 2))
    documents = [str(i // 3) for i in range(30)]
    together = cluster_bootstrap(values, documents, 500, 7)
    assert together.shape == (2, 2)
    assert together[:, 1].tolist() == cluster_bootstrap(values[:, 1], documents, 500, 7).tolist()
    assert together.tolist() != cluster_bootstrap(values, documents, 500, 8).tolist()


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        shift = rng.normal(size=40)  # positions of one document share half of their spread
        values = np.repeat(shift, 4) + rng.normal(size=160)
        low, high = cluster_bootstrap(values, [str(i // 4) for i in range(160)], 400, trial)
        covered += low <= 0 <= high
    assert 180 <= covered <= 198  # 95 % nominal, a little less with 40 clusters


def test_one_document_tells_nothing_about_spread():
    assert np.isnan(cluster_bootstrap([0.0, 1.0], ["a", "a"], 100, 0)).all()
    assert np.isnan(cluster_bootstrap(np.zeros((0, 3)), [], 100, 0)).all()


def test_paired_differences_by_hand():
    # Documents a (+1, 0), b (+1), c (0, 0, −1): mean of six differences 1/6.
    ours, theirs = [1, 1, 1, 0, 1, 0], [0, 1, 0, 0, 1, 1]
    documents = ["a", "a", "b", "c", "c", "c"]
    sums, sizes = np.array([1.0, 1.0, -1.0]), np.array([2.0, 1.0, 3.0])
    means = [sums[list(drawn)].sum() / sizes[list(drawn)].sum() for drawn in itertools.product(range(3), repeat=3)]
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    assert (low, high) == (pytest.approx(-1 / 3), 1.0)  # thrice c, thrice b
    assert paired_bootstrap(ours, theirs, documents, 20000, 0) == pytest.approx((1 / 6, low, high))


def test_pairing_takes_out_what_positions_share():
    # A model that is right wherever the other is, and once more in every document, is better without doubt.
    easy = [float(i % 10 < 5) for i in range(100)]
    better = [1.0 if i % 10 == 5 else value for i, value in enumerate(easy)]
    mean, low, high = paired_bootstrap(better, easy, [str(i // 10) for i in range(100)], 500, 0)
    assert mean == low == high == pytest.approx(0.1)

"""The statistics of a study against numbers that one can count or look up."""

import itertools

import numpy as np
import pytest

from study import statistics


def test_a_summary_by_hand():
    """2, 4, 6: deviation 2; Student's t of 2 degrees of freedom at .975 is 4.302653 in every table."""
    found = statistics.summarise([2, 4, 6])
    assert (found.count, found.mean, found.deviation) == (3, 4, 2)
    half = 4.302653 * 2 / 3**0.5
    np.testing.assert_allclose([found.low, found.high], [4 - half, 4 + half], rtol=1e-6)


def test_one_seed_has_no_interval():
    found = statistics.summarise([0.7])
    assert found.mean == 0.7 and all(np.isnan([found.deviation, found.low, found.high]))


@pytest.mark.parametrize("differences", [[1, 2, 3, 4, 5], [1, 2, -3, 4, 5], [0.5, -0.25, 1, 1], [0, 1, -2, 4, 0.5, 3]])
def test_p_is_the_share_of_the_patterns_of_signs(differences):
    observed, patterns = abs(sum(differences)), list(itertools.product((-1, 1), repeat=len(differences)))
    extreme = sum(abs(np.dot(signs, differences)) >= observed for signs in patterns)  # sums without rounding
    assert statistics.sign_flip_p(differences) == pytest.approx(extreme / len(patterns), abs=1e-12)


def test_equal_results_are_no_evidence():
    assert statistics.sign_flip_p([0.0, 0.0, 0.0]) == 1


def test_the_smallest_p_is_that_of_one_sign():
    for pairs in range(1, 9):
        assert statistics.sign_flip_p([1.5] * pairs) == pytest.approx(statistics.smallest_p(pairs))


def test_holm_by_hand():
    """Holm (1979): .005 * 4, .01 * 3, max(.03 * 2, before), max(.04 * 1, before)."""
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert statistics.holm([0.7, 0.6]) == [1.0, 1.0]


def test_five_comparisons_need_eight_seeds():
    assert statistics.seeds_needed(5) == 8
    assert 5 * statistics.smallest_p(8) <= statistics.LEVEL < 5 * statistics.smallest_p(7)


def test_only_runs_of_one_seed_are_pairs():
    results = {"none": {0: 0.5, 1: 0.6, 2: 0.9}, "na": {0: 0.6, 1: 0.8, 7: 0.1}, "se": {9: 0.5}}
    found = statistics.compare(results, "none")
    assert set(found) == {"na"}
    assert found["na"].summary.count == 2 and found["na"].summary.mean == pytest.approx(0.15)


def test_wrong_alarms_stay_at_the_level():
    """400 studies of three modules that do nothing, 8 seeds each: some module is called significant in 5 % at most. A
    binomial of 400 with .05 lies above 33 with a chance of .002."""
    random = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        results = {name: dict(enumerate(random.normal(size=8))) for name in ("none", "a", "b", "c")}
        alarms += any(found.significant for found in statistics.compare(results, "none").values())
    assert alarms <= 33

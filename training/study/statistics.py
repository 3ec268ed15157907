"""What a handful of seeds allows to say: means with their intervals, and paired differences with an exact test.

Runs of one seed are pairs: they begin with the same convolutions and classifier and see the same images in the same
order, so what chance does to both cancels in their difference.
"""

import dataclasses
import math

import numpy as np

LEVEL = 0.05  # of significance; intervals hold 1 - LEVEL
EXACT_UP_TO = 2**16  # patterns of signs; of more seeds as many are drawn


@dataclasses.dataclass(frozen=True)
class Summary:
    """Of one module's cells.

    Attributes:
        count: of seeds.
        mean, deviation: of the values; the deviation with count - 1, NaN of a single seed.
        low, high: of the mean's interval by Student's t; NaN of a single seed.
    """

    count: int
    mean: float
    deviation: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Difference:
    """Of one module's cells to those of the base with the same seeds.

    Attributes:
        summary: Summary of the differences.
        p: of the sign-flip test.
        adjusted: p after Holm's correction for all modules of the report.
    """

    summary: Summary
    p: float
    adjusted: float

    @property
    def significant(self):
        """Whether chance alone is an unlikely reason, among so many modules."""
        return self.adjusted <= LEVEL


def summarise(values):
    """The Summary of numbers."""
    from scipy.special import stdtrit

    values = np.asarray(values, "float64")
    count, mean = len(values), float(np.mean(values)) if len(values) else math.nan
    if count < 2:
        return Summary(count, mean, math.nan, math.nan, math.nan)
    deviation = float(np.std(values, ddof=1))
    half = float(stdtrit(count - 1, 1 - LEVEL / 2)) * deviation / math.sqrt(count)
    return Summary(count, mean, deviation, mean - half, mean + half)


def sign_flip_p(differences):
    """Two-sided p of paired differences: the share of all patterns of signs that bring their mean as far from zero.

    If a module does nothing, each difference could as well have the other sign; nothing else is assumed.
    """
    from scipy import stats

    differences = np.asarray(differences, "float64")
    if len(differences) < 2 or not np.any(differences):
        return 1.0

    def distance(values, axis):
        return np.abs(np.mean(values, axis))

    options = {"permutation_type": "samples", "n_resamples": EXACT_UP_TO, "alternative": "greater", "rng": 0}
    return float(stats.permutation_test((differences,), distance, vectorized=True, batch=4096, **options).pvalue)


def smallest_p(pairs):
    """The smallest p that so many pairs can have: all differences of one sign."""
    return min(1.0, 2 / 2**pairs)


def holm(values):
    """Holm's correction: the chance that any of them is called significant wrongly stays below the level."""
    adjusted, highest = [0.0] * len(values), 0.0
    for rank, index in enumerate(sorted(range(len(values)), key=lambda index: values[index])):
        highest = max(highest, min(1.0, (len(values) - rank) * values[index]))
        adjusted[index] = highest
    return adjusted


def seeds_needed(modules):
    """The fewest seeds with which one of so many modules can be significant."""
    return math.ceil(math.log2(2 * modules / LEVEL))


def compare(results, base):
    """Differences to the base.

    Args:
        results: {module: {seed: number}}.
        base: one of the modules.

    Returns:
        {module: Difference} of the other modules that share a seed with the base.
    """
    pairs = {
        name: [value - results[base][seed] for seed, value in values.items() if seed in results[base]]
        for name, values in results.items()
        if name != base
    }
    pairs = {name: values for name, values in pairs.items() if values}
    ps = {name: sign_flip_p(values) for name, values in pairs.items()}
    adjusted = dict(zip(ps, holm(list(ps.values())), strict=True))
    return {name: Difference(summarise(values), ps[name], adjusted[name]) for name, values in pairs.items()}

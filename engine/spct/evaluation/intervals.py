"""Bootstrap over items: 95% intervals of means and of paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Give the 95% interval of the mean of `values`, resampled with replacement; (mean, mean) for fewer than two."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        mean = float(array.mean()) if len(array) else float("nan")
        return mean, mean
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        means[i] = array[rng.integers(0, len(array), len(array))].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def paired_difference(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Give mean(values − baseline) over the same items, with its 95% interval."""
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    low, high = interval(differences.tolist(), seed)
    return float(differences.mean()), low, high

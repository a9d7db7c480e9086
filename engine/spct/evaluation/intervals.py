"""Bootstrap over items: 95% intervals of means and of paired differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RESAMPLES = 2000
QUANTILES = (0.025, 0.975)
# Resamples drawn at once: their counts take 8 bytes an item each.
_CHUNK = 250

FloatArray = npt.NDArray[np.float64]


def intervals(columns: FloatArray, seed: int = 0) -> FloatArray:
    """Give the 95% interval of the mean of every column, all columns resampled together.

    columns  [I, C] a value per item and quantity
    returns  [C, 2] low and high; the mean twice for fewer than two items, NaN without any

    Cost: 2 RESAMPLES I C FLOPs.
    """
    num_items, num_columns = columns.shape
    if num_items < 2:
        mean = columns[0] if num_items else np.full(num_columns, np.nan)
        return np.stack([mean, mean], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, num_columns))
    for start in range(0, RESAMPLES, _CHUNK):
        count = min(_CHUNK, RESAMPLES - start)
        drawn = rng.integers(0, num_items, (count, num_items)) + num_items * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * num_items).reshape(count, num_items)
        means[start : start + count] = times @ columns / num_items
    return np.quantile(means, QUANTILES, axis=0).T


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """Give the 95% interval of the mean of `values`, resampled with replacement; (mean, mean) for fewer than two."""
    low, high = intervals(np.asarray(values, dtype=np.float64)[:, None], seed)[0]
    return float(low), float(high)


def paired_difference(values: Sequence[float], baseline: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """Give mean(values − baseline) over the same items, with its 95% interval."""
    differences = np.asarray(values, dtype=np.float64) - np.asarray(baseline, dtype=np.float64)
    low, high = interval(differences.tolist(), seed)
    return float(differences.mean()), low, high

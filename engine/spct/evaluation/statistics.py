"""Statistics over items that can be drawn again: means, combinations, F1 and the area under the ROC curve, with bootstrap intervals.

A statistic is a function of how often every item counts: `[B, I]` weights give `[B]` values, NaN where nothing of what it needs has weight.
Its value is that at equal weights; its interval comes from weights drawn by a bootstrap over groups of items.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from spct.evaluation.intervals import QUANTILES, RESAMPLES, FloatArray

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Statistic = Callable[[FloatArray], FloatArray]

# Resamples weighed at once: their weights take 8 bytes an item each.
_CHUNK = 200


def mean(values: npt.NDArray[Any], over: BoolArray | None = None) -> Statistic:
    """Average values over items.

    values  [I], or [I, N] of N blocks, which are averaged first; NaN: the item has no value (in that block)
    over    [I] the items that count; None: all
    """
    rows = values.astype(np.float64)[:, None] if values.ndim == 1 else values.astype(np.float64)
    known = ~np.isnan(rows)
    counts = known.sum(axis=1)
    present = (counts > 0) if over is None else (counts > 0) & over
    sums = np.where(known, rows, 0.0).sum(axis=1)
    averages = np.where(present, sums / np.maximum(counts, 1), 0.0)
    indicator = present.astype(np.float64)
    return lambda weights: _divide(weights @ averages, weights @ indicator)


def combined(parts: Sequence[tuple[float, Statistic]]) -> Statistic:
    """Give the weighted mean of statistics; those without a value are left out."""

    def statistic(weights: FloatArray) -> FloatArray:
        values = np.stack([part(weights) for _, part in parts])
        shares = np.where(np.isnan(values), 0.0, np.array([share for share, _ in parts])[:, None])
        return _divide((np.nan_to_num(values) * shares).sum(axis=0), shares.sum(axis=0))

    return statistic


def total(parts: Sequence[tuple[float, Statistic]]) -> Statistic:
    """Give the sum of factor times statistic; NaN where one has no value."""

    def statistic(weights: FloatArray) -> FloatArray:
        values: FloatArray = np.sum([factor * part(weights) for factor, part in parts], axis=0)
        return values

    return statistic


def spread(parts: Sequence[Statistic], how: Callable[[FloatArray], FloatArray]) -> Statistic:
    """Tell how far statistics lie apart: `how` reduces [P, B] to [B]."""
    return lambda weights: how(np.stack([part(weights) for part in parts]))


def macro_scores(truth: IntArray, predicted: IntArray, classes: Sequence[int]) -> dict[str, Statistic]:
    """Precision, recall and F1 averaged over classes, each 0 where it is not defined; of several blocks the mean.

    truth      [I] a class
    predicted  [I, N] a class; anything else is no prediction: it misses the true class and counts for no other
    """

    def scores_of(block: int, weights: FloatArray) -> FloatArray:
        rows = []
        for c in classes:
            is_true, is_predicted = truth == c, predicted[:, block] == c
            hits = weights @ (is_true & is_predicted).astype(np.float64)
            given = weights @ is_predicted.astype(np.float64)
            wanted = weights @ is_true.astype(np.float64)
            rows.append([_ratio(hits, given), _ratio(hits, wanted), _ratio(2 * hits, given + wanted)])
        average: FloatArray = np.mean(rows, axis=0)
        return average

    def statistic(index: int) -> Statistic:
        return lambda weights: np.mean([scores_of(block, weights)[index] for block in range(predicted.shape[1])], axis=0)

    return {name: statistic(i) for i, name in enumerate(("precision", "recall", "f1"))}


def roc_auc(is_positive: BoolArray, scores: FloatArray, *, unscored_lose: bool = False, item: IntArray | None = None) -> Statistic:
    """Give the area under the ROC curve, exact with ties: the chance that a positive outscores a negative, a tie counting half.

    is_positive    [P] of points
    scores         [P, N] of N blocks, whose areas are averaged; NaN: no score
    unscored_lose  a comparison with a point without a score counts as lost; otherwise such points are left out
    item           [P] the item of every point; None: point i is item i

    Source: J. A. Hanley, B. J. McNeil, Radiology 143 (1982): the area is the Wilcoxon statistic.
    """
    owner = np.arange(len(is_positive)) if item is None else item

    def area(column: FloatArray, weights: FloatArray) -> FloatArray:
        known = np.flatnonzero(~np.isnan(column))
        known = known[np.argsort(column[known], kind="stable")]
        drawn, positive = weights[:, owner[known]], is_positive[known]
        won = np.zeros(len(weights))
        if len(known):
            starts = np.flatnonzero(np.diff(column[known], prepend=-np.inf))
            above = np.add.reduceat(drawn * positive, starts, axis=1)
            below = np.add.reduceat(drawn * ~positive, starts, axis=1)
            won = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
        if unscored_lose:
            drawn, positive = weights[:, owner], is_positive
        return _divide(won, (drawn @ positive.astype(np.float64)) * (drawn @ (~positive).astype(np.float64)))

    def statistic(weights: FloatArray) -> FloatArray:
        areas = np.stack([area(scores[:, n], weights) for n in range(scores.shape[1])])
        known = ~np.isnan(areas)
        return _divide(np.where(known, areas, 0.0).sum(axis=0), known.sum(axis=0).astype(np.float64))

    return statistic


def evaluate(
    statistics: Mapping[str, Statistic], groups: Sequence[Hashable], seed: int = 0
) -> dict[str, tuple[float, tuple[float, float]]]:
    """Give the value of every statistic and its 95% interval; those without a value are left out.

    groups  [I] items of one group are drawn together

    Cost: 2000 resamples of every statistic. Source: the percentile bootstrap, as in `intervals.py`.
    """
    ones = np.ones((1, len(groups)))
    values = {name: float(statistic(ones)[0]) for name, statistic in statistics.items()}
    names = [name for name, value in values.items() if not np.isnan(value)]
    if not names:
        return {}
    drawn = [np.stack([statistics[name](weights) for name in names]) for weights in _resampled(groups, seed)]
    bounds = np.nanquantile(np.concatenate(drawn, axis=1), QUANTILES, axis=1)
    return {name: (values[name], (float(bounds[0, i]), float(bounds[1, i]))) for i, name in enumerate(names)}


def _resampled(groups: Sequence[Hashable], seed: int) -> Iterator[FloatArray]:
    """How often every item is drawn: [B, I], until there are RESAMPLES."""
    numbers: dict[Hashable, int] = {}
    index = np.array([numbers.setdefault(group, len(numbers)) for group in groups])
    rng = np.random.default_rng(seed)
    chances = np.full(len(numbers), 1 / len(numbers))
    for start in range(0, RESAMPLES, _CHUNK):
        counts = rng.multinomial(len(numbers), chances, min(_CHUNK, RESAMPLES - start))
        yield counts[:, index].astype(np.float64)


def _divide(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """NaN where there is nothing to divide by."""
    return np.where(denominator > 0, numerator / np.where(denominator > 0, denominator, 1.0), np.nan)


def _ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
    """0 where there is nothing to divide by."""
    return numerator / np.maximum(denominator, 1e-300)

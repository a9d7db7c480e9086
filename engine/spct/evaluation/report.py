"""`accuracy.json`: accuracy by k, by how votes are counted, and by subset, with intervals, paired differences, cost and position bias.

Every curve maps k, as a string, to a fraction, averaged over the items and over all disjoint blocks of k of their samples:

    voting                 all samples with scores vote
    soft                   their expected scores vote (`spct.voting.soft`)
    meta, logprob          the half that the meta RM, or the mean log-probability, ranks highest votes
    meta@0.25, meta@0.75, logprob@0.25, logprob@0.75    other kept fractions
    meta+soft              the expected scores of the half that the meta RM ranks highest

A curve is missing where samples lack what it needs. `greedy` is one number: the accuracy of a single sample at temperature 0, averaged over
the orders of the responses (one such sample per order: rotations of one permutation); `greedy_voting` lets these samples vote.
`tokens` and `seconds` map k to what k samples of an item cost on average: generated tokens, and wall time of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spct.errors import ConfigError
from spct.evaluation.accuracy import DrawnSample, Truth
from spct.evaluation.arrays import Draws
from spct.evaluation.intervals import FloatArray, intervals
from spct.evaluation.position import position_report

KEPT_FRACTION = 0.5
OTHER_FRACTIONS = (0.25, 0.75)

Columns = dict[tuple[str, int], FloatArray]


def counts(truths: Sequence[Truth]) -> dict[str, Any]:
    """Return what a dry run reports: items, and items by subset."""
    subsets = {name: {"items": sum(t.subset == name for t in truths)} for name in sorted({t.subset for t in truths})}
    return {"items": len(truths), "subsets": subsets}


def accuracy_report(
    truths: Sequence[Truth],
    samples: Sequence[Sequence[DrawnSample]],
    ks: Sequence[int],
    score_range: tuple[int, int],
    *,
    greedy: Sequence[Sequence[DrawnSample]] | None = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Compute the report of `truths` and the samples drawn for each, in the same order.

    ks       numbers of votes, none above the number of samples of any item
    greedy   for each item, one sample at temperature 0 per order
    seconds  wall time in which all of `samples` were drawn

    Raises: ConfigError if a k is larger than the number of samples, or there is no item.
    """
    if not truths:
        raise ConfigError("eval: expected at least one item, got none")
    fewest = min(map(len, samples))
    ks = sorted(set(ks))
    if not ks or ks[0] < 1 or ks[-1] > fewest:
        raise ConfigError(f"samples: expected every k between 1 and {fewest} (samples drawn per item), got {ks}")
    middle = sum(score_range) / 2
    draws = Draws.of(truths, samples, middle)
    columns = columns_of(draws, ks)
    singles = {} if greedy is None else greedy_columns(truths, greedy, middle)
    per_sample = None if seconds is None else seconds / sum(map(len, samples))

    def section(chosen: Sequence[int]) -> dict[str, Any]:
        rows = np.asarray(chosen)
        own = {name: column[rows] for name, column in columns.items()}
        return {
            "items": len(chosen),
            "chance": sum(truths[i].chance for i in chosen) / len(chosen),
            "valid_rate": float(draws.is_valid[rows].mean()),
            **_accuracies(own, {name: column[rows] for name, column in singles.items()}, ks),
            **_costs(float(draws.num_tokens[rows].mean()), per_sample, ks),
            "position": position_report(draws.take(rows)),
        }

    names = sorted({t.subset for t in truths})
    subsets = {name: section([i for i, t in enumerate(truths) if t.subset == name]) for name in names}
    return {**section(range(len(truths))), "subsets": subsets}


def curve_names(report: Mapping[str, Any]) -> list[str]:
    """The curves of a report or of one of its subsets, `voting` first."""
    return [name for name in report["intervals"] if isinstance(report["intervals"][name], dict)]


def columns_of(draws: Draws, ks: Sequence[int]) -> Columns:
    """Accuracy of every item for every curve and k."""
    filters = {name: worth for name, worth in (("meta", draws.meta), ("logprob", draws.logprob)) if not np.isnan(worth).all()}
    has_soft = bool((~np.isnan(draws.expected)).any())
    columns: Columns = {}
    for k in ks:
        columns["voting", k] = draws.accuracy(k)
        columns["strict", k] = draws.accuracy(k, strict=True)
        if has_soft:
            columns["soft", k] = draws.accuracy(k, soft=True)
        for name, worth in filters.items():
            columns[name, k] = draws.accuracy(k, worth=worth, fraction=KEPT_FRACTION)
            for fraction in OTHER_FRACTIONS:
                columns[f"{name}@{fraction}", k] = draws.accuracy(k, worth=worth, fraction=fraction)
        if has_soft and "meta" in filters:
            columns["meta+soft", k] = draws.accuracy(k, soft=True, worth=draws.meta, fraction=KEPT_FRACTION)
    return columns


def greedy_columns(truths: Sequence[Truth], greedy: Sequence[Sequence[DrawnSample]], middle: float) -> dict[str, FloatArray]:
    """Accuracy of every item by single samples at temperature 0 ("greedy"), and by the vote of those of all orders ("greedy_voting")."""
    single, voted = np.empty(len(truths)), np.empty(len(truths))
    for i, (truth, row) in enumerate(zip(truths, greedy, strict=True)):
        draws = Draws.of([truth], [row], middle)
        single[i], voted[i] = draws.accuracy(1)[0], draws.accuracy(len(row))[0]
    return {"greedy": single, "greedy_voting": voted}


def _accuracies(columns: Columns, singles: Mapping[str, FloatArray], ks: Sequence[int]) -> dict[str, Any]:
    """Means, their intervals and the paired differences, all from one set of resamples."""
    pairs = _pairs(columns, singles, ks)
    values = [*columns.values(), *singles.values(), *pairs.values()]
    bounds = [[round(float(x), 5) for x in pair] for pair in intervals(np.stack(values, axis=1))]
    found: dict[str, Any] = {name: float(column.mean()) for name, column in singles.items()}
    ranges: dict[str, Any] = dict(zip(singles, bounds[len(columns) :], strict=False))
    for (name, k), column, bound in zip(columns, columns.values(), bounds, strict=False):
        found.setdefault(name, {})[str(k)] = float(column.mean())
        ranges.setdefault(name, {})[str(k)] = bound
    paired: dict[str, Any] = {}
    for (name, key), column, bound in zip(pairs, pairs.values(), bounds[len(columns) + len(singles) :], strict=True):
        row = [round(float(column.mean()), 5), *bound]
        if key is None:
            paired[name] = row
        else:
            paired.setdefault(name, {})[str(key)] = row
    return {**found, "intervals": ranges, "paired": paired}


def _pairs(columns: Columns, singles: Mapping[str, FloatArray], ks: Sequence[int]) -> dict[tuple[str, int | None], FloatArray]:
    """Differences item by item: between curves at each k, and between ks of `voting`."""
    names = list(dict.fromkeys(name for name, _ in columns if name not in ("voting", "strict")))
    pairs: dict[tuple[str, int | None], FloatArray] = {}
    for name in names:
        pairs.update({(f"{name}-voting", k): columns[name, k] - columns["voting", k] for k in ks})
    if "meta" in names and "logprob" in names:
        pairs.update({("meta-logprob", k): columns["meta", k] - columns["logprob", k] for k in ks})
    if singles:
        pairs.update({("voting-greedy", k): columns["voting", k] - singles["greedy"] for k in ks})
    steps = [*zip(ks[1:], ks, strict=False), *([(ks[-1], ks[0])] if len(ks) > 1 else [])]
    pairs.update({(f"voting{high}-voting{low}", None): columns["voting", high] - columns["voting", low] for high, low in steps})
    quarter = ks[-1] // 4
    if "meta" in names and quarter in ks and ks[-1] == 4 * quarter:
        pairs[f"meta{quarter}-voting{ks[-1]}", None] = columns["meta", quarter] - columns["voting", ks[-1]]
    return pairs


def _costs(tokens: float, seconds: float | None, ks: Sequence[int]) -> dict[str, Any]:
    costs: dict[str, Any] = {"tokens": {str(k): round(k * tokens, 2) for k in ks}}
    if seconds is not None:
        costs["seconds"] = {str(k): round(k * seconds, 6) for k in ks}
    return costs

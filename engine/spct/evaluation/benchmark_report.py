"""What `accuracy.json` says of benchmarks beside the general accuracy: each one's own metrics, ties, abstentions, spread of subsets.

    benchmarks     name → items; groups: of items that one row made or that only count together; metrics: metric → k → value; intervals
                   likewise; meta, meta_intervals: the same of the half of the votes that the meta RM ranks highest; truth_ties: items
                   that the annotators call a tie; tied: k → share of blocks with several responses that end in a tie at the top;
                   abstained: k → share of blocks without a vote
    spread         bias between domains: how far the subsets' accuracies lie apart; range (highest − lowest) and stdev, k → value, and
                   their intervals. Small subsets lie apart by chance too: compare judges on the same items

k is a string, values are fractions, intervals 95% by a bootstrap over groups of items.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from spct.errors import ConfigError
from spct.evaluation.accuracy import DrawnSample, Truth
from spct.evaluation.arrays import Draws
from spct.evaluation.benchmark_metrics import METRICS
from spct.evaluation.benchmark_votes import Votes
from spct.evaluation.datasets import BenchmarkItem, truth_of
from spct.evaluation.statistics import Statistic, evaluate, mean, spread

KEPT_FRACTION = 0.5


def truths_of(items: Sequence[BenchmarkItem]) -> list[Truth]:
    """What is right for every item; with items of several benchmarks, subsets are named benchmark/subset."""
    several = len({item.benchmark for item in items}) > 1
    truths = [truth_of(item) for item in items]
    if not several:
        return truths
    return [
        Truth(f"{item.benchmark}/{truth.subset}", truth.num_responses, truth.best, truth.good)
        for item, truth in zip(items, truths, strict=True)
    ]


def benchmark_report(
    items: Sequence[BenchmarkItem], samples: Sequence[Sequence[DrawnSample]], ks: Sequence[int], score_range: tuple[int, int]
) -> dict[str, Any]:
    """Compute the keys `benchmarks` and `spread` of a report.

    samples  of each item, in the order of `items`
    ks       numbers of votes, none above the number of samples of any item

    Raises: ConfigError if there is no item, or a k has no block of samples.
    """
    fewest = min(map(len, samples), default=0)
    if not items or not ks or min(ks) < 1 or max(ks) > fewest:
        raise ConfigError(f"samples: expected items, and every k from 1 to {fewest} (samples drawn of each), got k = {list(ks)}")
    draws = Draws.of(truths_of(items), samples, sum(score_range) / 2)
    groups = [(item.benchmark, item.subset, item.group) for item in items]
    benchmarks = {}
    for name in dict.fromkeys(item.benchmark for item in items):
        rows = np.array([i for i, item in enumerate(items) if item.benchmark == name])
        benchmarks[name] = _own(name, [items[i] for i in rows], draws.take(rows), [groups[i] for i in rows], sorted(set(ks)))
    names = np.array([f"{item.benchmark}/{item.subset}" for item in items])
    report: dict[str, Any] = {"benchmarks": benchmarks}
    return {**report, "spread": _spread(names, draws, groups, sorted(set(ks)))} if len(set(names)) > 1 else report


def _own(name: str, items: Sequence[BenchmarkItem], draws: Draws, groups: Sequence[Hashable], ks: Sequence[int]) -> dict[str, Any]:
    counted = {"items": len(items), "groups": len(set(groups)), "truth_ties": sum(item.is_tie for item in items)}
    report: dict[str, Any] = {**counted, "metrics": {}, "intervals": {}}
    several = np.array([len(item.responses) > 1 for item in items])
    for k in ks:
        votes = Votes.of(items, draws, k)
        silent = np.isnan(votes.scores[..., 0])
        top = np.nan_to_num(votes.scores, nan=-np.inf)
        tied = ((top == top.max(axis=2, keepdims=True)).sum(axis=2) > 1) & ~silent
        report.setdefault("abstained", {})[str(k)] = float(silent.mean())
        if several.any():
            report.setdefault("tied", {})[str(k)] = float(tied[several].mean())
        _enter(report, "metrics", "intervals", str(k), METRICS[name](votes), groups)
        if not np.isnan(draws.meta).all():
            guided = Votes.of(items, draws, k, worth=draws.meta, fraction=KEPT_FRACTION)
            _enter(report, "meta", "meta_intervals", str(k), METRICS[name](guided), groups)
    return report


def _spread(names: Any, draws: Draws, groups: Sequence[Hashable], ks: Sequence[int]) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for k in ks:
        values = draws.accuracy(k)
        parts = [mean(values, names == name) for name in dict.fromkeys(names.tolist())]
        statistics: dict[str, Statistic] = {
            "range": spread(parts, lambda rows: np.nanmax(rows, axis=0) - np.nanmin(rows, axis=0)),
            "stdev": spread(parts, lambda rows: np.nanstd(rows, axis=0)),
        }
        for measure, (value, bounds) in evaluate(statistics, groups).items():
            report.setdefault(measure, {})[str(k)] = value
            report.setdefault("intervals", {}).setdefault(measure, {})[str(k)] = _rounded(bounds)
    return report


def _enter(
    report: dict[str, Any], values: str, intervals: str, k: str, statistics: Mapping[str, Statistic], groups: Sequence[Hashable]
) -> None:
    for metric, (value, bounds) in evaluate(statistics, groups).items():
        report.setdefault(values, {}).setdefault(metric, {})[k] = value
        report.setdefault(intervals, {}).setdefault(metric, {})[k] = _rounded(bounds)


def _rounded(bounds: tuple[float, float]) -> list[float]:
    return [round(bound, 5) for bound in bounds]

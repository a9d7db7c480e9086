"""`accuracy.json`: accuracy by k, filter and subset, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from spct.errors import ConfigError
from spct.evaluation.accuracy import DrawnSample, Truth, item_accuracy, keep_best
from spct.evaluation.intervals import interval, paired_difference

Rule = Callable[[Sequence[DrawnSample]], Sequence[DrawnSample]]
KEPT_FRACTION = 0.5


def rules(samples: Sequence[Sequence[DrawnSample]]) -> dict[str, Rule]:
    """Return the filters that these samples allow: all vote; the more probable half; the half that the meta head trusts."""
    found: dict[str, Rule] = {"voting": lambda block: block}
    drawn = [s for row in samples for s in row]
    if any(s.logprob is not None for s in drawn):
        found["logprob"] = lambda block: keep_best(block, lambda s: s.logprob, KEPT_FRACTION)
    if any(s.meta_score is not None for s in drawn):
        found["meta"] = lambda block: keep_best(block, lambda s: s.meta_score, KEPT_FRACTION)
    return found


def counts(truths: Sequence[Truth]) -> dict[str, Any]:
    """Return what a dry run reports: items, and items by subset."""
    subsets = {name: {"items": sum(t.subset == name for t in truths)} for name in sorted({t.subset for t in truths})}
    return {"items": len(truths), "subsets": subsets}


def accuracy_report(
    truths: Sequence[Truth], samples: Sequence[Sequence[DrawnSample]], ks: Sequence[int], score_range: tuple[int, int]
) -> dict[str, Any]:
    """Compute the report of `truths` and the samples drawn for each, in the same order.

    Raises: ConfigError if a k is larger than the number of samples, or there is no item.
    """
    if not truths:
        raise ConfigError("eval: expected at least one item, got none")
    fewest = min(map(len, samples))
    if not ks or min(ks) < 1 or max(ks) > fewest:
        raise ConfigError(f"samples: expected every k between 1 and {fewest} (samples drawn per item), got {list(ks)}")
    available = rules(samples)
    middle = sum(score_range) / 2
    whole = _section(truths, samples, ks, middle, available)
    subsets = {}
    for name in sorted({t.subset for t in truths}):
        chosen = [i for i, t in enumerate(truths) if t.subset == name]
        subsets[name] = _section([truths[i] for i in chosen], [samples[i] for i in chosen], ks, middle, available)
    return {**whole, "subsets": subsets}


def _section(
    truths: Sequence[Truth], samples: Sequence[Sequence[DrawnSample]], ks: Sequence[int], middle: float, available: dict[str, Rule]
) -> dict[str, Any]:
    section: dict[str, Any] = {"items": len(truths), "chance": sum(t.chance for t in truths) / len(truths)}
    drawn = [s for row in samples for s in row]
    section["valid_rate"] = sum(s.scores is not None for s in drawn) / len(drawn)
    per_item: dict[tuple[str, int], list[float]] = {}
    for name, rule in available.items():
        for k in ks:
            per_item[name, k] = [item_accuracy(t, s, k, middle, choose=rule) for t, s in zip(truths, samples, strict=True)]
        section[name] = {str(k): _mean(per_item[name, k]) for k in ks}
    section["strict"] = {
        str(k): _mean([item_accuracy(t, s, k, middle, strict=True) for t, s in zip(truths, samples, strict=True)]) for k in ks
    }
    section["intervals"] = {name: {str(k): list(interval(per_item[name, k])) for k in ks} for name in available}
    section["paired"] = _paired(per_item, [name for name in available if name != "voting"], ks)
    return section


def _paired(per_item: dict[tuple[str, int], list[float]], filters: Sequence[str], ks: Sequence[int]) -> dict[str, Any]:
    paired: dict[str, Any] = {}
    for name in filters:
        paired[f"{name}-voting"] = {str(k): list(paired_difference(per_item[name, k], per_item["voting", k])) for k in ks}
    low, high = min(ks), max(ks)
    if low != high:
        paired[f"voting{high}-voting{low}"] = list(paired_difference(per_item["voting", high], per_item["voting", low]))
    return paired


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

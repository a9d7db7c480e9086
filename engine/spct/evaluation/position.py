"""Position bias: whether it matters at which place the best response was shown, and whether other orders get other verdicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from spct.evaluation.arrays import BoolArray, Draws, IntArray
from spct.evaluation.intervals import FloatArray, intervals


def position_report(draws: Draws) -> dict[str, Any]:
    """Report single samples by the place of the best response, and how often two samples agree.

    by_place    number of responses → for each place of the best one: {"accuracy", "interval", "items"}
    first-last  accuracy with the best response shown first minus shown last, same items: [difference, low, high]
    agreement   share of pairs of an item's samples that place the same response above all others: `between_orders`, `within_order`, and
                their difference where an item has pairs of both kinds ([difference, low, high]; below 0: the order matters)

    Items with one response, or without exactly one best, have no such places and are left out; what can't be told (no such pairs) is
    missing.
    """
    several = np.flatnonzero((draws.num_responses > 1) & (draws.best >= 0))
    if not len(several):
        return {"by_place": {}}
    credits, place = draws.credits(), _places(draws)
    by_place: dict[str, list[dict[str, Any]]] = {}
    for n in np.unique(draws.num_responses[several]).tolist():
        items = several[draws.num_responses[several] == n]
        rows = [_mean_where(credits[items], place[items] == p) for p in range(n)]
        by_place[str(n)] = [_cell(row) for row in rows]
    report: dict[str, Any] = {"by_place": by_place}
    last = (draws.num_responses - 1)[:, None]
    both = [i for i in several if (place[i] == 0).any() and (place[i] == last[i]).any()]
    if both:
        first = _mean_where(credits[both], place[both] == 0)
        report["first-last"] = _with_interval(first - _mean_where(credits[both], place[both] == last[both]))
    agreement = _agreement(draws, several)
    return {**report, "agreement": agreement} if agreement else report


def _places(draws: Draws) -> FloatArray:
    """Where the best response was shown: [I, S]."""
    shown: FloatArray = (draws.order == draws.best[:, None, None]).argmax(axis=2).astype(np.float64)
    return shown


def _agreement(draws: Draws, items: IntArray) -> Mapping[str, Any]:
    winners = draws.winners()[items]
    between, within = [], []
    for row, orders in zip(winners, draws.order[items], strict=True):
        _, kind = np.unique(orders, axis=0, return_inverse=True)
        # counts[o, w]: samples with order o and winner w; totals[o] has those without a winner too, who agree with nobody.
        counts = np.zeros((kind.max() + 1, orders.shape[1]))
        np.add.at(counts, (kind.ravel()[row >= 0], row[row >= 0]), 1)
        totals = np.bincount(kind.ravel())
        same, pairs = _pairs(counts).sum(), _pairs(totals).sum()
        all_same, all_pairs = _pairs(counts.sum(axis=0)).sum(), _pairs(np.array(totals.sum()))
        within.append(same / pairs if pairs else np.nan)
        between.append((all_same - same) / (all_pairs - pairs) if all_pairs > pairs else np.nan)
    found = {"between_orders": np.array(between), "within_order": np.array(within)}
    report: dict[str, Any] = {name: float(np.nanmean(values)) for name, values in found.items() if not np.isnan(values).all()}
    difference = found["between_orders"] - found["within_order"]
    if not np.isnan(difference).all():
        report["between-within"] = _with_interval(difference[~np.isnan(difference)])
    return report


def _pairs(counts: npt.NDArray[Any]) -> FloatArray:
    pairs: FloatArray = counts * (counts - 1) / 2.0
    return pairs


def _mean_where(values: FloatArray, mask: BoolArray) -> FloatArray:
    """Mean of the masked values of every row that has any."""
    counts = mask.sum(axis=1)
    means: FloatArray = (np.where(mask, values, 0.0).sum(axis=1))[counts > 0] / counts[counts > 0]
    return means


def _cell(values: FloatArray) -> dict[str, Any]:
    """What is reported of one place; None where nothing was ever shown there (few samples)."""
    mean, *bounds = _with_interval(values) if len(values) else [None, None, None]
    return {"accuracy": mean, "interval": bounds, "items": len(values)}


def _with_interval(values: FloatArray) -> list[float]:
    low, high = intervals(values[:, None])[0]
    return [round(float(x), 5) for x in (values.mean(), low, high)]

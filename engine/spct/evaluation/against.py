"""One evaluation set against an earlier one of the same items: differences item by item, which vary far less than the two accuracies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spct.evaluation.accuracy import DrawnSample, Truth
from spct.evaluation.arrays import Draws
from spct.evaluation.intervals import intervals
from spct.evaluation.report import columns_of, greedy_columns


@dataclass(frozen=True, slots=True)
class Run:
    """What a run drew of every item.

    sampled  the samples that vote
    greedy   one sample at temperature 0 per order; None: not drawn
    """

    sampled: Sequence[Sequence[DrawnSample]]
    greedy: Sequence[Sequence[DrawnSample]] | None = None


def against(truths: Sequence[Truth], ours: Run, theirs: Run, ks: Sequence[int], score_range: tuple[int, int]) -> dict[str, Any]:
    """Give ours − theirs with 95% intervals (bootstrap over items) for all that both runs have.

    ks       numbers of votes; those above what either run drew of an item are left out
    returns  every curve's name to k, as a string, to [difference, low, high]; "greedy" and "greedy_voting" to such a row
    """
    middle = sum(score_range) / 2
    fewest = min(len(row) for run in (ours, theirs) for row in run.sampled)
    shared = [k for k in sorted(set(ks)) if k <= fewest]
    one, other = (columns_of(Draws.of(truths, run.sampled, middle), shared) for run in (ours, theirs))
    differences: dict[tuple[str, int | None], Any] = {name: one[name] - other[name] for name in one if name in other}
    if ours.greedy is not None and theirs.greedy is not None:
        first, second = (greedy_columns(truths, greedy, middle) for greedy in (ours.greedy, theirs.greedy))
        differences |= {(name, None): first[name] - second[name] for name in first}
    bounds = intervals(np.stack(list(differences.values()), axis=1))
    found: dict[str, Any] = {}
    for (name, k), column, bound in zip(differences, differences.values(), bounds, strict=True):
        row = [round(float(x), 5) for x in (column.mean(), *bound)]
        if k is None:
            found[name] = row
        else:
            found.setdefault(name, {})[str(k)] = row
    return found

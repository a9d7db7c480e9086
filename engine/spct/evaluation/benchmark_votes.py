"""The outcome of votes as the benchmarks' own metrics need it: credit, scores and, of two responses, each order apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spct.evaluation.arrays import BoolArray, Draws
from spct.evaluation.datasets import BenchmarkItem
from spct.evaluation.intervals import FloatArray


@dataclass(frozen=True, slots=True)
class Votes:
    """The outcome of every block of k votes, of the items of one benchmark.

    items   I of them
    credit  [I, N] from 0 to 1, a tie at the top shared; strict: only where nothing wrong is at the top
    scores  [I, N, R] mean over the block's votes; NaN past an item's responses and without a vote
    by_order  [I, N, 2, R] the same, of the votes that showed response 0 first and of those that showed 1 first
    shown   [I, N, 2] whether any sample, readable or not, was shown in that order
    """

    items: Sequence[BenchmarkItem]
    credit: FloatArray
    strict: FloatArray
    scores: FloatArray
    by_order: FloatArray
    shown: BoolArray

    @classmethod
    def of(cls, items: Sequence[BenchmarkItem], draws: Draws, k: int, *, worth: FloatArray | None = None, fraction: float = 1.0) -> Votes:
        """Lay out the votes of the items' samples, those that a filter keeps.

        draws  of these items, in their order
        worth, fraction  as `Draws.blocks`
        """
        votes, keep = draws.blocks(k, worth=worth, fraction=fraction)
        first = draws.first_shown(k)
        halves = [keep & (first == which) for which in (0, 1)]
        return cls(
            items,
            draws.block_credits(k, worth=worth, fraction=fraction),
            draws.block_credits(k, worth=worth, fraction=fraction, strict=True),
            _means(votes, keep),
            np.stack([_means(votes, half) for half in halves], axis=2),
            np.stack([(first == which).any(axis=2) for which in (0, 1)], axis=2),
        )

    def where(self, chosen: Callable[[BenchmarkItem], bool]) -> BoolArray:
        """Mask of the items that are chosen: [I]."""
        return np.array([chosen(item) for item in self.items], dtype=bool)

    def cell(self, name: str) -> BoolArray:
        """Mask of the items of a cell of the benchmark's table: [I]."""
        return self.where(lambda item: item.cell == name)

    def subset(self, name: str) -> BoolArray:
        """Mask of the items of a subset: [I]."""
        return self.where(lambda item: item.subset == name)

    @property
    def subsets(self) -> list[str]:
        """The subsets, in the order in which they first appear."""
        return list(dict.fromkeys(item.subset for item in self.items))

    @property
    def good(self) -> BoolArray:
        """[I, R]: the response is acceptable."""
        mask = np.zeros((len(self.items), self.scores.shape[2]), dtype=bool)
        for i, item in enumerate(self.items):
            mask[i, list(item.good)] = True
        return mask

    def decisions(self) -> tuple[FloatArray, FloatArray]:
        """Which of two responses is preferred, in each order: [I, N], 1 the right one, −1 the wrong one, 0 a tie, NaN no vote.

        Where a block shows only one order, the other is no decision of the judge's: see `shown`.
        """
        right = self.good.argmax(axis=1)
        by_right = np.where(
            right[:, None, None] == 0, self.by_order[..., 0] - self.by_order[..., 1], self.by_order[..., 1] - self.by_order[..., 0]
        )
        signs: FloatArray = np.sign(by_right)
        return signs[..., 0], signs[..., 1]


def _means(votes: FloatArray, keep: BoolArray) -> FloatArray:
    counts = keep.sum(axis=2)[..., None]
    sums = np.where(keep[..., None], np.nan_to_num(votes), 0.0).sum(axis=2)
    # NaN past an item's responses stays NaN: no vote has a score there.
    scored = (keep[..., None] & ~np.isnan(votes)).any(axis=2)
    return np.where(scored, sums / np.maximum(counts, 1), np.nan)

"""The samples of an evaluation as arrays, and accuracy over blocks of them: `accuracy.item_accuracy` for all items at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from spct.evaluation.accuracy import DrawnSample, Truth
from spct.evaluation.intervals import FloatArray

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Draws:
    """S samples of I items with at most R responses.

    num_responses  [I]
    best           [I] index of the right response; -1: a single bad response, or not exactly one right
    right          [I, R] the response is acceptable
    middle         of the template's score range
    scores         [I, S, R] in the request's order; NaN past an item's responses and in samples without scores
    expected       [I, S, R] expected scores, likewise; all NaN where they were not looked up
    meta, logprob  [I, S] what a filter sorts by; NaN where there is none
    order          [I, S, R] order[p]: the response shown at place p; -1 past an item's responses
    num_tokens     [I, S]
    """

    num_responses: IntArray
    best: IntArray
    right: BoolArray
    middle: float
    scores: FloatArray
    expected: FloatArray
    meta: FloatArray
    logprob: FloatArray
    order: IntArray
    num_tokens: IntArray

    @classmethod
    def of(cls, truths: Sequence[Truth], samples: Sequence[Sequence[DrawnSample]], middle: float) -> Draws:
        """Lay out the samples drawn for `truths`, as many of each item as the one with the fewest has."""
        shape = len(truths), min(map(len, samples)), max(t.num_responses for t in truths)
        scores, expected = np.full(shape, np.nan), np.full(shape, np.nan)
        order = np.full(shape, -1, np.int64)
        right = np.zeros((shape[0], shape[2]), dtype=bool)
        meta, logprob, tokens = np.full(shape[:2], np.nan), np.full(shape[:2], np.nan), np.zeros(shape[:2], np.int64)
        for i, (truth, row) in enumerate(zip(truths, samples, strict=True)):
            n = truth.num_responses
            right[i, list(truth.acceptable)] = True
            for s, sample in enumerate(row[: shape[1]]):
                if sample.scores is not None:
                    scores[i, s, :n] = sample.scores
                    if sample.expected is not None:
                        expected[i, s, :n] = sample.expected
                order[i, s, :n] = range(n) if sample.order is None else sample.order
                meta[i, s] = np.nan if sample.meta_score is None else sample.meta_score
                logprob[i, s] = np.nan if sample.logprob is None else sample.logprob
                tokens[i, s] = sample.num_tokens
        counts = np.array([t.num_responses for t in truths], np.int64)
        best = np.array([-1 if t.best is None else t.best for t in truths], np.int64)
        return cls(counts, best, right, middle, scores, expected, meta, logprob, order, tokens)

    def take(self, rows: IntArray) -> Draws:
        """The same of some items only; `rows` [J] are their indices."""
        arrays = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "middle"}
        return replace(self, **arrays)

    @property
    def is_valid(self) -> BoolArray:
        """[I, S]: the sample has scores."""
        valid: BoolArray = ~np.isnan(self.scores[..., 0])
        return valid

    def accuracy(
        self,
        k: int,
        *,
        soft: bool = False,
        worth: FloatArray | None = None,
        fraction: float = 1.0,
        strict: bool = False,
    ) -> FloatArray:
        """Average the credit of every item over all disjoint blocks of k of its samples: [I].

        soft      expected scores vote
        worth     [I, S] of each block, only the `fraction` of the samples with scores votes that has the highest; ties to the lower index
        strict    a tie counts as wrong
        """
        credits = self.block_credits(k, soft=soft, worth=worth, fraction=fraction, strict=strict)
        accuracy: FloatArray = credits.mean(axis=1)
        return accuracy

    def block_credits(
        self,
        k: int,
        *,
        soft: bool = False,
        worth: FloatArray | None = None,
        fraction: float = 1.0,
        strict: bool = False,
    ) -> FloatArray:
        """The credit of every item in each of the N disjoint blocks of k of its samples: [I, N]; arguments as of `accuracy`."""
        votes, keep = self.blocks(k, soft=soft, worth=worth, fraction=fraction)
        totals = np.where(keep[..., None], np.nan_to_num(votes), 0.0).sum(axis=2)
        return self._credit(totals, keep.sum(axis=2), strict)

    def blocks(self, k: int, *, soft: bool = False, worth: FloatArray | None = None, fraction: float = 1.0) -> tuple[FloatArray, BoolArray]:
        """Cut the samples into N disjoint blocks: their scores [I, N, k, R], and which of them vote [I, N, k]."""
        num_blocks = self.scores.shape[1] // k
        votes = (self.expected if soft else self.scores)[:, : num_blocks * k].reshape(len(self.best), num_blocks, k, -1)
        keep = ~np.isnan(votes[..., 0])
        if worth is not None:
            keep = _keep_best(keep, worth[:, : num_blocks * k].reshape(keep.shape), fraction)
        return votes, keep

    def first_shown(self, k: int) -> IntArray:
        """The response that each sample of each block was shown first: [I, N, k]."""
        num_blocks = self.order.shape[1] // k
        return self.order[:, : num_blocks * k, 0].reshape(len(self.best), num_blocks, k)

    def credits(self) -> FloatArray:
        """The credit of every sample alone: [I, S]."""
        return self._credit(np.nan_to_num(self.scores), self.is_valid.astype(np.int64), False)

    def winners(self) -> IntArray:
        """The response that each sample places above all others: [I, S]; -1 on a tie and without scores."""
        shown = np.where(np.isnan(self.scores), -np.inf, self.scores)
        top = shown.max(axis=2, keepdims=True)
        alone = self.is_valid & ((shown == top).sum(axis=2) == 1)
        return np.where(alone, shown.argmax(axis=2), -1)

    def _credit(self, totals: FloatArray, num_votes: IntArray, strict: bool) -> FloatArray:
        """Credit of outcomes: totals [I, B, R] of num_votes [I, B] votes each."""
        exists = np.arange(totals.shape[2]) < self.num_responses[:, None]
        ranked = np.where(exists[:, None, :], totals, -np.inf)
        is_top = ranked == ranked.max(axis=2, keepdims=True)
        num_top = is_top.sum(axis=2)
        is_tie = ~self.right.any(axis=1, keepdims=True)
        share = (is_top & self.right[:, None, :]).sum(axis=2) / num_top
        share = (share == 1).astype(np.float64) if strict else share
        share = np.where(is_tie, num_top == self.num_responses[:, None], share)
        mean = totals[..., 0] / np.maximum(num_votes, 1)
        single = np.where(is_tie, mean < self.middle, mean > self.middle)
        credit = np.where((self.num_responses == 1)[:, None], single, share)
        return np.where(num_votes > 0, credit, 0.0)


def _keep_best(valid: BoolArray, worth: FloatArray, fraction: float) -> BoolArray:
    """Of each block (last axis), the fraction of the valid samples with the highest worth: at least one, ties to the lower index."""
    lowest = np.finfo(np.float64).min
    ranked = np.where(valid, np.where(np.isfinite(worth), worth, lowest), -np.inf)
    place = np.argsort(np.argsort(-ranked, axis=-1, kind="stable"), axis=-1, kind="stable")
    num_valid = valid.sum(axis=-1)
    num_kept = np.minimum(num_valid, np.maximum(1, np.ceil(fraction * num_valid - 1e-9)))
    kept: BoolArray = valid & (place < num_kept[..., None])
    return kept

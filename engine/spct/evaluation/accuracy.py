"""Accuracy of a judge against k: how often the votes of k samples name the right response.

Accuracy at k averages over all disjoint blocks of k of the drawn samples. A block without a vote counts 0; a tie among m counts 1/m
if the right response is in it (`strict` counts it as wrong). An item with one response is right when its mean score lies on the right
side of the template's middle; the middle itself is wrong. Where several responses are acceptable, a tie counts the share of them in it
(`strict`: 1 if nothing else is in it); where the annotators call it a tie, only a tie of all responses is right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Scores = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """What is right for one item.

    subset         a domain or subset to report apart
    num_responses  1 or more
    best           index of the right response; with one response 0 if it is good, None if it is bad; None where not exactly one is right
    good           indices of all acceptable responses; None: `best` alone. Several responses and none good: a tie is right
    """

    subset: str
    num_responses: int
    best: int | None
    good: tuple[int, ...] | None = None

    @property
    def acceptable(self) -> tuple[int, ...]:
        """Indices of the acceptable responses."""
        return self.good if self.good is not None else () if self.best is None else (self.best,)

    @property
    def chance(self) -> float:
        """Accuracy of a judge that draws a response at random; with one response, good or bad."""
        return len(self.acceptable) / self.num_responses if self.num_responses > 1 else 0.5


@dataclass(frozen=True, slots=True)
class DrawnSample:
    """A sample as far as an evaluation needs it.

    scores               in the request's order; None: no vote
    meta_score, logprob  what a filter may sort by
    expected             expected scores in the request's order, where they were looked up
    order                order[p] is the index of the response shown at place p; None: as given
    num_tokens           generated
    """

    scores: Scores | None
    meta_score: float | None = None
    logprob: float | None = None
    expected: tuple[float, ...] | None = None
    order: tuple[int, ...] | None = None
    num_tokens: int = 0


def credit(truth: Truth, totals: Sequence[float] | None, middle: float, *, strict: bool = False) -> float:
    """Give what one outcome counts, from 0 to 1.

    totals  the mean (or sum) of the scores per response; None without a vote. With one response it must be a mean
    middle  of the template's score range
    """
    if totals is None:
        return 0.0
    if truth.num_responses == 1:
        return float(totals[0] > middle) if truth.acceptable else float(totals[0] < middle)
    top = max(totals)
    winners = {i for i, total in enumerate(totals) if total == top}
    if not truth.acceptable:
        return float(len(winners) == len(totals))
    share = len(winners.intersection(truth.acceptable)) / len(winners)
    return float(share == 1) if strict else share


def mean_scores(samples: Sequence[DrawnSample]) -> tuple[float, ...] | None:
    """Average the scores of the samples that voted, per response; None if none did."""
    votes = [s.scores for s in samples if s.scores is not None]
    if not votes:
        return None
    return tuple(sum(column) / len(votes) for column in zip(*votes, strict=True))


def keep_best(samples: Sequence[DrawnSample], by: Callable[[DrawnSample], float | None], fraction: float) -> list[DrawnSample]:
    """Keep max(1, ceil(fraction · parsed − 1e-9)) of the parsed samples with the highest `by`; ties to the lower index."""
    parsed = [s for s in samples if s.scores is not None]
    if not parsed:
        return []
    ranked = sorted(range(len(parsed)), key=lambda i: (-(value if (value := by(parsed[i])) is not None else -math.inf), i))
    kept = sorted(ranked[: max(1, math.ceil(fraction * len(parsed) - 1e-9))])
    return [parsed[i] for i in kept]


def item_accuracy(
    truth: Truth,
    samples: Sequence[DrawnSample],
    k: int,
    middle: float,
    *,
    choose: Callable[[Sequence[DrawnSample]], Sequence[DrawnSample]] = lambda block: block,
    strict: bool = False,
) -> float:
    """Average the credit of one item over all disjoint blocks of k of its samples.

    choose  the filter: picks from a block the samples that vote
    """
    blocks = [samples[start : start + k] for start in range(0, len(samples) - k + 1, k)]
    return sum(credit(truth, mean_scores(choose(block)), middle, strict=strict) for block in blocks) / len(blocks)

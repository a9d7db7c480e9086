"""When a sample is right: Eq. 10 of Self-Principled Critique Tuning (arXiv 2504.02495).

With several responses the best one must have a strictly higher score than every other; a tie is wrong. With one response the score
must lie on its side of the template's middle, which for the paper's range 0..1 is equality with the truth; the middle itself is wrong.
What could not be parsed is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

from spct.errors import InputError


def is_correct(scores: Sequence[float] | None, best: int | None, middle: float) -> bool:
    """Tell whether the scores of one sample agree with the truth.

    scores  one per response, in the request's order; None where the sample has none (unparsable, truncated)
    best    index of the right response; with one response 0 if it is good, None if it is bad
    middle  of the template's score range, see `middle_of`

    Raises: InputError if `best` is no response of these scores.
    """
    if scores is None:
        return False
    if len(scores) == 1 and best in (0, None):
        return scores[0] > middle if best == 0 else scores[0] < middle
    if best is None or not 0 <= best < len(scores):
        raise InputError(f"best: expected an index from 0 to {len(scores) - 1}, got {best!r}")
    return all(scores[best] > score for i, score in enumerate(scores) if i != best)


def middle_of(score_range: tuple[int, int]) -> float:
    """Give the middle of a template's score range: 5.5 for 1..10, 0.5 for 0..1."""
    return (score_range[0] + score_range[1]) / 2

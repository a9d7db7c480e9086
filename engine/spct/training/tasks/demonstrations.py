"""Demonstrations: what a good sample of the judge looks like for an item of known truth.

One sample draws two or three principles, the important ones more often, splits 9 points between them, and checks every response
on just these. Every response starts at 1 and earns the points of each principle that it meets; the running score stands
behind each verdict, so that the last one is the score. Which principles are drawn is the only randomness.
"""

from __future__ import annotations

from random import Random

from spct.training.tasks.core import Criterion, Item, split_points


def draw_principles(item: Item, rng: Random) -> list[tuple[Criterion, int]]:
    """Draw criteria without replacement, in proportion to their importance, with their points (9 in all)."""
    if item.weights:
        return list(zip(item.criteria, item.weights, strict=True))
    left = list(item.criteria)
    drawn = []
    for _ in range(min(len(left), rng.choices((2, 3), (30, 70))[0])):
        pick = rng.choices(left, [c.importance for c in left])[0]
        left.remove(pick)
        drawn.append(pick)
    drawn.sort(key=lambda c: -c.importance)
    return list(zip(drawn, split_points([c.importance for c in drawn]), strict=True))


def demonstrate(item: Item, order: tuple[int, ...], rng: Random) -> str:
    """Write one sample for the responses in this order: criteria with points, checks, scores in shown order."""
    principles = draw_principles(item, rng)
    running = {i: 1 for i in order}
    sections = []
    for criterion, points in principles:
        verdicts = []
        for place, i in enumerate(order, 1):
            met = criterion.met[i]
            running[i] += points if met else 0
            verdicts.append(f"{place}: {criterion.found[i]} {'ok' if met else 'no'} {running[i]}")
        sections.append(f"{criterion.label}: {criterion.expected}. {'; '.join(verdicts)}.")
    criteria = ", ".join(f"{c.label} ({points})" for c, points in principles)
    scores = ", ".join(str(running[i]) for i in order)
    return f"Specific Criteria: {criteria}\nAnalysis: {' '.join(sections)}\nScores: \\boxed{{{scores}}}"


def exact_scores(item: Item, order: tuple[int, ...], rng: Random) -> tuple[int, ...]:
    """Return the scores that `demonstrate` would write with the same generator, in the request's order."""
    principles = draw_principles(item, rng)
    return tuple(1 + sum(p for c, p in principles if c.met[i]) for i in range(len(order)))

"""Judging tasks with known truth, drawn from a seed: items, splits and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

from spct.errors import ConfigError
from spct.training.tasks import arithmetic, constraints, passage, sorting, strings, table, units
from spct.training.tasks.core import BUCKETS, MAX_RESPONSES, Criterion, Item, Problem, build_item, draw_problem
from spct.training.tasks.demonstrations import demonstrate, draw_principles, exact_scores

DOMAINS: Mapping[str, Callable[[Random], Problem]] = {
    "arithmetic": arithmetic.draw,
    "table": table.draw,
    "constraints": constraints.draw,
    "passage": passage.draw,
    "sorting": sorting.draw,
    "strings": strings.draw,
    "units": units.draw,
}

__all__ = [
    "BUCKETS",
    "DOMAINS",
    "MAX_RESPONSES",
    "Criterion",
    "Item",
    "demonstrate",
    "draw_item",
    "draw_items",
    "draw_principles",
    "exact_scores",
]


def draw_item(split: str, seed: int, index: int, *, domain: str | None = None, max_responses: int = MAX_RESPONSES) -> Item:
    """Return item `index` of a split: the same for the same arguments, whatever was drawn before.

    Raises: ConfigError if the split or the domain is unknown.
    """
    if domain is None:
        domain = tuple(DOMAINS)[index % len(DOMAINS)]
    if domain not in DOMAINS:
        raise ConfigError(f"domain: expected one of {', '.join(DOMAINS)}, got {domain!r}")
    rng = Random(f"{split}/{seed}/{domain}/{index}")
    return build_item(domain, draw_problem(DOMAINS[domain], split, rng), rng, max_responses=max_responses)


def draw_items(split: str, seed: int, count: int, *, domains: Sequence[str] = ()) -> Iterator[Item]:
    """Yield `count` items with the domains in turn."""
    chosen = tuple(domains) or tuple(DOMAINS)
    for index in range(count):
        yield draw_item(split, seed, index, domain=chosen[index % len(chosen)])

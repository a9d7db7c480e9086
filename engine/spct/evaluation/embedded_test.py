"""The held-out split of the embedded model's tasks: its own buckets of problems and its own seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from spct.errors import ConfigError
from spct.evaluation.accuracy import Truth
from spct.evaluation.datasets import BenchmarkItem
from spct.training.tasks import Item, draw_items

SPLIT = "embedded-test"
DATA_SEED = 52_260_417
DEFAULT_ITEMS = 2_000

AnyItem = TypeVar("AnyItem", Item, BenchmarkItem)


def load(limit: int | None = None, data_seed: int = DATA_SEED, domains: Sequence[str] = ()) -> list[Item]:
    """Draw the split: `limit` items (2,000), the domains in turn; another seed draws fresh items of the same held-out problems.

    domains  in turn; (): all

    Raises: ConfigError if the limit is below 1 or a domain is unknown.
    """
    count = DEFAULT_ITEMS if limit is None else limit
    if count < 1:
        raise ConfigError(f"limit: expected at least 1, got {count}")
    return list(draw_items(SPLIT, data_seed, count, domains=domains))


def truth_of(item: Item) -> Truth:
    """Return what is right for an item."""
    return Truth(item.domain, len(item.responses), item.best)


def permute_responses(items: Sequence[AnyItem]) -> list[AnyItem]:
    """Give every item the responses of another item of its domain with as many of them; its truth stays.

    A judge that looks at the content falls to chance here; one that has learned a place or a format does not.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault((item.domain, len(item.responses)), []).append(i)
    permuted = list(items)
    members: list[int]
    for members in groups.values():
        for here, there in zip(members, [*members[1:], members[0]], strict=True):
            permuted[here] = replace(items[here], responses=items[there].responses)
    return permuted

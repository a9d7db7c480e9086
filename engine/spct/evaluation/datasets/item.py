"""The one form that every benchmark's rows are brought into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest

from spct.errors import ConfigError
from spct.evaluation.accuracy import Truth
from spct.types import ScoreRequest, Turn


@dataclass(frozen=True, slots=True)
class BenchmarkItem:
    """A judging question of a benchmark, with what its annotators hold to be right.

    benchmark   whose metric counts it: a key of `spct.evaluation.benchmark_metrics.METRICS`
    id          as the file names it, else its place in the file; with a suffix where one row makes several items
    subset      domain or section, reported apart
    query       a string, or the turns of a conversation
    responses   one or more
    good        indices of the acceptable responses, in increasing order: one for a preference, several where several will do, none for a
                single response that is bad. Several responses and none good: the annotators call it a tie
    reference, principles   shown to the judge
    cell        place in the benchmark's own table: the pair of styles, the kind of question; "" without one
    group       items that only count together, and that a bootstrap draws together; the id where the item stands alone
    weight      of the item's subset in a weighted mean over subsets
    ratings     the annotators' rating of every response, where there is one; only differences within the item mean something
    """

    benchmark: str
    id: str
    subset: str
    query: str | tuple[Turn, ...]
    responses: tuple[str, ...]
    good: tuple[int, ...]
    reference: str | None = None
    principles: str | tuple[str, ...] | None = None
    cell: str = ""
    group: str = ""
    weight: float = 1.0
    ratings: tuple[float, ...] | None = None

    @property
    def domain(self) -> str:
        """The subset, by the name that the project's own tasks use."""
        return self.subset

    @property
    def is_tie(self) -> bool:
        """Whether the annotators prefer none of several responses."""
        return len(self.responses) > 1 and not self.good

    def request(self, id: str | int | None = None) -> ScoreRequest:
        """Return the item as a request, without its truth."""
        return ScoreRequest(self.query, self.responses, reference=self.reference, principles=self.principles, id=id)


def truth_of(item: BenchmarkItem) -> Truth:
    """Return what is right for an item, as the general accuracy counts it."""
    best = item.good[0] if len(item.good) == 1 else None
    return Truth(item.subset, len(item.responses), best, item.good)


def take_in_turn(items: Sequence[BenchmarkItem], limit: int) -> list[BenchmarkItem]:
    """Choose at most `limit` items: the subsets in turn, within a subset its cells in turn, and groups whole.

    A subset ends when its next group no longer fits. The chosen items keep the order of `items`.

    Raises: ConfigError if the limit is below 1 or no group fits.
    """
    groups: dict[tuple[str, str, str], list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault((item.benchmark, item.subset, item.group), []).append(i)
    cells: dict[tuple[str, str], dict[str, list[list[int]]]] = {}
    for (benchmark, subset, _), members in groups.items():
        cells.setdefault((benchmark, subset), {}).setdefault(items[members[0]].cell, []).append(members)
    turns = [chain.from_iterable(zip_longest(*queues.values(), fillvalue=())) for queues in cells.values()]
    chosen: list[int] = []
    while turns:
        staying = []
        for queue in turns:
            group = next((g for g in queue if g), None)
            if group is not None and len(chosen) + len(group) <= limit:
                chosen += group
                staying.append(queue)
        turns = staying
    if not chosen and items:
        smallest = min(map(len, groups.values()))
        raise ConfigError(f"limit: expected at least {smallest}, the items that one row makes, got {limit}")
    return [items[i] for i in sorted(chosen)]

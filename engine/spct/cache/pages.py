"""Pages of KV slots: who holds them, which of them are in use, and the ledger that must always add up."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Ledger:
    """Pages by state. Invariant: free + referenced + cached = total.

    referenced  held by at least one node that a sequence uses
    cached      held by prefix nodes that nobody uses at present
    """

    free: int
    referenced: int
    cached: int
    total: int


class PagePool:
    """Allocates pages of `page_size` contiguous slots and counts their holders.

    A page may have several holders: splitting a node leaves the page at the cut to both halves. A holder is *active*
    while a sequence uses it.
    """

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self._free = list(range(num_pages - 1, -1, -1))
        self._holders = np.zeros(num_pages, np.int32)
        self._active_holders = np.zeros(num_pages, np.int32)

    @property
    def num_free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Pages that only unused prefix nodes hold: what eviction could free."""
        return int(np.count_nonzero((self._holders > 0) & (self._active_holders == 0)))

    def pages_for(self, num_slots: int) -> int:
        """Pages needed for `num_slots` fresh slots."""
        return -(-num_slots // self.page_size)

    def allocate(self, count: int) -> IntArray | None:
        """`count` fresh pages [count] int32, held once by the caller and inactive; None if there are not enough."""
        if count > len(self._free):
            return None
        pages = np.array([self._free.pop() for _ in range(count)], np.int32)
        self._holders[pages] = 1
        return pages

    def slots_of(self, pages: IntArray) -> IntArray:
        """All slots of `pages`, in order: [len(pages) * page_size] int32."""
        offsets = np.arange(self.page_size, dtype=np.int32)
        slots: IntArray = (pages[:, None] * np.int32(self.page_size) + offsets).reshape(-1)
        return slots

    def hold(self, pages: IntArray) -> None:
        """Adds one inactive holder to every page (pages are distinct)."""
        self._holders[pages] += 1

    def activate(self, pages: IntArray) -> None:
        """One more holder of each page is in use."""
        self._active_holders[pages] += 1

    def deactivate(self, pages: IntArray) -> None:
        """One holder of each page is no longer in use."""
        self._active_holders[pages] -= 1

    def release(self, pages: IntArray) -> None:
        """Removes one inactive holder from every page; pages without a holder are free again."""
        self._holders[pages] -= 1
        self._free.extend(int(p) for p in pages[self._holders[pages] == 0])

    def ledger(self) -> Ledger:
        """Counts pages by state from the holders alone, so that it can be held against the free list.

        Raises: AssertionError if the counts contradict each other (a bug of ours, never the caller's).
        """
        free = int(np.count_nonzero(self._holders == 0))
        referenced = int(np.count_nonzero(self._active_holders > 0))
        cached = self.num_cached
        assert free == len(self._free) == len(set(self._free)), f"free list {len(self._free)}, pages without a holder {free}"
        assert not np.any(self._active_holders > self._holders), "a page has more active holders than holders"
        assert free + referenced + cached == self.num_pages, f"{free} + {referenced} + {cached} != {self.num_pages}"
        return Ledger(free, referenced, cached, self.num_pages)

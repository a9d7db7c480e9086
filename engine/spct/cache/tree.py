"""The prefix tree: which tokens are in the KV cache, in which slots, and who uses them.

Every node is a run of tokens. Prompts are paths from the root; a sequence hangs its own private node below the end of
its prompt. A node can be split at any token without copying, since the KV cache is addressed by slot.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spct.cache.pages import IntArray, Ledger, PagePool

_EMPTY = np.zeros(0, np.int32)


@dataclass(eq=False, slots=True)
class PrefixNode:
    """A run of tokens shared by everything below it.

    tokens        the run; empty only at the root
    slots         [>= len(tokens)] where keys and values lie; a private node also lists slots that it reserved
    start         position of the first token, counted from the root
    num_computed  leading tokens whose keys and values are in the cache
    num_users     sequences at or below this node
    private       the node is one sequence's own continuation: never matched, never cached
    final_hidden  [E] hidden state after the last token, where a prompt ends here; opaque to the cache
    """

    tokens: list[int]
    slots: IntArray
    pages: IntArray
    start: int
    parent: PrefixNode | None
    children: dict[int, PrefixNode] = field(default_factory=dict)
    num_computed: int = 0
    num_users: int = 0
    last_used: int = 0
    private: bool = False
    detached: bool = False
    final_hidden: Any = None

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.tokens)

    @property
    def is_computed(self) -> bool:
        """Every token's keys and values are in the cache."""
        return self.num_computed == len(self.tokens)

    def path(self) -> list[PrefixNode]:
        """The nodes from below the root down to this one."""
        nodes = []
        node: PrefixNode | None = self
        while node is not None and node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


class PrefixTree:
    """Prefix nodes over one `PagePool`, with eviction of the least recently used.

    Invariant: the users of a node are users of all its ancestors, so an unused node has only unused nodes below it.
    """

    def __init__(self, pool: PagePool) -> None:
        self.pool = pool
        self.root = PrefixNode([], _EMPTY, _EMPTY, 0, None)
        self._clock = itertools.count(1)
        self._cold: list[tuple[int, int, PrefixNode]] = []

    def acquire(self, tokens: Sequence[int]) -> PrefixNode | None:
        """The node that ends a prompt of `tokens`, with one more user; None if there is no memory for the missing part.

        Known prefixes are reused, the rest becomes a new, uncomputed node. Unused nodes are evicted if need be, never
        those of this prompt.
        """
        node, matched = self._match(tokens)
        self._use(node, 1)
        if matched < len(tokens):
            pages = self._allocate(self.pool.pages_for(len(tokens) - matched))
            if pages is None:
                self._use(node, -1)
                return None
            rest = list(tokens[matched:])
            child = PrefixNode(rest, self.pool.slots_of(pages)[: len(rest)], pages, matched, node)
            node.children[rest[0]] = child
            # The path above has its user already: only the new node gains one.
            self._use_one(child, 1)
            node = child
        return node

    def release(self, node: PrefixNode) -> None:
        """One user fewer on the whole path; unused parts stay cached, unless they were forgotten."""
        self._use(node, -1)

    def missing(self, tokens: Sequence[int]) -> int:
        """Tokens of a prompt that no node holds yet. Changes nothing."""
        node, matched = self.root, 0
        while matched < len(tokens) and (child := node.children.get(tokens[matched])) is not None:
            common = _common(child.tokens, tokens, matched)
            matched += common
            if common < len(child.tokens):
                break
            node = child
        return len(tokens) - matched

    def open_sequence(self, parent: PrefixNode) -> PrefixNode:
        """A private, empty node below `parent`, whose user it becomes beside the caller's own claim on `parent`."""
        return PrefixNode([], _EMPTY, _EMPTY, parent.end, parent, num_users=1, private=True)

    def grow(self, node: PrefixNode, num_slots: int) -> bool:
        """Makes a private node list at least `num_slots` slots; False (and nothing changed) if no page is to be had."""
        lacking = num_slots - len(node.slots)
        if lacking <= 0:
            return True
        pages = self._allocate(self.pool.pages_for(lacking))
        if pages is None:
            return False
        self.pool.activate(pages)
        node.pages = np.concatenate([node.pages, pages])
        node.slots = np.concatenate([node.slots, self.pool.slots_of(pages)])
        return True

    def close_sequence(self, node: PrefixNode) -> None:
        """Frees a private node's pages."""
        if len(node.pages):
            self.pool.deactivate(node.pages)
            self.pool.release(node.pages)
        node.slots = node.pages = _EMPTY
        node.num_computed = 0

    def forget(self, node: PrefixNode) -> None:
        """Makes sure that nothing on this path is matched again (its numbers are not to be trusted).

        The whole branch below the root goes: which of its nodes is poisoned can't be told. Running users keep it until
        they leave.
        """
        path = node.path()
        if path:
            self._detach(path[0])

    def clear(self) -> None:
        """Forgets every prefix: the weights have changed."""
        for child in list(self.root.children.values()):
            self._detach(child)

    def evict(self, count: int) -> bool:
        """Frees unused nodes, least recently used first, until `count` pages are free; False if that can't be reached."""
        while self.pool.num_free < count and self._cold:
            entry = heapq.heappop(self._cold)
            if _is_current(entry):
                self._drop(entry[2])
        return self.pool.num_free >= count

    def nodes(self) -> Iterator[PrefixNode]:
        """Every matched node below the root, parents first."""
        stack = list(self.root.children.values())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def ledger(self) -> Ledger:
        """The pool's ledger."""
        return self.pool.ledger()

    def _allocate(self, count: int) -> IntArray | None:
        if self.pool.num_free < count and not self.evict(count):
            return None
        return self.pool.allocate(count)

    def _match(self, tokens: Sequence[int]) -> tuple[PrefixNode, int]:
        node, matched = self.root, 0
        while matched < len(tokens) and (child := node.children.get(tokens[matched])) is not None:
            common = _common(child.tokens, tokens, matched)
            matched += common
            if common < len(child.tokens):
                return self._split(child, common), matched
            node = child
        return node, matched

    def _split(self, node: PrefixNode, at: int) -> PrefixNode:
        """Puts a new node with the first `at` tokens above `node`; whoever refers to `node` still sees the same end."""
        assert node.parent is not None
        page_size = self.pool.page_size
        upper_slots, lower_slots = node.slots[:at], node.slots[at:]
        upper_pages, lower_pages = (_pages(s, page_size) for s in (upper_slots, lower_slots))
        shared = np.intersect1d(upper_pages, lower_pages)
        self.pool.hold(shared)
        upper = PrefixNode(
            node.tokens[:at], upper_slots, upper_pages, node.start, node.parent,
            {node.tokens[at]: node}, min(node.num_computed, at), node.num_users, node.last_used,
        )  # fmt: skip
        if node.num_users:
            self.pool.activate(shared)
        node.parent.children[upper.tokens[0]] = upper
        node.tokens, node.slots, node.pages = node.tokens[at:], lower_slots, lower_pages
        node.start, node.num_computed, node.parent = upper.end, max(node.num_computed - at, 0), upper
        return upper

    def _use(self, node: PrefixNode, change: int) -> None:
        # From the end upwards: a leaf is cold, and may be dropped, before its parent is looked at.
        for each in reversed(node.path()):
            self._use_one(each, change)

    def _use_one(self, node: PrefixNode, change: int) -> None:
        before = node.num_users
        node.num_users += change
        node.last_used = next(self._clock)
        if before == 0:
            self.pool.activate(node.pages)
        elif node.num_users == 0:
            self.pool.deactivate(node.pages)
            if node.detached:
                self.pool.release(node.pages)
            else:
                self._remember_cold(node)

    def _remember_cold(self, node: PrefixNode) -> None:
        if node.num_users == 0 and not node.children and node.parent is not None:
            heapq.heappush(self._cold, (node.last_used, id(node), node))
            # Every node holds a page, so beyond this length most entries are stale: a node used again since it went cold.
            if len(self._cold) > 2 * self.pool.num_pages + 64:
                self._cold = [entry for entry in self._cold if _is_current(entry)]
                heapq.heapify(self._cold)

    def _drop(self, node: PrefixNode) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens[0]]
        self.pool.release(node.pages)
        self._remember_cold(parent)

    def _detach(self, top: PrefixNode) -> None:
        if top.detached:
            return
        assert top.parent is not None
        del top.parent.children[top.tokens[0]]
        stack = [top]
        while stack:
            node = stack.pop()
            stack.extend(node.children.values())
            node.detached, node.final_hidden, node.children = True, None, {}
            if node.num_users == 0:
                self.pool.release(node.pages)


def _is_current(entry: tuple[int, int, PrefixNode]) -> bool:
    last_used, _, node = entry
    return node.num_users == 0 and not node.children and not node.detached and node.last_used == last_used


def _pages(slots: IntArray, page_size: int) -> IntArray:
    pages: IntArray = np.unique(slots // page_size).astype(np.int32)
    return pages


def _common(run: list[int], tokens: Sequence[int], offset: int) -> int:
    """Length of the common prefix of `run` and `tokens[offset:]`."""
    limit = min(len(run), len(tokens) - offset)
    if run[:limit] == list(tokens[offset : offset + limit]):
        return limit
    return next(i for i in range(limit) if run[i] != tokens[offset + i])

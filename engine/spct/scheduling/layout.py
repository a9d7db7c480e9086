"""The rows of one step, in depth-first order of the prefix tree, as the arrays that kernels want."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spct.cache.pages import IntArray
from spct.cache.tree import PrefixNode
from spct.scheduling.sequence import Sequence

LongArray = npt.NDArray[np.int64]


@dataclass(eq=False, slots=True)
class Run:
    """Consecutive tokens of one node that enter the forward: `tokens[first : first + count]` of a prompt or a sequence.

    path   the last of them, where they are not the sequence's own
    reads  these rows are a `Read`
    """

    node: PrefixNode
    first: int
    count: int
    sequence: Sequence
    path: tuple[int, ...] = ()
    reads: bool = False

    @property
    def token_ids(self) -> list[int]:
        """The tokens that are fed."""
        tokens = self.sequence.token_ids if self.node.private else self.node.tokens
        if self.path:
            return [*tokens[self.first : self.first + self.count - len(self.path)], *self.path]
        return tokens[self.first : self.first + self.count]


@dataclass(eq=False, slots=True)
class Layout:
    """Rows and the part of the prefix tree above them.

    runs          in depth-first order; a run's rows follow each other
    node_parent   [N] int32, -1 at a top node; parents come first
    node_offset   [N + 1] int32, into node_slots
    node_slots    [S] int32
    row_node      [T] int32
    row_position  [T] int32
    row_slot      [T] int32, where the row's own key and value go
    run_end       last row of each run
    """

    runs: list[Run]
    node_parent: IntArray
    node_offset: IntArray
    node_slots: IntArray
    row_node: IntArray
    row_position: IntArray
    row_slot: IntArray
    run_end: dict[PrefixNode, int]

    @property
    def num_rows(self) -> int:
        """T."""
        return len(self.row_node)

    def token_ids(self) -> LongArray:
        """The tokens that are fed, [T] int64."""
        return np.array([t for run in self.runs for t in run.token_ids], np.int64)

    def advance(self) -> None:
        """Moves every row one token on: all rows decode, and nobody joined, left or needed a page."""
        self.row_position = self.row_position + np.int32(1)
        self.row_slot = self.row_slot_at(self.row_position)
        for run in self.runs:
            run.first += 1

    def row_slot_at(self, position: IntArray) -> IntArray:
        """The slot of each row's own node at `position` [T]: [T] int32."""
        start = np.array([run.node.start for run in self.runs for _ in range(run.count)], np.int32)
        slots: IntArray = self.node_slots[self.node_offset[self.row_node] + position - start]
        return slots


def build_layout(runs: list[Run]) -> Layout:
    """Puts `runs` into depth-first order and lists the nodes above them. Cost: linear in nodes, rows and slots."""
    tops: list[PrefixNode] = []
    below: dict[PrefixNode, list[PrefixNode]] = {}

    def visit(node: PrefixNode) -> None:
        if node in below:
            return
        below[node] = []
        parent = node.parent
        assert parent is not None, "the root has no rows"
        if parent.parent is None:
            tops.append(node)
        else:
            visit(parent)
            below[parent].append(node)

    for run in runs:
        visit(run.node)
    return _fill(_depth_first(tops, below), {run.node: run for run in runs})


def _depth_first(tops: list[PrefixNode], below: dict[PrefixNode, list[PrefixNode]]) -> list[PrefixNode]:
    order: list[PrefixNode] = []
    stack = tops[::-1]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(reversed(below[node]))
    return order


def _fill(nodes: list[PrefixNode], run_of: dict[PrefixNode, Run]) -> Layout:
    index = {node: i for i, node in enumerate(nodes)}
    parents = [-1 if node.parent is None else index.get(node.parent, -1) for node in nodes]
    # A prompt node's slots are its tokens; a sequence's node also lists what it reserved, so that decoding needs no new layout.
    slots = [node.slots for node in nodes]
    offset = np.zeros(len(nodes) + 1, np.int32)
    np.cumsum([len(s) for s in slots], out=offset[1:])
    runs = [run_of[node] for node in nodes if node in run_of]
    counts = [run.count for run in runs]
    first = np.array([run.node.start + run.first for run in runs], np.int32)
    ends = np.cumsum(counts)
    position = np.repeat(first, counts) + np.arange(int(ends[-1])) - np.repeat(ends - counts, counts)
    layout = Layout(
        runs=runs,
        node_parent=np.array(parents, np.int32),
        node_offset=offset,
        node_slots=np.concatenate(slots),
        row_node=np.repeat(np.array([index[run.node] for run in runs], np.int32), counts),
        row_position=position.astype(np.int32),
        row_slot=np.zeros(0, np.int32),
        run_end={run.node: int(end) - 1 for run, end in zip(runs, ends, strict=True)},
    )
    layout.row_slot = layout.row_slot_at(layout.row_position)
    return layout

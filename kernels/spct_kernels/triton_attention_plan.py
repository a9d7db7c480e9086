"""The work list of Triton's shared-prefix attention: which program reads which key tiles for which rows. Pure host code, without Triton.

Maths. Positions count along the path from the root, and everything is cut at fixed positions: key tiles at multiples of `block_keys`,
splits at `split_ends`. A row's result is a fold: inside a split over its tiles in order (online softmax), then over its splits in order.
Neither cut depends on nodes, rows or batch, so neither do a row's bits. What the tree decides is only who computes a split: the rows
that share its tiles do it in one program, which reads a shared tile once for all of them; a tile that a node boundary cuts belongs to
each group of rows below the boundary.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spct_kernels.triton_attention_tree import Ints, Run, Tree, split_ends

STEP_FIELDS = 8
"""tile, first slot of a contiguous run or -1, first position, keys, first row, one past the last row, 0, 0."""
SEGMENT_FIELDS = 4
"""first step, one past the last step, first position, one past the last position."""
ITEM_FIELDS = 4
"""first segment, one past the last segment, first row, number of rows."""


class _Builder:
    """Collects items, segments and steps."""

    def __init__(self, tree: Tree, rows_per_tile: int) -> None:
        self.tree = tree
        self.rows_per_tile = rows_per_tile
        self.items: list[tuple[int, ...]] = []
        self.segments: list[tuple[int, ...]] = []
        self.steps: list[Ints] = []
        self.num_steps = 0
        self.folds = self.guards = False

    def _segment(self, runs: list[Run], rows: tuple[int, int], first: int, last: int) -> None:
        """Steps for tiles first to last of the runs, whose rows are clipped to `rows`: by position, then by rows."""
        width = min(last, max(len(run.tiles) for run in runs)) - first
        table = np.full((len(runs), width), -1, dtype=np.int32)
        for line, run in zip(table, runs, strict=True):
            own = run.tiles[first:last]
            line[: len(own)] = own
        starts = np.ones_like(table, dtype=bool)
        starts[1:] = table[1:] != table[:-1]
        at, line_of = np.nonzero((starts & (table >= 0)).T)
        ids = table[line_of, at]
        begins = np.array([max(run.begin, rows[0]) for run in runs], dtype=np.int32)
        ends = np.array([min(run.end, rows[1]) for run in runs], dtype=np.int32)
        # A step's rows end with the last run of the same tile.
        last_of = np.full(table.shape, 0, dtype=np.int64)
        last_of[-1] = len(runs) - 1
        for number in range(len(runs) - 2, -1, -1):
            last_of[number] = np.where(starts[number + 1], number, last_of[number + 1])
        steps = np.zeros((len(ids), STEP_FIELDS), dtype=np.int32)
        steps[:, 0] = ids
        steps[:, 1] = self.tree.first_slots[ids]
        steps[:, 2] = (first + at) * self.tree.block_keys
        steps[:, 3] = self.tree.counts[ids]
        steps[:, 4] = begins[line_of]
        steps[:, 5] = ends[last_of[line_of, at]]
        self.guards |= bool(((steps[:, 4] > rows[0]) | (steps[:, 5] < rows[1])).any())
        end = min(last * self.tree.block_keys, max(run.positions for run in runs))
        self.segments.append((self.num_steps, self.num_steps + len(ids), first * self.tree.block_keys, end))
        self.steps.append(steps)
        self.num_steps += len(ids)

    def whole_rows(self, run: Run, bounds: list[int]) -> None:
        """Many rows of one node, as in a prefill: a program takes all splits of its rows, the later rows (more keys) first."""
        for begin in reversed(range(run.begin, run.end, self.rows_per_tile)):
            rows = (begin, min(begin + self.rows_per_tile, run.end))
            first_segment = len(self.segments)
            for first, last in pairwise(bounds):
                if first < len(run.tiles):
                    self._segment([run], rows, first, last)
            self.folds |= len(self.segments) - first_segment > 1
            self.items.append((first_segment, len(self.segments), rows[0], rows[1] - rows[0]))

    def splits(self, runs: list[Run], common: list[int], bounds: list[int]) -> None:
        """Items of runs whose splits are programs of their own. `common[i]`: leading tiles that runs i - 1 and i have in common.

        How a split's runs are grouped depends on how many tiles they have in it and share in it: most splits of a long prefix look alike,
        so groupings are remembered.
        """
        lengths = np.array([len(run.tiles) for run in runs], dtype=np.int64)
        shared_tiles = np.array(common, dtype=np.int64)
        counts = [run.end - run.begin for run in runs]
        known: dict[tuple[bytes, bytes, int], list[tuple[int, int]]] = {}
        for first, last in pairwise(bounds):
            own = np.clip(lengths - first, 0, last - first)
            shared = np.clip(shared_tiles - first, 0, own)
            key = (own.tobytes(), shared.tobytes(), last - first)
            if key not in known:
                known[key] = self._groups(own.tolist(), shared.tolist(), counts, last - first)
            groups = known[key]
            differs = np.append(False, (shared[1:] != own[1:]) | (own[1:] != own[:-1]))
            if not any(differs[begin + 1 : end].any() for begin, end in groups):
                self._uniform_split(runs, groups, first, last)
                continue
            for begin, end in groups:
                group = runs[begin:end]
                rows = (group[0].begin, group[-1].end)
                self.items.append((len(self.segments), len(self.segments) + 1, rows[0], rows[1] - rows[0]))
                self._segment(group, rows, first, last)

    def _groups(self, own: list[int], shared: list[int], counts: list[int], width: int) -> list[tuple[int, int]]:
        """Ranges of runs that share tiles of a split of `width` tiles, of which they have own[i] and the first shared[i] as the run before.

        A run joins while the tile of rows has room, while it shares a tile, and while the program's steps stay below twice the
        split's: beyond that a tile that all share is better read again, by another program.
        """
        groups: list[tuple[int, int]] = []
        begin = rows = steps = 0
        for run, (tiles, same, count) in enumerate(zip(own, shared, counts, strict=True)):
            joins = rows > 0 and tiles > 0 and same > 0
            if joins and rows + count <= self.rows_per_tile and steps + tiles - same <= 2 * width:
                rows, steps = rows + count, steps + tiles - same
                continue
            if rows:
                groups.append((begin, run))
            begin, rows, steps = (run, count, tiles) if tiles > 0 else (run, 0, 0)
        return [*groups, (begin, len(own))] if rows else groups

    def _uniform_split(self, runs: list[Run], groups: list[tuple[int, int]], first: int, last: int) -> None:
        """The segments of a split in which all runs of a group have the same tiles: a step each, for all the group's rows."""
        tiles = [runs[begin].tiles[first:last] for begin, _ in groups]
        counts = np.array([len(ids) for ids in tiles], dtype=np.int64)
        if not len(counts):
            return
        rows = np.array([(runs[begin].begin, runs[end - 1].end) for begin, end in groups], dtype=np.int32)
        ids, ends = np.concatenate(tiles), np.cumsum(counts)
        steps = np.zeros((len(ids), STEP_FIELDS), dtype=np.int32)
        steps[:, 0] = ids
        steps[:, 1] = self.tree.first_slots[ids]
        steps[:, 2] = (first + np.arange(len(ids)) - np.repeat(ends - counts, counts)) * self.tree.block_keys
        steps[:, 3] = self.tree.counts[ids]
        steps[:, 4:6] = np.repeat(rows, counts, axis=0)
        at, end_of_split = first * self.tree.block_keys, last * self.tree.block_keys
        for (begin, end), (first_row, last_row), stop in zip(groups, rows.tolist(), (self.num_steps + ends).tolist(), strict=True):
            longest = min(end_of_split, max(run.positions for run in runs[begin:end]))
            self.items.append((len(self.segments), len(self.segments) + 1, first_row, last_row - first_row))
            self.segments.append((self.num_steps, stop, at, longest))
            self.num_steps = stop
        self.steps.append(steps)


class Work(Protocol):
    """What the kernels read of a work list; see `WorkList`."""

    block_keys: int
    rows_per_tile: int
    items: Tensor
    segments: Tensor
    steps: Tensor
    tile_slots: Tensor
    row_splits: Tensor
    num_items: int
    num_partials: int
    folds: bool
    guards: bool
    merges: bool


class WorkList:
    """The plan's work for one shape of tiles, in buffers on the plan's device that grow when a tree needs more.

    fold: many rows of one node (a prefill) take all their splits in one program; otherwise a program a split, as in a decode.
    fixed: launches are the same for every tree that fits the buffers, as a captured step needs: sizes are the buffers', spare programs find
    an empty item and leave, and the kernels are those that any decode can use.

    items       [max, 4]           a program each (times KV heads); segments, first row, rows; zeros past the last item
    segments    [max, 4]           one split for the item's rows
    steps       [max, 8]           one key tile for some of them
    tile_slots  [max, block_keys]  slots of a tile, -1 where it has none
    row_splits  [2, max_rows]      a row's first partial result; how many it has (1: the program writes the output itself; 0: no keys)
    num_items, num_partials        how much of it counts
    folds       some program takes several splits; guards: some step is for a part of its program's rows only
    merges      some row has no partial result, or several
    version     goes up whenever a launch changes: what was captured before is void
    """

    def __init__(
        self, block_keys: int, rows_per_tile: int, max_rows: int, device: torch.device, fold: bool = True, fixed: bool = False
    ) -> None:
        self.block_keys = block_keys
        self.fold = fold and not fixed
        self.fixed = fixed
        self.version = 0
        self.rows_per_tile = rows_per_tile
        self.items = torch.zeros((0, ITEM_FIELDS), dtype=torch.int32, device=device)
        self.segments = torch.zeros((0, SEGMENT_FIELDS), dtype=torch.int32, device=device)
        self.steps = torch.zeros((0, STEP_FIELDS), dtype=torch.int32, device=device)
        self.tile_slots = torch.zeros((0, block_keys), dtype=torch.int32, device=device)
        self.row_splits = torch.zeros((2, max_rows), dtype=torch.int32, device=device)
        self.num_items = self.num_partials = 0
        self.folds = self.guards = self.merges = False

    def assign(self, nodes: Ints, slots: Ints, owner: Ints) -> None:
        """Makes the list for a tree.

        nodes  [5, N+1]  as in AttentionPlan.nodes, without its unused end;  slots [S];  owner [T] each row's node
        """
        tree = Tree(nodes, slots, owner, self.block_keys)
        builder = _Builder(tree, self.rows_per_tile)
        splits = [split_ends(run.positions) for run in tree.runs]
        bounds = [0, *(end // self.block_keys for end in max(splits, key=len, default=[]))]
        row_splits = np.zeros((2, len(owner)), dtype=np.int32)
        few: list[Run] = []
        common: list[int] = []
        partials = 0
        for run, ends in zip(tree.runs, splits, strict=True):
            many = self.fold and run.end - run.begin > self.rows_per_tile
            count = min(len(ends), 1) if many else len(ends)
            row_splits[0, run.begin : run.end] = partials + count * np.arange(run.end - run.begin)
            row_splits[1, run.begin : run.end] = count
            partials += count * (run.end - run.begin)
            if many:
                builder.whole_rows(run, bounds)
                continue
            for begin in range(run.begin, run.end, self.rows_per_tile):
                neighbour = few and few[-1].end == begin
                common.append(few[-1].leading(run) if neighbour else 0)
                few.append(replace(run, begin=begin, end=min(begin + self.rows_per_tile, run.end)))
        builder.splits(few, common, bounds)
        before = [self.items, self.segments, self.steps, self.tile_slots]
        self.items = _filled(self.items, np.array(builder.items, dtype=np.int32).reshape(-1, ITEM_FIELDS), clear=True)
        self.segments = _filled(self.segments, np.array(builder.segments, dtype=np.int32).reshape(-1, SEGMENT_FIELDS))
        steps = np.concatenate(builder.steps) if builder.steps else np.zeros((0, STEP_FIELDS), dtype=np.int32)
        self.steps = _filled(self.steps, steps)
        self.tile_slots = _filled(self.tile_slots, tree.tile_slots)
        to_device(self.row_splits[:, : len(owner)], row_splits)
        grown = any(one is not other for one, other in zip(before, (self.items, self.segments, self.steps, self.tile_slots), strict=True))
        if self.fixed:
            grown |= partials > self.num_partials
            self.num_items = len(self.items)
            self.num_partials = 2 * partials if partials > self.num_partials else self.num_partials
            self.folds, self.guards, self.merges = False, True, True
        else:
            self.num_items, self.num_partials = len(builder.items), partials
            self.folds, self.guards = builder.folds, builder.guards
            self.merges = bool((row_splits[1] != 1).any())
        self.version += grown


def _filled(buffer: Tensor, values: Ints, clear: bool = False) -> Tensor:
    """The buffer with `values` in front, twice as large as needed if it was too small; clear: with zeros behind them."""
    if len(values) > len(buffer):
        buffer = torch.zeros((2 * len(values), buffer.shape[1]), dtype=torch.int32, device=buffer.device)
    elif clear:
        buffer[len(values) :].zero_()
    to_device(buffer[: len(values)], values)
    return buffer


def to_device(buffer: Tensor, values: npt.NDArray[Any]) -> None:
    """Copies values from the host into a buffer; to a GPU through pinned memory, so that the host does not wait."""
    source = torch.from_numpy(values)
    if buffer.is_cuda:
        source = source.pin_memory()  # from torch's cache, which keeps it until the copy is done
    buffer.copy_(source, non_blocking=True)

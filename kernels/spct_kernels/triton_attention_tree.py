"""The tree of a plan cut into key tiles at fixed positions, for `triton_attention_plan`. Pure host code, without Triton."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]


def split_ends(positions: int) -> list[int]:
    """Ends of the splits of a path: 256 positions each up to 512, 512 up to 4096, then 1024.

    Short paths need many programs to fill a GPU, long ones have them anyway, and each split costs a row one fp32 partial result.
    """
    ends, end = [], 0
    while end < positions:
        end += 256 if end < 512 else 512 if end < 4096 else 1024
        ends.append(end)
    return ends


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows of one node: their range, their tiles (ids in order of position) and the path's length."""

    begin: int
    end: int
    tiles: Ints
    positions: int

    def leading(self, other: Run) -> int:
        """How many leading tiles two runs have in common."""
        length = min(len(self.tiles), len(other.tiles))
        different = np.flatnonzero(self.tiles[:length] != other.tiles[:length])
        return int(different[0]) if len(different) else length


class Tree:
    """A tree cut into tiles: which tiles each row's path has.

    runs         the rows of each node with their tiles, in the rows' order
    tile_slots   [tiles, block_keys] slots of a tile, -1 where it has none; counts [tiles]: how many it has
    first_slots  [tiles] the first of a tile's slots where they are contiguous, else -1
    """

    def __init__(self, nodes: Ints, slots: Ints, owner: Ints, block_keys: int) -> None:
        self.block_keys = block_keys
        self._contents: list[Ints] = []
        parents, lengths = nodes[1].tolist(), np.diff(nodes[0]).tolist()
        used = nodes[4] > nodes[3]
        whole: list[Ints] = []
        tails: list[Ints] = []
        cuts: list[int] = []
        self._num_tiles = 0
        empty = np.zeros(0, dtype=np.int32)
        owners = set(owner.tolist())
        for node in range(nodes.shape[1] - 1):
            above = parents[node]
            before, tail, cut = (whole[above], tails[above], cuts[above]) if above >= 0 else (empty, empty, -1)
            if lengths[node] and used[node]:
                keys = np.concatenate((tail, slots[nodes[0, node] : nodes[0, node + 1]]))
                count = len(keys) // block_keys
                before = np.concatenate((before, self._add(keys[: count * block_keys].reshape(count, block_keys))))
                tail, cut = keys[count * block_keys :], -1
            if len(tail) and cut < 0 and node in owners:
                padded = np.full((1, block_keys), -1, dtype=np.int32)
                padded[0, : len(tail)] = tail
                cut = int(self._add(padded)[0])
            whole.append(before)
            tails.append(tail)
            cuts.append(cut)
        self.tile_slots = np.concatenate(self._contents) if self._contents else np.zeros((0, block_keys), dtype=np.int32)
        self.counts = (self.tile_slots >= 0).sum(axis=1).astype(np.int32)
        steps = np.arange(block_keys, dtype=np.int32)
        inside = steps < self.counts[:, None]
        contiguous = ((self.tile_slots == self.tile_slots[:, :1] + steps) | ~inside).all(axis=1)
        self.first_slots = np.where(contiguous, self.tile_slots[:, 0], -1).astype(np.int32) if len(self.tile_slots) else self.counts
        self.runs: list[Run] = []
        edges = np.flatnonzero(np.diff(owner)) + 1 if len(owner) else np.zeros(0, dtype=np.int64)
        bounds = [0, *edges.tolist(), len(owner)]
        for begin, end in pairwise(bounds):
            if begin < end:
                node = int(owner[begin])
                tiles = np.append(whole[node], np.int32(cuts[node])) if len(tails[node]) else whole[node]
                self.runs.append(Run(begin, end, tiles, len(whole[node]) * block_keys + len(tails[node])))

    def _add(self, tiles: Ints) -> Ints:
        first = self._num_tiles
        self._num_tiles += len(tiles)
        self._contents.append(tiles)
        return np.arange(first, self._num_tiles, dtype=np.int32)

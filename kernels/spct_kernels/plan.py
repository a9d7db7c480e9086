"""AttentionPlan: which slots each row of a batch sees, as a tree of nodes in fixed buffers that a captured step can outlive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spct_kernels.errors import BackendError, InputError
from spct_kernels.triton_attention_plan import WorkList, to_device

Integers = Tensor | npt.NDArray[np.integer] | Sequence[int]
"""Integers as callers have them; on the host they cost the least."""

_INT32_MAX = 2**31 - 1


def _host_int32(name: str, values: Integers) -> npt.NDArray[np.int32]:
    """A vector of int32 on the host.

    Raises: InputError unless it is a vector of integers that fit.
    """
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.size == 0:
        array = array.reshape(-1).astype(np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(f"{name}: expected a vector of integers (int32), got shape {array.shape} of {array.dtype}")
    if array.dtype != np.int32:
        if array.size and (int(array.max()) > _INT32_MAX or int(array.min()) < -_INT32_MAX):
            raise InputError(f"{name}: expected values that fit int32, got {int(array.min())} to {int(array.max())}")
        array = array.astype(np.int32)
    return array


class AttentionPlan:
    """A tree of prefix nodes and the rows below them, ready for `shared_prefix_attention`.

    nodes       [5, max_nodes+1]  int32: offset into node_slots (one more than nodes), parent, first position, first row at or
                                  below, one past the last such row
    node_slots  [max_slots]       int32: cache slots, node after node
    rows        [2, max_rows]     int32: each row's node, each row's position
    num_rows, num_nodes           how much of the buffers counts
    num_slots                     1 + the highest slot named: the caches must have as many
    fixed                         launches stay the same over `assign`, for a captured step; see `version`

    Invariant: rows below a node are contiguous; parents come before their children.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        deterministic: bool,
        max_rows: int,
        max_nodes: int,
        max_slots: int,
        device: torch.device,
        fixed: bool = False,
    ) -> None:
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            raise InputError(f"num_heads: expected a multiple of num_kv_heads={num_kv_heads}, got {num_heads}")
        if head_dim % 16 or not 16 <= head_dim <= 256:
            raise InputError(f"head_dim: expected a multiple of 16 from 16 to 256, got {head_dim}")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.deterministic = deterministic
        self.fixed = fixed
        self.max_rows = max_rows
        self.max_nodes = max_nodes
        self.max_slots = max_slots
        self.nodes = torch.zeros((5, max_nodes + 1), dtype=torch.int32, device=device)
        self.node_slots = torch.zeros(max_slots, dtype=torch.int32, device=device)
        self.rows = torch.zeros((2, max_rows), dtype=torch.int32, device=device)
        self.num_rows = 0
        self.num_nodes = 0
        self.num_slots = 0
        self._tree = (np.zeros((5, 1), dtype=np.int32), np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32))
        self._work: dict[tuple[int, int, bool], WorkList] = {}

    @classmethod
    def build(
        cls,
        *,
        node_parent: Integers,
        node_offset: Integers,
        node_slots: Integers,
        row_node: Integers,
        row_position: Integers,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        deterministic: bool = True,
        max_rows: int | None = None,
        max_nodes: int | None = None,
        max_slots: int | None = None,
        device: torch.device | str | None = None,
        fixed: bool = False,
    ) -> Self:
        """A plan for one tree; several roots are legal.

        node_parent   [N]    int32, -1 for a root; parents come first
        node_offset   [N+1]  int32, node i owns node_slots[node_offset[i]:node_offset[i+1]]; a node may be empty
        node_slots    [S]    int32, cache slots in the order of their tokens; slots past a row's position may be reserved ones
        row_node      [T]    int32, the node whose path (root to node) the row sees
        row_position  [T]    int32, counted along that path; the row sees positions up to and with it; -1 sees nothing
        max_rows, max_nodes, max_slots   sizes of the buffers, for `assign`; by default what this tree needs
        device        where the buffers live: by default that of node_slots if it is a tensor, else the CPU
        fixed         True: Triton's launches depend on the buffers alone, so that a captured step stays valid over `assign` and
                      `update` as long as `version` and the number of rows stay; some programs then find nothing to do

        Cost: one pass over the nodes and rows on the host (100 nodes, 64 rows: about 100 us).
        Raises: InputError for a tree that breaks these rules, or whose rows below a node are not contiguous.
        """
        counts = (len(row_node), len(node_parent), len(node_slots))
        limits = tuple(count if limit is None else limit for count, limit in zip(counts, (max_rows, max_nodes, max_slots), strict=True))
        where = device if device is not None else node_slots.device if isinstance(node_slots, Tensor) else "cpu"
        plan = cls(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            deterministic=deterministic,
            max_rows=limits[0],
            max_nodes=limits[1],
            max_slots=limits[2],
            device=torch.device(where),
            fixed=fixed,
        )
        plan.assign(node_parent=node_parent, node_offset=node_offset, node_slots=node_slots, row_node=row_node, row_position=row_position)
        return plan

    @property
    def device(self) -> torch.device:
        """The device of the buffers."""
        return self.nodes.device

    def assign(
        self,
        *,
        node_parent: Integers,
        node_offset: Integers,
        node_slots: Integers,
        row_node: Integers,
        row_position: Integers,
    ) -> None:
        """Puts another tree into the same buffers; arguments as in `build`. On an error the plan stays as it was.

        Raises: InputError for a tree that breaks the rules or exceeds max_rows, max_nodes or max_slots.
        """
        parent = _host_int32("node_parent", node_parent)
        offset = _host_int32("node_offset", node_offset)
        slots = _host_int32("node_slots", node_slots)
        owner = _host_int32("row_node", row_node)
        position = _host_int32("row_position", row_position)
        num_nodes, num_slots, num_rows = len(parent), len(slots), len(owner)
        for name, count, limit in (
            ("max_rows", num_rows, self.max_rows),
            ("max_nodes", num_nodes, self.max_nodes),
            ("max_slots", num_slots, self.max_slots),
        ):
            if count > limit:
                raise InputError(f"{name}: expected at most {limit} as the plan was built, got {count}; build a larger plan")
        if len(position) != num_rows:
            raise InputError(f"row_position: expected {num_rows} elements as in row_node, got {len(position)}")
        parents, starts = _node_starts(parent, offset, num_slots)
        if num_slots and int(slots.min()) < 0:
            raise InputError(f"node_slots: expected slots >= 0, got {int(slots.min())} at index {int(slots.argmin())}")
        begins, ends = _node_rows(parents, owner)
        nodes = np.zeros((5, self.max_nodes + 1), dtype=np.int32)
        nodes[0, : num_nodes + 1] = offset
        nodes[1, :num_nodes] = parent
        nodes[2, :num_nodes] = starts
        nodes[3, :num_nodes] = begins
        nodes[4, :num_nodes] = ends
        to_device(self.nodes, nodes)
        # Copies: torch has no read-only tensors, and what the caller gave may be one.
        to_device(self.node_slots[:num_slots], slots.copy())
        to_device(self.rows[:, :num_rows], np.stack((owner, position)))
        self.num_rows = num_rows
        self.num_nodes = num_nodes
        self.num_slots = int(slots.max()) + 1 if num_slots else 0
        self._tree = (nodes[:, : num_nodes + 1], slots.copy(), owner.copy())
        for work in self._work.values():
            work.assign(*self._tree)

    @property
    def version(self) -> int:
        """Goes up whenever a launch of a fixed plan changes, because its work lists were made or outgrew their buffers."""
        return len(self._work) + sum(work.version for work in self._work.values())

    def work(self, block_keys: int, rows_per_tile: int, fold: bool = True) -> WorkList:
        """The work list of the Triton kernels for this shape of tiles: built when first asked for, then kept up by `assign`.

        Raises: BackendError if it is asked for the first time while `torch.compile` traces: it is made on the host.
        """
        work = self._work.get((block_keys, rows_per_tile, fold))
        if work is None:
            if torch.compiler.is_compiling():
                raise BackendError(
                    "plan: expected its work list to be there when torch.compile traces the attention, got a plan that was never run; "
                    "call shared_prefix_attention with it once before"
                )
            work = WorkList(block_keys, rows_per_tile, self.max_rows, self.device, fold, self.fixed)
            work.assign(*self._tree)
            self._work[(block_keys, rows_per_tile, fold)] = work
        return work

    def update(self, row_position: Integers) -> None:
        """Moves the rows to other positions of the same tree; on the plan's device when it is given a tensor there.

        row_position  [T]  integer

        Raises: InputError if its length is not the number of rows.
        """
        values = row_position if isinstance(row_position, Tensor) else _host_int32("row_position", row_position).copy()
        if tuple(values.shape) != (self.num_rows,):
            raise InputError(f"row_position: expected shape ({self.num_rows},), got {tuple(values.shape)}")
        target = self.rows[1, : self.num_rows]
        if isinstance(values, Tensor):
            target.copy_(values)
        else:
            to_device(target, values)


def _node_starts(parent: npt.NDArray[np.int32], offset: npt.NDArray[np.int32], num_slots: int) -> tuple[list[int], list[int]]:
    """Each node's parent and its first position along its path, after the checks of the tree's shape."""
    num_nodes = len(parent)
    if len(offset) != num_nodes + 1:
        raise InputError(f"node_offset: expected {num_nodes + 1} elements (one more than nodes), got {len(offset)}")
    offsets: list[int] = offset.tolist()
    if offsets[0] != 0 or offsets[-1] != num_slots:
        raise InputError(f"node_offset: expected 0 first and {num_slots} (the number of slots) last, got {offsets[0]} and {offsets[-1]}")
    parents: list[int] = parent.tolist()
    starts = [0] * num_nodes
    for node, above in enumerate(parents):
        if not -1 <= above < node:
            raise InputError(f"node_parent[{node}]: expected -1 or an earlier node (parents come first), got {above}")
        if offsets[node + 1] < offsets[node]:
            raise InputError(f"node_offset: expected no decrease, got {offsets[node]} then {offsets[node + 1]} at node {node}")
        if above >= 0:
            starts[node] = starts[above] + offsets[above + 1] - offsets[above]
    return parents, starts


def _node_rows(parents: list[int], owner: npt.NDArray[np.int32]) -> tuple[list[int], list[int]]:
    """For each node the first row at or below it and one past the last; 0, 0 where there is none."""
    num_nodes, num_rows = len(parents), len(owner)
    begins, ends, counts = [num_rows] * num_nodes, [0] * num_nodes, [0] * num_nodes
    for row, node in enumerate(owner.tolist()):
        if not 0 <= node < num_nodes:
            raise InputError(f"row_node[{row}]: expected a node from 0 to {num_nodes - 1}, got {node}")
        begins[node] = min(begins[node], row)
        ends[node] = row + 1
        counts[node] += 1
    for node in range(num_nodes - 1, -1, -1):
        above, count = parents[node], counts[node]
        if count == 0:
            begins[node] = 0
            continue
        if ends[node] - begins[node] != count:
            raise InputError(
                f"row_node: expected the rows at or below node {node} to be contiguous, got {count} rows spread over rows "
                f"{begins[node]} to {ends[node] - 1}; order the batch depth first"
            )
        if above >= 0:
            begins[above] = min(begins[above], begins[node])
            ends[above] = max(ends[above], ends[node])
            counts[above] += count
    return begins, ends

"""Cases and cost of shared-prefix attention: trees of several shapes, with NaN in every slot that no row sees."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from spct_kernels.attention import shared_prefix_attention
from spct_kernels.attention_reference import shared_prefix_attention_reference
from spct_kernels.plan import AttentionPlan
from spct_kernels.registry import Case, Cost, Inputs, Op, register


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree and its rows.

    parents    each node's parent, -1 for a root
    lengths    each node's tokens
    row_nodes  each row's node
    positions  each row's position
    """

    parents: tuple[int, ...]
    lengths: tuple[int, ...]
    row_nodes: tuple[int, ...]
    positions: tuple[int, ...]

    def starts(self) -> list[int]:
        """Each node's first position along its path."""
        starts: list[int] = []
        for above in self.parents:
            starts.append(0 if above < 0 else starts[above] + self.lengths[above])
        return starts

    def plan(self, slots: Tensor, num_heads: int, num_kv_heads: int, head_dim: int) -> AttentionPlan:
        """The plan, with the nodes' tokens in `slots`, node after node."""
        offsets = [0]
        for length in self.lengths:
            offsets.append(offsets[-1] + length)
        return AttentionPlan.build(
            node_parent=self.parents,
            node_offset=offsets,
            node_slots=slots[: offsets[-1]],
            row_node=self.row_nodes,
            row_position=self.positions,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
        )

    def seen(self, slots: Tensor, num_slots: int, window: int | None) -> Tensor:
        """[num_slots] bool: which cache slots some row sees."""
        owned = torch.split(slots[: sum(self.lengths)], list(self.lengths))
        paths: list[Tensor] = []
        for own, above in zip(owned, self.parents, strict=True):
            paths.append(own if above < 0 else torch.cat((paths[above], own)))
        seen = torch.zeros(num_slots, dtype=torch.bool)
        for node, position in zip(self.row_nodes, self.positions, strict=True):
            first = 0 if window is None else max(0, position - window + 1)
            seen[paths[node][first : position + 1].long() if position >= 0 else []] = True
        return seen


def decode_tree(prefix: int, suffixes: tuple[int, ...]) -> Tree:
    """One prefix, one suffix node per row, each row at its suffix's last token."""
    rows = len(suffixes)
    return Tree((-1,) + (0,) * rows, (prefix, *suffixes), tuple(range(1, rows + 1)), tuple(prefix + suffix - 1 for suffix in suffixes))


def prefill_tree(length: int, before: int = 0) -> Tree:
    """`length` rows of one node, after a node of `before` tokens that is there already."""
    return Tree((-1, 0), (before, length), (1,) * length, tuple(range(before, before + length)))


def make_inputs(
    tree: Tree,
    heads: tuple[int, int, int, int],
    dtype: torch.dtype,
    generator: torch.Generator,
    *,
    softcap: float | None = None,
    window: int | None = None,
) -> Inputs:
    """Arguments of an attention call with random queries and caches; unseen slots hold NaN, slots are scattered.

    heads  (H, K, D, Dv)
    """
    num_heads, num_kv_heads, key_dim, value_dim = heads
    num_slots = sum(tree.lengths) + 5
    slots = torch.randperm(num_slots, generator=generator).int()
    unseen = ~tree.seen(slots, num_slots, window)
    caches = [torch.randn((num_slots, num_kv_heads, dim), generator=generator).to(dtype) for dim in (key_dim, value_dim)]
    for cache in caches:
        cache[unseen] = torch.nan
    return {
        "q": torch.randn((len(tree.row_nodes), num_heads, key_dim), generator=generator).to(dtype),
        "k_cache": caches[0],
        "v_cache": caches[1],
        "plan": tree.plan(slots, num_heads, num_kv_heads, key_dim),
        "scale": key_dim**-0.5,
        "softcap": softcap,
        "window": window,
    }


def _case(name: str, tree: Tree, heads: tuple[int, int, int, int], softcap: float | None = None, window: int | None = None) -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        return make_inputs(tree, heads, dtype, generator, softcap=softcap, window=window)

    return Case(name, build)


def _cost(inputs: Inputs) -> Cost:
    """Each slot below a row read once, queries and outputs once; four FLOPs per seen key and dimension of K and V."""
    q, k, v, plan = inputs["q"], inputs["k_cache"], inputs["v_cache"], inputs["plan"]
    window = inputs["window"] or 2**31
    seen = sum(min(position + 1, window) for position in plan.rows[1, : plan.num_rows].tolist())
    used = int(plan.nodes[0, plan.num_nodes])
    width = k.shape[2] + v.shape[2]
    return Cost(used * k.shape[1] * width * k.element_size() + q.numel() * 2 * q.element_size(), 2 * seen * q.shape[1] * width)


_DEEP = Tree(
    parents=(-1, 0, 1, 1, 0, 4, 5, -1),
    lengths=(70, 3, 61, 0, 129, 1, 64, 5),
    row_nodes=(2, 2, 3, 1, 4, 5, 6, 6, 7),
    positions=(133, 100, 72, 71, 190, 199, 263, 150, 2),
)

register(
    Op(
        "shared_prefix_attention",
        functools.partial(shared_prefix_attention, return_lse=True),
        shared_prefix_attention_reference,
        [
            _case("one row, one token", decode_tree(0, (1,)), (1, 1, 16, 16)),
            _case("decode, rows=32, grouped heads", decode_tree(130, (1, 2, 3, 17, 40, 63, 64, 65) * 4), (6, 2, 32, 32)),
            _case("decode, tile edges", decode_tree(63, (1, 2, 64, 65, 66)), (3, 3, 48, 80)),
            _case("deep, ragged tree, several roots", _DEEP, (9, 3, 64, 64)),
            _case("window and soft cap", _DEEP, (4, 1, 144, 32), softcap=5.0, window=67),
            _case("prefill after a prefix", prefill_tree(67, 62), (4, 2, 32, 32)),
            _case("prefill with a window", prefill_tree(131), (2, 2, 16, 16), window=7),
            _case("rows that see nothing", Tree((-1, 0), (0, 9), (0, 1, 1), (-1, -1, 3)), (2, 1, 16, 16)),
            _case("no rows", Tree((-1,), (4,), (), ()), (2, 1, 16, 16)),
            _case("large heads", decode_tree(100, (3, 40)), (2, 1, 256, 256)),
        ],
        _cost,
    )
)

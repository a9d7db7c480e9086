"""AttentionPlan: what it derives, what it refuses, its buffers, and that it is quick enough for a step."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from spct_kernels import AttentionPlan, InputError, shared_prefix_attention

SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
TREE = {
    "node_parent": [-1, 0, 0, 1],
    "node_offset": [0, 5, 7, 7, 10],
    "node_slots": [4, 3, 2, 1, 0, 11, 12, 20, 21, 22],
    "row_node": [1, 3, 3, 2],
    "row_position": [6, 8, 9, 4],
}


def changed(**changes):
    return {**TREE, **changes}


def test_first_positions_and_row_ranges():
    plan = AttentionPlan.build(**TREE, **SHAPE)
    assert plan.nodes[0, :5].tolist() == [0, 5, 7, 7, 10]
    assert plan.nodes[2, :4].tolist() == [0, 5, 5, 7]
    assert list(zip(plan.nodes[3, :4].tolist(), plan.nodes[4, :4].tolist(), strict=True)) == [(0, 4), (0, 3), (3, 4), (1, 3)]
    assert plan.rows.tolist() == [TREE["row_node"], TREE["row_position"]]
    assert (plan.num_rows, plan.num_nodes, plan.num_slots) == (4, 4, 23)


@pytest.mark.parametrize("convert", [np.array, torch.tensor, lambda values: torch.tensor(values, dtype=torch.int32), tuple])
def test_arguments_in_any_form(convert):
    plan = AttentionPlan.build(**{name: convert(values) for name, values in TREE.items()}, **SHAPE)
    expected = AttentionPlan.build(**TREE, **SHAPE)
    assert torch.equal(plan.nodes, expected.nodes)
    assert torch.equal(plan.rows, expected.rows)
    assert plan.nodes.dtype == torch.int32


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (changed(node_parent=[-1, 2, 0, 1]), r"node_parent\[1\]: expected -1 or an earlier node"),
        (changed(node_parent=[-2, 0, 0, 1]), r"node_parent\[0\]"),
        (changed(node_offset=[0, 5, 7, 10]), "node_offset: expected 5 elements"),
        (changed(node_offset=[0, 7, 5, 7, 10]), "node_offset: expected no decrease, got 7 then 5"),
        (changed(node_offset=[1, 5, 7, 7, 10]), "node_offset: expected 0 first and 10"),
        (changed(node_offset=[0, 5, 7, 7, 9]), "node_offset: expected 0 first and 10"),
        (changed(node_slots=[4, 3, 2, 1, 0, 11, -1, 20, 21, 22]), "node_slots: expected slots >= 0, got -1 at index 6"),
        (changed(row_node=[1, 3, 3, 4]), r"row_node\[3\]: expected a node from 0 to 3, got 4"),
        (changed(row_node=[1, 3, 2, 3]), "rows at or below node 3 to be contiguous, got 2 rows spread over rows 1 to 3"),
        (changed(row_node=[3, 2, 1, 3]), "contiguous"),
        (changed(row_position=[6, 8, 9]), "row_position: expected 4 elements"),
        (changed(row_position=[6, 8, 9, 2**31]), "row_position: expected values that fit int32"),
        (changed(row_position=[6.0, 8.0, 9.0, 4.0]), "row_position: expected a vector of integers"),
        (changed(node_slots=[[4, 3], [2, 1]]), "node_slots: expected a vector of integers"),
    ],
)
def test_trees_that_break_the_rules_are_refused(tree, message):
    with pytest.raises(InputError, match=message):
        AttentionPlan.build(**tree, **SHAPE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"num_heads": 5}, "num_heads: expected a multiple of num_kv_heads=2"),
        ({"head_dim": 40}, "head_dim: expected a multiple of 16"),
        ({"head_dim": 272}, "head_dim"),
        ({"num_kv_heads": 0}, "num_heads"),
    ],
)
def test_shapes_that_no_kernel_takes_are_refused(shape, message):
    with pytest.raises(InputError, match=message):
        AttentionPlan.build(**TREE, **{**SHAPE, **shape})


def attend(plan, q, cache):
    return shared_prefix_attention(q, cache, cache, plan, scale=0.2)


def test_another_tree_in_the_same_buffers():
    generator = torch.Generator().manual_seed(0)
    cache = torch.randn((30, 2, 32), generator=generator)
    q = torch.randn((5, 4, 32), generator=generator)
    plan = AttentionPlan.build(**TREE, **SHAPE, max_rows=5, max_nodes=6, max_slots=12)
    before = (plan.nodes.data_ptr(), plan.node_slots.data_ptr(), plan.rows.data_ptr())
    assert torch.equal(attend(plan, q[:4], cache), attend(AttentionPlan.build(**TREE, **SHAPE), q[:4], cache))
    other = {
        "node_parent": [-1, -1],
        "node_offset": [0, 2, 3],
        "node_slots": [9, 8, 7],
        "row_node": [0, 0, 1, 1, 1],
        "row_position": [0, 1, 0, 0, -1],
    }
    plan.assign(**other)
    assert (plan.nodes.data_ptr(), plan.node_slots.data_ptr(), plan.rows.data_ptr()) == before
    assert torch.equal(attend(plan, q, cache), attend(AttentionPlan.build(**other, **SHAPE), q, cache))
    with pytest.raises(InputError, match="max_rows: expected at most 5"):
        plan.assign(**{**other, "row_node": [0] * 6, "row_position": [0] * 6})
    assert torch.equal(attend(plan, q, cache), attend(AttentionPlan.build(**other, **SHAPE), q, cache))


@pytest.mark.parametrize("convert", [list, np.array, torch.tensor])
def test_update_moves_the_rows(convert):
    plan = AttentionPlan.build(**TREE, **SHAPE, max_rows=9)
    plan.update(convert([5, 7, 8, -1]))
    assert plan.rows[1, :4].tolist() == [5, 7, 8, -1]
    with pytest.raises(InputError, match=r"row_position: expected shape \(4,\)"):
        plan.update([1, 2, 3])


def test_empty_plans():
    plan = AttentionPlan.build(node_parent=[], node_offset=[0], node_slots=[], row_node=[], row_position=[], **SHAPE, max_rows=4)
    assert attend(plan, torch.zeros(0, 4, 32), torch.zeros(3, 2, 32)).shape == (0, 4, 32)


def test_assign_is_quick_enough_for_a_step():
    # One prefix, 35 orders, 64 samples: 100 nodes.
    lengths = [300] + [20] * 35 + [7] * 64
    tree = {
        "node_parent": [-1] + [0] * 35 + [1 + sample * 35 // 64 for sample in range(64)],
        "node_offset": np.cumsum([0, *lengths]),
        "node_slots": range(sum(lengths)),
        "row_node": range(36, 100),
        "row_position": [326] * 64,
    }
    arrays = {name: np.array(values, dtype=np.int32) for name, values in tree.items()}
    plan = AttentionPlan.build(**arrays, **SHAPE)
    times = []
    for _ in range(50):
        begin = time.perf_counter()
        plan.assign(**arrays)
        times.append(time.perf_counter() - begin)
    assert min(times) < 1e-3  # about 100 us on a quiet core; the bound only catches a quadratic pass

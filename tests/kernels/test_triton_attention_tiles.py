"""The two families of tiles, which one a layer and a batch take, and the launches of plans that captured steps use."""

from __future__ import annotations

import itertools

import pytest
import torch
from attention_oracle import compare, rows_alone

from spct_kernels import AttentionPlan, shared_prefix_attention
from spct_kernels.attention_cases import Tree, decode_tree, make_inputs, prefill_tree
from spct_kernels.errors import BackendError
from spct_kernels.specialisation import TARGETS
from spct_kernels.triton_attention import work_of
from spct_kernels.triton_attention_options import Shape, families, options_of_work


def work_tiles(inputs):
    """Rows and keys of the tiles that a call takes."""
    work = work_of(*(inputs[name] for name in ("q", "k_cache", "v_cache", "plan")))
    return work.rows_per_tile, work.block_keys


@pytest.mark.parametrize("window", [None, 40])
def test_many_heads_of_a_kv_head_take_tall_tiles_for_decode_and_prefill(window):
    heads = (8, 1, 32, 32)
    decode = Tree((-1, 0, 0, 1, 1), (270, 13, 7, 5, 30), (1, 3, 3, 4, 2), (282, 285, 287, 312, 276))
    for tree in (decode, prefill_tree(30, 270)):
        inputs = make_inputs(tree, heads, torch.bfloat16, torch.Generator().manual_seed(4), window=window)
        assert work_tiles(inputs) == (16, 64)  # 128 rows times heads
        out, lse = compare(inputs)
        some = range(0, len(tree.row_nodes), 11)
        alone, alone_lse = rows_alone(tree, inputs, heads, some)
        assert torch.equal(out[list(some)], alone)
        assert torch.equal(lse[list(some)], alone_lse)


def test_only_without_determinism_do_the_rows_choose_the_tiles():
    heads, seed = (4, 1, 16, 16), torch.Generator().manual_seed(5)
    tree = decode_tree(70, tuple(1 + number % 5 for number in range(64)))
    fixed = make_inputs(tree, heads, torch.float16, seed)
    assert work_tiles(fixed) == (16, 64)
    free = {**fixed, "plan": AttentionPlan.build(**plan_arguments(fixed["plan"]), deterministic=False)}
    assert work_tiles(free) == (32, 64)  # 64 rows times 4 heads
    compare(free)
    few = make_inputs(decode_tree(70, (1, 2)), heads, torch.float16, seed)
    few["plan"] = AttentionPlan.build(**plan_arguments(few["plan"]), deterministic=False)
    assert work_tiles(few) == (16, 64)


def plan_arguments(plan):
    """What `AttentionPlan.build` made a plan from."""
    count = plan.num_nodes
    return {
        "node_parent": plan.nodes[1, :count],
        "node_offset": plan.nodes[0, : count + 1],
        "node_slots": plan.node_slots,
        "row_node": plan.rows[0],
        "row_position": plan.rows[1],
        "num_heads": plan.num_heads,
        "num_kv_heads": plan.num_kv_heads,
        "head_dim": plan.head_dim,
    }


def test_a_work_list_of_other_tiles_is_refused():
    shape = Shape(2, 64, 64, torch.float16, torch.float16)
    few, many = families(shape, "cpu")
    device = torch.device("cpu")
    assert options_of_work(shape, device, many.block_n, many.rows_per_tile(2)) == many
    assert options_of_work(shape, device, few.block_n, few.rows_per_tile(2)) == few
    with pytest.raises(BackendError, match="32 x 64, 64 x 64"):
        options_of_work(shape, device, 16, 3)


@pytest.mark.parametrize("name", TARGETS)
def test_both_families_cut_the_keys_alike(name):
    for group, dim in itertools.product((1, 4, 8, 16), (32, 64, 80, 128, 256)):
        few, many = families(Shape(group, dim, dim, torch.bfloat16, torch.bfloat16), name)
        assert many.block_n == few.block_n and many.fold == few.fold
        assert many.block_m >= 2 * few.block_m if dim <= 128 else many == few
        wide = families(Shape(group, dim, dim, torch.float32, torch.float32), name)
        assert wide[0] == wide[1]


def launches(inputs):
    """What a captured attention would keep: sizes, kernels and addresses."""
    work = work_of(*(inputs[name] for name in ("q", "k_cache", "v_cache", "plan")))
    buffers = (work.items, work.segments, work.steps, work.tile_slots, work.row_splits)
    return (work.num_items, work.num_partials, work.folds, work.guards, work.merges, *(one.data_ptr() for one in buffers))


def test_a_fixed_plan_keeps_its_launches_and_its_rows_their_bits():
    heads = (4, 2, 16, 16)
    trees = [decode_tree(300, (5, 9, 2)), decode_tree(40, (1, 8, 3)), decode_tree(280, (60, 1, 1))]
    plan, versions = None, []
    for tree in trees:
        inputs = make_inputs(tree, heads, torch.float16, torch.Generator().manual_seed(6))
        out, lse = shared_prefix_attention(**inputs, return_lse=True, backend="triton")
        arguments = plan_arguments(inputs["plan"])
        if plan is None:
            plan = AttentionPlan.build(**arguments, max_nodes=8, max_slots=512, fixed=True)
        else:
            del arguments["num_heads"], arguments["num_kv_heads"], arguments["head_dim"]
            plan.assign(**arguments)
        fixed = {**inputs, "plan": plan}
        same, same_lse = shared_prefix_attention(**fixed, return_lse=True, backend="triton")
        assert torch.equal(same, out)
        assert torch.equal(same_lse, lse)
        versions.append((plan.version, launches(fixed)))
    assert versions[0] == versions[1] == versions[2]


def test_a_fixed_plan_says_when_its_launches_change():
    heads = (2, 2, 16, 16)
    small, large = (
        make_inputs(decode_tree(length, (3, 4)), heads, torch.float16, torch.Generator().manual_seed(7)) for length in (20, 900)
    )
    arguments = plan_arguments(small["plan"])
    plan = AttentionPlan.build(**arguments, max_nodes=8, max_slots=2048, fixed=True)
    before = plan.version, launches({**small, "plan": plan}), plan.version
    assert before[0] < before[2], "a work list was made"
    more = plan_arguments(large["plan"])
    plan.assign(**{name: more[name] for name in ("node_parent", "node_offset", "node_slots", "row_node", "row_position")})
    assert plan.version > before[2]
    assert launches({**large, "plan": plan}) != before[1]


def test_many_rows_of_a_node_do_not_fold_in_a_fixed_plan():
    inputs = make_inputs(prefill_tree(300, 10), (1, 1, 16, 16), torch.float32, torch.Generator().manual_seed(8))
    expected = shared_prefix_attention(**inputs, backend="triton")
    plan = AttentionPlan.build(**plan_arguments(inputs["plan"]), fixed=True)
    assert work_of(inputs["q"], inputs["k_cache"], inputs["v_cache"], inputs["plan"]).folds
    assert not work_of(inputs["q"], inputs["k_cache"], inputs["v_cache"], plan).folds
    assert torch.equal(shared_prefix_attention(**{**inputs, "plan": plan}, backend="triton"), expected)

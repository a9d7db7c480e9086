"""Triton's shared-prefix attention under the interpreter: the registry's cases, its work lists, a row's bits, options."""

from __future__ import annotations

import random
import zlib

import pytest
import torch
from attention_oracle import compare, rows_alone

from spct_kernels import AttentionPlan, registry, shared_prefix_attention
from spct_kernels.attention_cases import Tree, decode_tree, make_inputs, prefill_tree
from spct_kernels.triton_attention_plan import WorkList, split_ends

OP = next(op for op in registry.ops() if op.name == "shared_prefix_attention")


DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# The interpreter is slow: each case in two of the three dtypes, which take turns.
CALLS = [
    pytest.param(case, dtype, id=f"{case.name}-{name}")
    for number, case in enumerate(OP.cases)
    for place, (dtype, name) in enumerate(DTYPES.items())
    if (number + place) % 3
]


@pytest.mark.parametrize(("case", "dtype"), CALLS)
def test_agrees_with_the_fp64_oracle(case, dtype):
    compare(case.build(dtype, torch.Generator().manual_seed(zlib.crc32(case.name.encode()))))


def random_tree(rng, num_nodes, num_rows, longest):
    """A tree in depth-first order of its nodes, rows in that order."""
    parents, lengths, path = [-1], [rng.randint(0, longest)], [0]
    for node in range(1, num_nodes):
        path = path[: rng.randint(0 if rng.random() < 0.2 else 1, len(path))]
        parents.append(path[-1] if path else -1)
        lengths.append(rng.choice([0, rng.randint(1, longest)]))
        path.append(node)
    ends = [start + length for start, length in zip(Tree(tuple(parents), tuple(lengths), (), ()).starts(), lengths, strict=True)]
    nodes = sorted(rng.randrange(num_nodes) for _ in range(num_rows))
    return Tree(tuple(parents), tuple(lengths), tuple(nodes), tuple(rng.randint(-1, ends[node] + 2) for node in nodes))


@pytest.mark.parametrize("seed", range(6))
def test_ragged_trees_and_shapes(seed):
    rng = random.Random(seed)
    num_kv_heads, group = rng.choice([1, 2]), rng.choice([1, 3, 4, 7])
    key_dim = rng.choice([16, 48, 64, 80, 144])
    tree = random_tree(rng, 1 + seed, 1 + 4 * seed, rng.choice([40, 90, 300]))
    options = {"softcap": rng.choice([None, 4.0]), "window": rng.choice([None, 1, 33, 100])}
    dtype = rng.choice([torch.float32, torch.bfloat16, torch.float16])
    compare(
        make_inputs(
            tree,
            (num_kv_heads * group, num_kv_heads, key_dim, rng.choice([key_dim, 16])),
            dtype,
            torch.Generator().manual_seed(seed),
            **options,
        )
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("window", [None, 70])
def test_a_row_has_the_same_bits_alone_and_in_any_tree(dtype, window):
    heads = (6, 2, 32, 32)
    tree = Tree((-1, 0, 1, 1, 0, 0, -1), (300, 20, 61, 0, 270, 5, 40), (2, 2, 3, 4, 5, 6), (380, 340, 319, 569, 304, 39))
    inputs = make_inputs(tree, heads, dtype, torch.Generator().manual_seed(3), window=window)
    alone, alone_lse = rows_alone(tree, inputs, heads, range(6))
    out, lse = compare(inputs)
    assert torch.equal(out, alone)
    assert torch.equal(lse, alone_lse)


@pytest.mark.parametrize("value_dim", [16, 144])
def test_chunks_of_a_prefill_and_decode_give_the_bits_of_one_prefill(value_dim):
    # 600 keys are three splits: folded in one program for a prefill of narrow values, merged from partial results for the others.
    heads, first = (4, 2, 16, value_dim), 588
    inputs = make_inputs(prefill_tree(600), heads, torch.float32, torch.Generator().manual_seed(2))
    slots = inputs["plan"].node_slots
    chunks = []
    for begin, end in ((first, 600), (first, first + 1), (first + 1, 599), (599, 600)):
        tree = Tree((-1,), (end,), (0,) * (end - begin), tuple(range(begin, end)))
        given = {**inputs, "q": inputs["q"][begin:end], "plan": tree.plan(slots, *heads[:3])}
        chunks.append(shared_prefix_attention(**given, backend="triton"))
    assert torch.equal(torch.cat(chunks[1:]), chunks[0])


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 100, 129])
def test_cutting_a_node_changes_no_bit(cut):
    whole, heads = decode_tree(130, (5, 70, 1)), (6, 2, 32, 32)
    inputs = make_inputs(whole, heads, torch.float32, torch.Generator().manual_seed(1))
    halves = Tree((-1, 0, 1, 1, 1), (cut, 130 - cut, 5, 70, 1), (2, 3, 4), whole.positions)
    expected = shared_prefix_attention(**inputs, backend="triton")
    plan = halves.plan(inputs["plan"].node_slots, 6, 2, 32)
    assert torch.equal(shared_prefix_attention(**{**inputs, "plan": plan}, backend="triton"), expected)


def test_reserved_slots_and_moved_rows_follow_the_device_positions():
    tree, heads = decode_tree(250, (20, 30)), (4, 2, 16, 16)
    inputs = make_inputs(tree, heads, torch.float32, torch.Generator().manual_seed(4))
    slots = inputs["plan"].node_slots
    moved = torch.tensor([252, 275], dtype=torch.int32)
    shared_prefix_attention(**inputs, backend="triton")
    inputs["plan"].update(moved)
    unseen = torch.cat((slots[253:270], slots[276 + 20 :])).long()
    for cache in (inputs["k_cache"], inputs["v_cache"]):
        cache[unseen] = torch.nan
    out, _ = compare(inputs)
    fresh = Tree(tree.parents, tree.lengths, tree.row_nodes, tuple(moved.tolist())).plan(slots, 4, 2, 16)
    assert torch.equal(shared_prefix_attention(**{**inputs, "plan": fresh}, backend="triton"), out)


def test_another_tree_in_the_same_plan():
    heads = (2, 1, 16, 16)
    small, large = decode_tree(10, (3, 4)), decode_tree(300, (3, 4, 80))
    inputs = make_inputs(large, heads, torch.float32, torch.Generator().manual_seed(5))
    slots = torch.randperm(400, generator=torch.Generator().manual_seed(6))[:387].int()
    plan = AttentionPlan.build(
        node_parent=small.parents, node_offset=[0, 10, 13, 17], node_slots=slots[:17],
        row_node=small.row_nodes, row_position=small.positions,
        num_heads=2, num_kv_heads=1, head_dim=16, max_rows=3, max_nodes=4, max_slots=387,
    )  # fmt: skip
    caches = {name: torch.randn((400, 1, 16), generator=torch.Generator().manual_seed(7)) for name in ("k_cache", "v_cache")}
    compare({**inputs, **caches, "q": inputs["q"][:2], "plan": plan})
    plan.assign(
        node_parent=large.parents,
        node_offset=[0, 300, 303, 307, 387],
        node_slots=slots,
        row_node=large.row_nodes,
        row_position=large.positions,
    )
    compare({**inputs, **caches, "plan": plan})


def test_a_nan_of_one_row_does_not_reach_its_neighbours():
    # Both suffixes lie in one program with the prefix's last tile.
    tree = decode_tree(100, (20, 20))
    inputs = make_inputs(tree, (2, 1, 16, 16), torch.bfloat16, torch.Generator().manual_seed(8))
    clean = shared_prefix_attention(**inputs, backend="triton")
    inputs["v_cache"][int(inputs["plan"].node_slots[105])] = torch.nan
    out = shared_prefix_attention(**inputs, backend="triton")
    assert out[0].isnan().all()
    assert torch.equal(out[1], clean[1])


@pytest.mark.parametrize("before", [0, 62])
def test_a_nan_of_a_later_row_does_not_reach_the_earlier_ones_of_a_prefill(before):
    # All rows are in one program; rows 0 to 39 do not see the value, rows 0 to 49 not the key.
    inputs = make_inputs(prefill_tree(70, before), (2, 1, 16, 16), torch.bfloat16, torch.Generator().manual_seed(8))
    clean = shared_prefix_attention(**inputs, backend="triton")
    slots = inputs["plan"].node_slots
    inputs["v_cache"][int(slots[before + 40])] = torch.inf
    inputs["k_cache"][int(slots[before + 50])] = torch.nan
    out = shared_prefix_attention(**inputs, backend="triton")
    assert torch.equal(out[:40], clean[:40])
    assert out[40:].isnan().all()


@pytest.mark.parametrize("per_slot", [False, True])
def test_int8_caches_with_scales_equal_their_dequantised_floats(per_slot):
    generator = torch.Generator().manual_seed(9)
    inputs = make_inputs(decode_tree(70, (3, 9)), (6, 2, 32, 48), torch.float32, generator)
    for name, scale_name in (("k_cache", "k_scale"), ("v_cache", "v_scale")):
        stored = torch.randint(-127, 128, inputs[name].shape, generator=generator, dtype=torch.int8)
        scale = torch.rand((stored.shape[0], 2) if per_slot else (2,), generator=generator) / 64
        inputs |= {name: stored, scale_name: scale}
    for dtype, tolerance in ((torch.float32, 2e-6), (torch.bfloat16, 2e-2)):
        given = {**inputs, "q": inputs["q"].to(dtype)}
        expected = shared_prefix_attention(**given, backend="reference")
        assert torch.allclose(shared_prefix_attention(**given, backend="triton"), expected, rtol=0, atol=tolerance)


def test_caches_may_be_strided_views_and_of_another_dtype():
    inputs = make_inputs(decode_tree(66, (2, 3)), (4, 2, 32, 32), torch.float32, torch.Generator().manual_seed(10))
    both = torch.stack((inputs["k_cache"], inputs["v_cache"]), dim=2).bfloat16()
    compare({**inputs, "k_cache": both[:, :, 0], "v_cache": both[:, :, 1]})


def seen_by_the_list(tree, work, num_rows):
    """For each row, the slots that its steps name, in order of position; and how often each (row, split) is computed."""
    slots, computed = [dict() for _ in range(num_rows)], set()
    for first, last, begin, count in work.items[: work.num_items].tolist():
        for segment in work.segments[first:last].tolist():
            for row in range(begin, begin + count):
                assert (row, segment[2]) not in computed
                computed.add((row, segment[2]))
            before = [-1] * num_rows
            for tile, run, position, keys, row_begin, row_end, *_ in work.steps[segment[0] : segment[1]].tolist():
                names = work.tile_slots[tile].tolist()
                assert names[:keys] == [run + key for key in range(keys)] if run >= 0 else len(set(names[:keys])) == keys
                assert begin <= row_begin < row_end <= begin + count
                for row in range(row_begin, row_end):
                    assert position > before[row]
                    before[row] = position
                    for key in range(keys):
                        assert position + key not in slots[row]
                        slots[row][position + key] = names[key]
    return slots


@pytest.mark.parametrize("seed", range(40))
def test_the_work_list_names_every_key_of_every_row_once(seed):
    rng = random.Random(seed)
    tree = random_tree(rng, 1 + seed % 9, seed % 40, rng.choice([3, 100, 900]))
    named = torch.randperm(sum(tree.lengths), generator=torch.Generator().manual_seed(seed)).int()
    if seed % 2:
        named = named.sort().values
    plan = tree.plan(named, 4, 2, 16)
    for block, rows, fold in ((64, 16, True), (32, 3, True), (16, 1, True), (32, 3, False)):
        work = plan.work(block, rows, fold)
        assert fold or not work.folds
        assert all(item[3] <= rows for item in work.items[: work.num_items].tolist())
        listed = seen_by_the_list(tree, work, len(tree.row_nodes))
        offset = plan.nodes[0].tolist()
        for row, node in enumerate(tree.row_nodes):
            path, above = [], node
            while above >= 0:
                path = named[offset[above] : offset[above + 1]].tolist() + path
                above = tree.parents[above]
            assert listed[row] == dict(enumerate(path))


def test_a_shared_tile_is_read_once_by_the_rows_that_fit():
    work = WorkList(64, 16, 16, torch.device("cpu"))
    tree = decode_tree(512, (16,) * 16)
    plan = tree.plan(torch.arange(768).int(), 8, 4, 64)
    work.assign(plan.nodes[:, :18].numpy(), plan.node_slots.numpy(), plan.rows[0].numpy())
    keys = sum(step[3] for first, last, _, _ in work.segments[: work.num_items].tolist() for step in work.steps[first:last].tolist())
    assert keys == 768
    # At most three fp32 partial results a row.
    assert work.num_partials == 3 * 16
    # All of it is contiguous: no slot is looked up.
    assert (work.steps[: 8 + 16, 1] >= 0).all()


def test_splits_lie_at_fixed_positions():
    longest = split_ends(20_000)
    assert longest[:4] == [256, 512, 1024, 1536]
    assert all(end % 256 == 0 for end in longest)
    for positions in (1, 256, 257, 4096, 5000):
        ends = split_ends(positions)
        assert ends == longest[: len(ends)]
        assert ends[-1] >= positions
    assert split_ends(0) == []

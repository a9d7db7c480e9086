"""Attention over random trees in every pair of dtypes, and what is special about bf16 products: pairs of keys, rounded probabilities."""

from __future__ import annotations

import random

import pytest
import torch

from spct_kernels import InputError, shared_prefix_attention
from spct_kernels.attention_cases import Tree, decode_tree, make_inputs, prefill_tree

DTYPES = [
    (torch.bfloat16, torch.bfloat16),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
]


def random_tree(rng):
    """Nodes in depth-first order, some empty, some without rows; positions before, in and past the row's path."""
    parents, lengths, ends, row_nodes, positions = [], [], [], [], []

    def grow(above, depth):
        node = len(parents)
        parents.append(above)
        lengths.append(rng.choice([0, 1, 2, 15, 63, 64, 65, rng.randint(0, 200)]))
        ends.append(lengths[-1] + (ends[above] if above >= 0 else 0))
        for _ in range(rng.choice([0, 1, 1, 4])):
            row_nodes.append(node)
            positions.append(rng.randint(-1, ends[node] + 1))
        if rng.random() < 0.3:  # neighbours at neighbouring positions, as in a prefill
            last = rng.randint(-1, ends[node])
            for position in range(max(-1, last - rng.randint(1, 40)), last):
                row_nodes.append(node)
                positions.append(position)
        for _ in range(rng.randint(0, 3) if depth else 0):
            grow(node, depth - 1)

    for _ in range(rng.choice([1, 1, 2])):
        grow(-1, rng.randint(0, 3))
    return Tree(tuple(parents), tuple(lengths), tuple(row_nodes), tuple(positions))


def with_dtypes(inputs, q_dtype, kv_dtype):
    return {**inputs, "q": inputs["q"].to(q_dtype), "k_cache": inputs["k_cache"].to(kv_dtype), "v_cache": inputs["v_cache"].to(kv_dtype)}


def torch_in_bf16(tree, inputs):
    """Attention as torch computes it in bf16, row by row: fp32 sums of bf16 products, the probabilities rounded to bf16."""
    q, k, v, plan = (inputs[name] for name in ("q", "k_cache", "v_cache", "plan"))
    offsets, group = plan.nodes[0].tolist(), q.shape[1] // k.shape[1]
    out = torch.zeros((q.shape[0], q.shape[1], v.shape[2]))
    for row, (node, position) in enumerate(zip(tree.row_nodes, tree.positions, strict=True)):
        path, above = [], node
        while above >= 0:
            path = plan.node_slots[offsets[above] : offsets[above + 1]].tolist() + path
            above = tree.parents[above]
        first = 0 if inputs["window"] is None else max(0, position - inputs["window"] + 1)
        slots = path[first : position + 1]
        if not slots:
            continue
        keys, values = (cache[slots].float().repeat_interleave(group, dim=1) for cache in (k, v))
        scores = torch.einsum("hd,shd->hs", q[row].float(), keys) * inputs["scale"]
        if inputs["softcap"] is not None:
            scores = torch.tanh(scores / inputs["softcap"]) * inputs["softcap"]
        p = torch.exp(scores - scores.amax(1, keepdim=True))
        out[row] = torch.einsum("hs,shd->hd", p.bfloat16().float(), values) / p.sum(1, keepdim=True)
    return out


@pytest.mark.parametrize("seed", range(200))
def test_random_configurations_against_fp64(seed):
    rng = random.Random(seed)
    num_kv_heads, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 5])
    key_dim = rng.choice([16, 32, 48, 64, 64, 80, 144, 256])
    heads = (num_kv_heads * group, num_kv_heads, key_dim, rng.choice([key_dim, key_dim, 16, 96]))
    tree = random_tree(rng)
    options = {"softcap": rng.choice([None, None, 4.0]), "window": rng.choice([None, None, 1, 7, 64, 100])}
    inputs = make_inputs(tree, heads, torch.float32, torch.Generator().manual_seed(seed), **options)
    q_dtype, kv_dtype = DTYPES[seed % len(DTYPES)]
    inputs = with_dtypes(inputs, q_dtype, kv_dtype)
    exact, exact_lse = shared_prefix_attention(**with_dtypes(inputs, torch.float64, torch.float64), return_lse=True)
    same, same_lse = shared_prefix_attention(**inputs, return_lse=True, out_dtype=torch.float32, backend="reference")
    if q_dtype == kv_dtype == torch.bfloat16:
        same = torch_in_bf16(tree, inputs)
    out, lse = shared_prefix_attention(**inputs, return_lse=True, out_dtype=torch.float32, backend="cpu")
    assert torch.equal(shared_prefix_attention(**inputs, backend="cpu"), out.to(q_dtype))
    for actual, other, truth in ((out, same, exact), (lse, same_lse, exact_lse)):
        seen = truth.isfinite()
        assert torch.equal(actual[~seen].double(), truth[~seen])
        if seen.any():
            error, allowed = ((values[seen].double() - truth[seen]).abs().max().item() for values in (actual, other))
            assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * truth[seen].abs().max().item()


HEADS = (6, 2, 32, 48)


def bf16_inputs(tree, seed, **options):
    return make_inputs(tree, HEADS, torch.bfloat16, torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize("cut", [1, 2, 31, 63, 64, 65, 129])
def test_cutting_a_node_between_two_keys_of_a_pair_changes_no_bit(cut):
    whole = decode_tree(130, (5, 70, 1))
    inputs = bf16_inputs(whole, 1)
    halves = Tree((-1, 0, 1, 1, 1), (cut, 130 - cut, 5, 70, 1), (2, 3, 4), whole.positions)
    plan = halves.plan(inputs["plan"].node_slots, *HEADS[:3])
    assert torch.equal(shared_prefix_attention(**{**inputs, "plan": plan}), shared_prefix_attention(**inputs))


def test_chunks_of_a_prefill_give_the_bits_of_one_prefill():
    length = 140
    inputs = bf16_inputs(prefill_tree(length), 2)
    whole = shared_prefix_attention(**inputs)
    for begin, end in ((0, 1), (1, 2), (2, 33), (33, 66), (66, 129), (129, 140)):
        tree = Tree((-1,), (end,), (0,) * (end - begin), tuple(range(begin, end)))
        plan = tree.plan(inputs["plan"].node_slots, *HEADS[:3])
        assert torch.equal(shared_prefix_attention(**{**inputs, "q": inputs["q"][begin:end], "plan": plan}), whole[begin:end])


@pytest.mark.parametrize("position", [30, 31])
@pytest.mark.parametrize(("cache", "poison"), [("v_cache", torch.nan), ("v_cache", -torch.inf), ("k_cache", torch.nan)])
def test_a_poisoned_key_reaches_the_rows_that_see_it_and_no_partner(position, cache, poison):
    inputs = bf16_inputs(prefill_tree(80), 3)
    clean = shared_prefix_attention(**inputs)
    inputs[cache][int(inputs["plan"].node_slots[position])] = poison
    out = shared_prefix_attention(**inputs)
    assert torch.equal(out[:position], clean[:position])
    assert not out[position:].isfinite().any()


@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_partner_behind_a_window_is_not_seen(window):
    inputs = bf16_inputs(prefill_tree(40), 4, window=window)
    clean = shared_prefix_attention(**inputs)
    inputs["v_cache"][int(inputs["plan"].node_slots[9])] = torch.nan
    out = shared_prefix_attention(**inputs)
    assert out[9 : 9 + window].isnan().all()
    assert torch.equal(out[:9], clean[:9])
    assert torch.equal(out[9 + window :], clean[9 + window :])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_scores_overflow_nothing_and_a_negative_scale_is_one(dtype):
    inputs = make_inputs(decode_tree(70, (3, 9)), (4, 2, 32, 32), dtype, torch.Generator().manual_seed(5))
    inputs["q"] = inputs["q"] * 1000
    for scale in (1.0, -1.0):
        given = {**inputs, "scale": scale}
        exact = shared_prefix_attention(**with_dtypes(given, torch.float64, torch.float64))
        same = shared_prefix_attention(**given, out_dtype=torch.float32, backend="reference").double()
        out = shared_prefix_attention(**given, out_dtype=torch.float32).double()
        rounding = 2**-9 if dtype == torch.bfloat16 else 4 * torch.finfo(torch.float32).eps  # of the probabilities
        assert (out - exact).abs().max() <= 2 * (same - exact).abs().max() + rounding * exact.abs().max()


def test_an_integer_result_is_refused():
    inputs = bf16_inputs(decode_tree(3, (1,)), 6)
    with pytest.raises(InputError, match="out_dtype: expected a floating-point dtype"):
        shared_prefix_attention(**inputs, out_dtype=torch.int8)

"""Shared-prefix attention: ragged trees against a dense fp64 oracle, bitwise invariance, options, refusals."""

from __future__ import annotations

import random

import pytest
import torch

from spct_kernels import AttentionPlan, InputError, shared_prefix_attention
from spct_kernels.attention_cases import Tree, decode_tree, make_inputs, prefill_tree


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def oracle(tree, inputs):
    """Dense fp64 softmax per row over its own path: written without plans, nodes or tiles."""
    q, k, v, plan = inputs["q"].double(), inputs["k_cache"].double(), inputs["v_cache"].double(), inputs["plan"]
    group = q.shape[1] // k.shape[1]
    offsets = [0]
    for length in tree.lengths:
        offsets.append(offsets[-1] + length)
    out = torch.zeros((q.shape[0], q.shape[1], v.shape[2]), dtype=torch.float64)
    lse = torch.full(q.shape[:2], -torch.inf, dtype=torch.float64)
    for row, (node, position) in enumerate(zip(tree.row_nodes, tree.positions, strict=True)):
        path, above = [], node
        while above >= 0:
            path = plan.node_slots[offsets[above] : offsets[above + 1]].tolist() + path
            above = tree.parents[above]
        window = inputs["window"] or 10**9
        slots = [slot for at, slot in enumerate(path) if at <= position and position - at < window]
        if not slots:
            continue
        for head in range(q.shape[1]):
            scores = k[slots, head // group] @ q[row, head] * inputs["scale"]
            if inputs["softcap"]:
                scores = (scores / inputs["softcap"]).tanh() * inputs["softcap"]
            lse[row, head] = scores.logsumexp(0)
            out[row, head] = scores.softmax(0) @ v[slots, head // group]
    return out, lse


def random_tree(rng, depth, num_rows, longest):
    parents, lengths, children, level = [-1], [rng.randint(0, longest)], {0: []}, [0]
    for _ in range(depth):
        following = []
        for above in level:
            for _ in range(rng.randint(1, 3)):
                children[above].append(len(parents))
                children[len(parents)] = []
                following.append(len(parents))
                parents.append(above)
                lengths.append(rng.randint(0, longest))
        level = following
    order, stack = [], [0]
    while stack:
        node = stack.pop()
        order.append(node)
        stack.extend(children[node])
    nodes = sorted((rng.randrange(len(parents)) for _ in range(num_rows)), key=order.index)
    ends = [start + length for start, length in zip(Tree(tuple(parents), tuple(lengths), (), ()).starts(), lengths, strict=True)]
    return Tree(tuple(parents), tuple(lengths), tuple(nodes), tuple(rng.randint(-1, ends[node] + 2) for node in nodes))


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_ragged_trees_against_the_dense_oracle(backend, seed):
    rng = random.Random(seed)
    num_kv_heads, group = rng.choice([1, 2, 3]), rng.choice([1, 2, 3, 5])
    key_dim = rng.choice([16, 32, 48, 64, 80, 128, 144, 256])
    heads = (num_kv_heads * group, num_kv_heads, key_dim, rng.choice([key_dim, 16, 96]))
    tree = random_tree(rng, depth=seed % 4, num_rows=1 + seed % 33, longest=rng.choice([3, 40, 90]))
    options = {"softcap": rng.choice([None, 4.0]), "window": rng.choice([None, 1, 7, 64, 100])}
    inputs = make_inputs(tree, heads, torch.float32, torch.Generator().manual_seed(seed), **options)
    exact, exact_lse = oracle(tree, inputs)
    out, lse = shared_prefix_attention(**inputs, return_lse=True, backend=backend)
    assert (out.double() - exact).abs().max() < 5e-6
    seen = exact_lse.isfinite()
    assert torch.equal(lse.isfinite(), seen)
    assert torch.equal(lse[~seen], exact_lse[~seen].float())
    assert torch.allclose(lse[seen].double(), exact_lse[seen], rtol=0, atol=5e-6)
    assert torch.equal(out[~seen], torch.zeros_like(out[~seen]))


def rows_alone(tree, inputs, heads):
    """Each row computed in a plan that holds its path only, as one node."""
    plan, outputs = inputs["plan"], []
    offset = plan.nodes[0].tolist()
    for row, (node, position) in enumerate(zip(tree.row_nodes, tree.positions, strict=True)):
        path, above = [], node
        while above >= 0:
            path = plan.node_slots[offset[above] : offset[above + 1]].tolist() + path
            above = tree.parents[above]
        alone = AttentionPlan.build(
            node_parent=[-1],
            node_offset=[0, len(path)],
            node_slots=path,
            row_node=[0],
            row_position=[position],
            num_heads=heads[0],
            num_kv_heads=heads[1],
            head_dim=heads[2],
        )
        outputs.append(shared_prefix_attention(**{**inputs, "q": inputs["q"][row : row + 1], "plan": alone}, return_lse=True))
    return torch.cat([out for out, _ in outputs]), torch.cat([lse for _, lse in outputs])


@pytest.mark.parametrize("seed", range(24))
def test_a_row_has_the_same_bits_alone_and_in_any_tree(seed, threads):
    rng = random.Random(seed)
    heads = rng.choice([(9, 3, 64, 64), (6, 2, 32, 32), (4, 4, 48, 32), (5, 1, 144, 16)])
    tree = random_tree(rng, depth=seed % 4, num_rows=1 + rng.randrange(33), longest=150)
    window = rng.choice([None, 70])
    dtype = rng.choice([torch.float32, torch.bfloat16])
    inputs = make_inputs(tree, heads, dtype, torch.Generator().manual_seed(seed), window=window)
    alone, alone_lse = rows_alone(tree, inputs, heads)
    for count in (1, 2, 5):
        threads(count)
        out, lse = shared_prefix_attention(**inputs, return_lse=True)
        assert torch.equal(out, alone)
        assert torch.equal(lse, alone_lse)


@pytest.mark.parametrize("cut", [1, 63, 64, 65, 100, 129])
def test_cutting_a_node_changes_no_bit(cut):
    whole = decode_tree(130, (5, 70, 1))
    heads = (6, 2, 32, 32)
    inputs = make_inputs(whole, heads, torch.float32, torch.Generator().manual_seed(1))
    slots = inputs["plan"].node_slots
    halves = Tree((-1, 0, 1, 1, 1), (cut, 130 - cut, 5, 70, 1), (2, 3, 4), whole.positions)
    expected = shared_prefix_attention(**inputs)
    assert torch.equal(shared_prefix_attention(**{**inputs, "plan": halves.plan(slots, 6, 2, 32)}), expected)


def test_chunks_of_a_prefill_and_decode_give_the_bits_of_one_prefill():
    length, heads = 200, (4, 2, 32, 48)
    inputs = make_inputs(prefill_tree(length), heads, torch.float32, torch.Generator().manual_seed(2))
    slots = inputs["plan"].node_slots
    whole = shared_prefix_attention(**inputs)
    parts = []
    for begin, end in ((0, 1), (1, 67), (67, 128), (128, 199), (199, 200)):
        # The node ends where the chunk does; later slots are not known yet.
        tree = Tree((-1,), (end,), (0,) * (end - begin), tuple(range(begin, end)))
        parts.append(shared_prefix_attention(**{**inputs, "q": inputs["q"][begin:end], "plan": tree.plan(slots, *heads[:3])}))
    assert torch.equal(torch.cat(parts), whole)


def test_reserved_slots_past_the_position_leave_no_trace():
    heads = (4, 2, 32, 32)
    short = make_inputs(Tree((-1,), (75,), (0,), (70,)), heads, torch.float32, torch.Generator().manual_seed(3))
    reserved = Tree((-1,), (71,), (0,), (70,)).plan(short["plan"].node_slots[:71], *heads[:3])
    assert torch.equal(shared_prefix_attention(**short), shared_prefix_attention(**{**short, "plan": reserved}))


def test_rows_of_one_node_that_are_not_neighbours():
    # A row at the parent, rows at its child, then a row at the parent again: contiguous below both.
    tree = Tree((-1, 0), (70, 20), (0, 1, 1, 0), (69, 89, 75, 33))
    inputs = make_inputs(tree, (4, 2, 32, 32), torch.float32, torch.Generator().manual_seed(4))
    exact, _ = oracle(tree, inputs)
    assert (shared_prefix_attention(**inputs).double() - exact).abs().max() < 5e-6


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_nan_that_one_row_sees_does_not_reach_its_neighbours(backend):
    tree = prefill_tree(40)
    inputs = make_inputs(tree, (2, 1, 16, 16), torch.float32, torch.Generator().manual_seed(5))
    clean = shared_prefix_attention(**inputs, backend=backend)
    slot = int(inputs["plan"].node_slots[30])
    inputs["v_cache"][slot] = torch.nan
    out = shared_prefix_attention(**inputs, backend=backend)
    assert torch.allclose(out[:30], clean[:30], rtol=0, atol=1e-6 if backend == "reference" else 0)
    assert out[30:].isnan().all()


@pytest.mark.parametrize("per_slot", [False, True])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_int8_caches_with_scales_equal_their_dequantised_floats(backend, per_slot):
    tree = decode_tree(70, (3, 9, 20))
    generator = torch.Generator().manual_seed(6)
    inputs = make_inputs(tree, (6, 2, 32, 48), torch.float32, generator)
    floats = {}
    for name, scale_name in (("k_cache", "k_scale"), ("v_cache", "v_scale")):
        stored = torch.randint(-127, 128, inputs[name].shape, generator=generator, dtype=torch.int8)
        scale = torch.rand((stored.shape[0], 2) if per_slot else (2,), generator=generator) / 64
        floats[name] = stored.float() * (scale if per_slot else scale.expand(stored.shape[0], 2))[..., None]
        inputs |= {name: stored, scale_name: scale}
    expected = shared_prefix_attention(**{**inputs, **floats, "k_scale": None, "v_scale": None}, backend=backend)
    assert torch.equal(shared_prefix_attention(**inputs, backend=backend), expected)


def test_caches_may_be_strided_views():
    inputs = make_inputs(decode_tree(66, (2, 3)), (4, 2, 32, 32), torch.float32, torch.Generator().manual_seed(7))
    both = torch.stack((inputs["k_cache"], inputs["v_cache"]), dim=2)
    views = {"k_cache": both[:, :, 0], "v_cache": both[:, :, 1]}
    assert torch.equal(shared_prefix_attention(**{**inputs, **views}), shared_prefix_attention(**inputs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(3, 4, 48)}, r"q: expected shape \(T=3, H=4, D=32\)"),
        ({"k_cache": torch.zeros(9, 1, 32)}, "k_cache: expected shape"),
        ({"v_cache": torch.zeros(80, 2, 24)}, "v_cache: expected shape|value dim"),
        ({"window": 0}, "window: expected at least 1"),
        ({"softcap": -1.0}, "softcap: expected a positive"),
        ({"backend": "abacus"}, "backend: expected one of"),
        ({"k_scale": torch.ones(3)}, "k_scale: expected shape"),
    ],
)
def test_wrong_arguments_are_refused(change, message):
    inputs = make_inputs(decode_tree(66, (2, 3, 4)), (4, 2, 32, 32), torch.float32, torch.Generator().manual_seed(8))
    with pytest.raises(InputError, match=message):
        shared_prefix_attention(**{**inputs, **change})


def test_slots_past_the_cache_and_int8_without_scales_are_refused():
    inputs = make_inputs(decode_tree(66, (2, 3, 4)), (4, 2, 32, 32), torch.float32, torch.Generator().manual_seed(8))
    short = {"k_cache": inputs["k_cache"][:40], "v_cache": inputs["v_cache"][:40]}
    with pytest.raises(InputError, match="plan: expected slots below num_slots=40"):
        shared_prefix_attention(**{**inputs, **short})
    stored = {name: torch.zeros_like(inputs[name], dtype=torch.int8) for name in ("k_cache", "v_cache")}
    with pytest.raises(InputError, match="k_scale: expected a scale"):
        shared_prefix_attention(**{**inputs, **stored})

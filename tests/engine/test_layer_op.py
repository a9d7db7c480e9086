"""A decoder layer as one C++ call: the bits of the single ops, for every option; a row's bits alone and in a batch; refusals."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from spct.layers.decoder_layer import DecoderLayer, LayerInputs, LayerWeights
from spct.layers.rope import inverse_frequencies, rotation
from spct.layers.spec import KVLayout, LayerSpec, MLPSpec, RopeSpec
from spct_kernels import InputError, pack
from spct_kernels.attention_cases import Tree
from spct_kernels.layer import decoder_layer
from spct_kernels.linear import SCHEMES

E, H, K, D, INNER = 80, 6, 2, 32, 56
# A prefix, three sequences below it, one of them with three rows; two more of another root.
TREE = Tree((-1, 0, 0, 0, -1), (70, 5, 1, 9, 8), (1, 2, 3, 3, 3, 4), (74, 70, 76, 77, 78, 7))
CPU_SCHEMES = [scheme for scheme in ("fp32", "bf16", "fp16", "w8a8") if scheme in SCHEMES]


def make_layer(scheme="fp32", *, biases=False, qk_norm=False, post_norms=False, window=None, softcap=None, activation="silu"):
    generator = torch.Generator().manual_seed(7)

    def matrix(outputs, inputs):
        return pack(torch.randn((outputs, inputs), generator=generator) * inputs**-0.5, scheme)

    def vector(length, wanted=True):
        return 1 + torch.randn(length, generator=generator) / 4 if wanted else None

    weights = LayerWeights(
        attention_norm=vector(E),
        qkv=matrix((H + 2 * K) * D, E),
        output=matrix(E, H * D),
        mlp_norm=vector(E),
        gate_up=matrix(2 * INNER, E),
        down=matrix(E, INNER),
        qkv_bias=vector((H + 2 * K) * D, biases),
        output_bias=vector(E, biases),
        gate_up_bias=vector(2 * INNER, biases),
        down_bias=vector(E, biases),
        query_norm=vector(D, qk_norm),
        key_norm=vector(D, qk_norm),
        post_attention_norm=vector(E, post_norms),
        post_mlp_norm=vector(E, post_norms),
    )
    spec = LayerSpec(KVLayout(K, D, D, window), MLPSpec(INNER, activation))
    return DecoderLayer(spec, weights, num_heads=H, norm_eps=1e-5, scale=D**-0.5, softcap=softcap, backend="cpu")


def make_inputs(dtype, kv_dtype, tree=TREE):
    """delta, residual and the rest; every slot that is not yet written or past a row's position holds NaN or old numbers."""
    generator = torch.Generator().manual_seed(8)
    num_slots = sum(tree.lengths) + 3
    slots = torch.randperm(num_slots, generator=generator).int()
    starts = [sum(tree.lengths[:node]) - start for node, start in enumerate(tree.starts())]
    own = slots[[starts[node] + position for node, position in zip(tree.row_nodes, tree.positions, strict=True)]]
    caches = [torch.randn((num_slots, K, D), generator=generator).to(kv_dtype) for _ in range(2)]
    for cache in caches:
        cache[slots[sum(tree.lengths) :].long()] = torch.nan
    delta, residual = (torch.randn((len(tree.row_nodes), E), generator=generator).to(dtype) for _ in range(2))
    cos, sin = rotation(torch.tensor(tree.positions), inverse_frequencies(RopeSpec(D)), 1.0)
    return delta, residual, LayerInputs(cos, sin, own, tree.plan(slots, H, K, D), *caches)


def op_by_op(layer, delta, residual, inputs):
    single = DecoderLayer(
        layer.spec, layer.weights, num_heads=H, norm_eps=layer.norm_eps, scale=layer.scale, softcap=layer.softcap, backend="cpu"
    )
    single.one_call = False
    return single.forward(delta, residual, inputs)


def copied(inputs):
    return inputs._replace(k_cache=inputs.k_cache.clone(), v_cache=inputs.v_cache.clone())


OPTIONS = [
    {},
    {"biases": True},
    {"qk_norm": True, "activation": "gelu"},
    {"post_norms": True, "softcap": 3.0, "window": 40, "activation": "gelu_tanh"},
    {"biases": True, "qk_norm": True, "post_norms": True, "window": 3},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options) or "plain")
@pytest.mark.parametrize("scheme", CPU_SCHEMES)
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16)]
)
def test_one_call_has_the_bits_of_the_single_ops(dtype, kv_dtype, scheme, options):
    layer = make_layer(scheme, **options)
    delta, residual, inputs = make_inputs(dtype, kv_dtype)
    for given in (delta, None):
        together, apart = copied(inputs), copied(inputs)
        before = None if given is None else given.clone(), residual.clone()
        expected = op_by_op(layer, given, residual, apart)
        actual = layer.forward(given, residual, together)
        assert all(part.isfinite().all() for part in actual)
        for one, other in zip((*actual, *together[-2:]), (*expected, *apart[-2:]), strict=True):
            assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))
        assert torch.equal(residual, before[1])
        assert given is None or torch.equal(given, before[0])


def test_the_layer_is_what_the_model_says():
    # In fp64, with the definition written out: the one call against plain arithmetic.
    layer = make_layer(biases=True)
    delta, residual, inputs = make_inputs(torch.float32, torch.float32)
    actual = layer.forward(delta, residual, copied(inputs))
    layer.backend = "reference"
    expected = layer.forward(delta, residual, copied(inputs))
    for one, other in zip(actual, expected, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 2])
def test_a_row_has_the_same_bits_alone_and_in_a_batch(kv_dtype, count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        layer = make_layer("bf16")
        delta, residual, inputs = make_inputs(torch.float32, kv_dtype)
        whole = layer.forward(delta, residual, copied(inputs))
        written = copied(inputs)
        layer.forward(delta, residual, written)
        for row, (node, position) in enumerate(zip(TREE.row_nodes, TREE.positions, strict=True)):
            alone = replace(TREE, row_nodes=(node,), positions=(position,))
            plan = alone.plan(inputs.plan.node_slots, H, K, D)
            one = slice(row, row + 1)
            part = LayerInputs(inputs.cos[one], inputs.sin[one], inputs.slots[one], plan, written.k_cache, written.v_cache)
            for got, expected in zip(layer.forward(delta[one], residual[one], part), whole, strict=True):
                assert torch.equal(got, expected[one])
    finally:
        torch.set_num_threads(before)


def test_bf16_caches_get_bf16_queries():
    # Queries that differ below bf16's last bit give the same attention on a bf16 cache, and another one on an fp32 cache.
    layer = make_layer()
    _, residual, inputs = make_inputs(torch.float32, torch.bfloat16)
    narrow = layer.forward(None, residual, copied(inputs))[1]
    wide_caches = inputs._replace(k_cache=inputs.k_cache.float(), v_cache=inputs.v_cache.float())
    wide = layer.forward(None, residual, copied(wide_caches))[1]
    assert not torch.equal(narrow, wide)
    assert (narrow - wide).abs().max() < 0.05


def test_no_rows_are_no_error():
    layer = make_layer()
    delta, residual, inputs = make_inputs(torch.float32, torch.float32, replace(TREE, row_nodes=(), positions=()))
    assert [tuple(part.shape) for part in layer.forward(delta, residual, inputs)] == [(0, E), (0, E)]


def call(layer, delta, residual, inputs, **options):
    given = {"norm_eps": 1e-5, "scale": 1.0, "activation": "silu"} | options
    return decoder_layer(delta, residual, *inputs, layer.weights, **given)


def test_wrong_arguments_are_refused():
    layer = make_layer()
    delta, residual, inputs = make_inputs(torch.float32, torch.float32)
    with pytest.raises(InputError, match=r"delta: expected shape \(T=6, E=80\)"):
        call(layer, delta[:, :-1], residual, inputs)
    with pytest.raises(InputError, match="delta: expected dtype float32"):
        call(layer, delta.half(), residual, inputs)
    with pytest.raises(InputError, match="activation: expected one of"):
        call(layer, delta, residual, inputs, activation="relu")
    with pytest.raises(InputError, match="plan: expected slots below"):
        call(layer, delta, residual, inputs._replace(k_cache=inputs.k_cache[:60], v_cache=inputs.v_cache[:60]))
    with pytest.raises(RuntimeError, match="slots"):
        call(layer, delta, residual, inputs._replace(slots=inputs.slots + 1000))
    layer.weights = replace(layer.weights, gate_up=layer.weights.down)
    with pytest.raises(RuntimeError, match="gate_up: expected"):
        call(layer, delta, residual, inputs)


def test_torch_accepts_the_op(monkeypatch):
    given = []
    monkeypatch.setattr("spct_kernels.layer.cpu_ops", lambda: SimpleNamespace(decoder_layer=lambda *arguments: given.extend(arguments)))
    delta, residual, inputs = make_inputs(torch.float32, torch.float32)
    for cache in (inputs.k_cache, inputs.v_cache):
        cache.nan_to_num_()
    call(make_layer(biases=True), delta, residual, inputs)
    torch.library.opcheck(torch.ops.spct.decoder_layer.default, tuple(given), test_utils=("test_schema", "test_faketensor"))

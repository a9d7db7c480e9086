"""The Triton backend as torch custom ops: torch's own check of schema, fake implementation and tracing, under the interpreter."""

from __future__ import annotations

import pytest
import torch

from spct_kernels import (
    add_rms_norm,
    fused_sample,
    gated_activation,
    linear,
    pack,
    rms_norm,
    rope_append,
    shared_prefix_attention,
)
from spct_kernels.attention_cases import decode_tree, make_inputs
from spct_kernels.sample_cases import make_head, make_lists, make_params
from spct_kernels.triton_attention import work_of

OPS = torch.ops.spct_triton


def generator():
    return torch.Generator().manual_seed(0)


def normal(*shape):
    return torch.randn(shape, generator=generator())


def linear_arguments(scheme):
    weight = pack(normal(20, 70), scheme)
    return (normal(3, 70), weight.panels, 20, normal(20), weight.scale)


def rope_arguments():
    slots = torch.tensor([4, 0, 2], dtype=torch.int32)
    return (
        normal(3, 4 * 16),
        normal(3, 8),
        normal(3, 8),
        slots,
        torch.zeros(6, 1, 16),
        torch.zeros(6, 1, 16),
        2,
        1,
        16,
        normal(16),
        normal(16),
    )


def attention_inputs():
    return make_inputs(decode_tree(40, (3, 9)), (2, 1, 16, 16), torch.float32, generator())


def attention_arguments(inputs):
    q, k_cache, v_cache, plan = (inputs[name] for name in ("q", "k_cache", "v_cache", "plan"))
    work = work_of(q, k_cache, v_cache, plan)
    buffers = (work.items, work.segments, work.steps, work.tile_slots, work.row_splits, plan.rows[1])
    numbers = (work.rows_per_tile, work.num_items, work.num_partials, work.folds, work.guards, work.merges)
    return (q, k_cache.nan_to_num(), v_cache.nan_to_num(), *buffers, *numbers, inputs["scale"])


def head_arguments(packed=False):
    head = make_head(3, 16, 50, packed, torch.float32, generator())
    weight = head["lm_head"].panels if packed else head["lm_head"]
    return (head["hidden"], head["norm_weight"], head["norm_eps"], weight, 50, None)


def sample_arguments(with_meta, packed=False):
    params = make_params(3, 50, generator())
    lists = make_lists(3, 50, 4, generator())
    more = (normal(16), 0.5, None, None, *lists) if with_meta else ()
    return (*head_arguments(packed), *params.values(), *more)


CALLS = {
    "rms_norm": lambda: (normal(3, 20), normal(20), 1e-5),
    "add_rms_norm": lambda: (normal(3, 20), normal(3, 20), normal(20), 1e-5),
    "gated_activation": lambda: (normal(3, 20), "gelu_tanh"),
    "rope_append": rope_arguments,
    "linear": lambda: linear_arguments("fp32"),
    "linear int8": lambda: linear_arguments("int8"),
    "shared_prefix_attention": lambda: attention_arguments(attention_inputs()),
    "fused_sample": lambda: sample_arguments(False),
    "fused_sample, meta and lists": lambda: sample_arguments(True),
    "fused_sample, panels": lambda: sample_arguments(False, packed=True),
    "token_logits, panels": lambda: (*head_arguments(packed=True), *make_lists(3, 50, 4, generator())),
    "token_logits": lambda: (*head_arguments(), *make_lists(3, 50, 4, generator())),
}


@pytest.mark.parametrize("name", CALLS)
def test_opcheck(name):
    torch.library.opcheck(getattr(OPS, name.replace(",", "").split()[0]).default, CALLS[name]())


def test_the_op_gives_what_the_function_gives():
    inputs = attention_inputs()
    out, lse = OPS.shared_prefix_attention(*attention_arguments(inputs))
    expected, expected_lse = shared_prefix_attention(**inputs, return_lse=True, backend="triton")
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)


class Layer:
    """A decoder layer and its output head by the public functions, as an engine calls them."""

    def __init__(self, inputs):
        self.inputs = {name: value for name, value in inputs.items() if name != "q"}
        self.norm = normal(20)
        self.qkv, self.down = pack(normal(4 * 16, 20), "fp32"), pack(normal(20, 32), "bf16")
        self.head = make_head(len(inputs["q"]), 20, 50, True, torch.float32, generator())
        self.params = make_params(len(inputs["q"]), 50, generator())
        self.slots = torch.arange(len(inputs["q"]), dtype=torch.int32)
        self.angles = normal(len(inputs["q"]), 8)

    def forward(self, x):
        caches, backend = (self.inputs["k_cache"], self.inputs["v_cache"]), {"backend": "triton"}
        normed = rms_norm(x, self.norm, 1e-5, **backend)
        shape = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 16}
        q = rope_append(linear(normed, self.qkv, **backend), self.angles.cos(), self.angles.sin(), self.slots, *caches, **shape, **backend)
        attended = shared_prefix_attention(q, **self.inputs, **backend).flatten(1)
        normed, total = add_rms_norm(linear(attended, self.down, **backend), x, self.norm, 1e-5, **backend)
        return fused_sample(
            **self.head | {"hidden": gated_activation(torch.cat((normed, total), 1), "silu", **backend)}, **self.params, **backend
        )


def test_the_public_functions_compile_to_one_op_each():
    inputs = attention_inputs()
    inputs |= {name: inputs[name].nan_to_num() for name in ("k_cache", "v_cache")}
    layer, x = Layer(inputs), normal(len(inputs["q"]), 20)
    expected = layer.forward(x)
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if "spct_triton" in str(node.target))
        return graph.forward

    compiled = torch.compile(layer.forward, fullgraph=True, backend=backend)
    for one, other in zip(compiled(x), expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    names = ["rms_norm", "linear", "rope_append", "shared_prefix_attention", "linear", "add_rms_norm", "gated_activation", "fused_sample"]
    assert seen == [f"spct_triton.{name}" for name in names]


def test_they_compile_from_shapes_alone():
    weight = pack(normal(20, 70), "fp32")

    def call(x, gate_up):
        return gated_activation(linear(x, weight, backend="triton"), "silu", backend="triton"), rms_norm(
            gate_up, gate_up[0], 1e-5, backend="triton"
        )

    arguments = (normal(3, 70), normal(3, 20))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)
    for one, other in zip(compiled(*arguments), call(*arguments), strict=True):
        assert torch.equal(one, other)


def test_a_plan_that_never_ran_is_refused_while_tracing():
    inputs = attention_inputs()
    q = inputs.pop("q")
    compiled = torch.compile(lambda q: shared_prefix_attention(q, **inputs, backend="triton"), fullgraph=True, backend="eager")
    with pytest.raises(Exception, match="call shared_prefix_attention with it once before"):
        compiled(q)

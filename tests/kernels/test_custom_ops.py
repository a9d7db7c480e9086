"""The Triton backend as torch custom ops: torch's own check of schema, fake implementation and tracing, under the interpreter."""

from __future__ import annotations

import pytest
import torch

from spct_kernels import pack, shared_prefix_attention
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
    numbers = (work.num_items, work.num_partials, work.folds, work.guards, work.merges)
    return (q, k_cache.nan_to_num(), v_cache.nan_to_num(), *buffers, *numbers, inputs["scale"])


def head_arguments():
    head = make_head(3, 16, 50, False, torch.float32, generator())
    return (head["hidden"], head["norm_weight"], head["norm_eps"], head["lm_head"])


def sample_arguments(with_meta):
    params = make_params(3, 50, generator())
    lists = make_lists(3, 50, 4, generator())
    more = (None, normal(16), 0.5, None, None, *lists) if with_meta else ()
    return (*head_arguments(), *params.values(), *more)


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


def test_it_compiles_without_a_break():
    def layer(x, residual, weight):
        normed, total = OPS.add_rms_norm(x, residual, weight, 1e-5)
        return OPS.gated_activation(normed, "silu"), total

    arguments = (normal(3, 20), normal(3, 20), normal(20))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(*arguments), layer(*arguments), strict=True):
        assert torch.equal(one, other)

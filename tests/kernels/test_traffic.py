"""The counter of bytes and FLOPs: exact on a kernel whose traffic is known, and the output head near its floor."""

import pytest
import torch
import triton
import triton.language as tl

from spct_kernels import registry, traffic
from spct_kernels.attention_cases import decode_tree, make_inputs


@triton.jit
def _known_kernel(x_ptr, y_ptr, z_ptr, LIMIT: tl.constexpr):
    lane = tl.arange(0, 16)
    x = tl.load(x_ptr + lane[:, None] * 16 + lane[None, :])
    again = tl.load(y_ptr + (lane // 4), mask=lane < LIMIT, other=0.0)
    z = tl.dot(x, x, input_precision="ieee") + again[None, :]
    tl.store(z_ptr + lane[:, None] * 16 + lane[None, :], z, mask=lane[:, None] < LIMIT)
    tl.atomic_add(y_ptr + lane, tl.zeros([16], tl.float32), mask=lane < 3)


def test_a_known_kernel_is_counted_exactly():
    x, y, z = torch.ones(16, 16), torch.zeros(16), torch.zeros(16, 16)
    with traffic.counting() as counts:
        _known_kernel[(3,)](x, y, z, LIMIT=9)
    known = counts["known"]
    assert known.launches == 1
    assert known.loaded == 3 * (256 * 4 + 3 * 4 + 3 * 4)  # of 9 lanes 3 distinct addresses; 3 atomics
    assert known.stored == 3 * (9 * 16 * 4 + 3 * 4)
    assert known.flops == 3 * 2 * 16**3
    _known_kernel[(1,)](x, y, z, LIMIT=9)
    assert known.launches == 1  # nothing is counted outside


@pytest.mark.parametrize("dtype", [torch.float16])
def test_the_head_is_read_once(dtype):
    """2,048 ids of width 64 for 5 rows: the weights, and per row and tile a few numbers; no logits."""
    op = next(op for op in registry.ops() if op.name == "fused_sample")
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "hidden": torch.randn(5, 64, generator=generator).to(dtype),
        "norm_weight": torch.ones(64, dtype=dtype),
        "lm_head": torch.randn(512, 64, generator=generator).to(dtype),
        "norm_eps": 1e-5,
        "temperature": torch.ones(5),
        "top_k": torch.zeros(5, dtype=torch.int32),
        "top_p": torch.ones(5),
        "min_p": torch.zeros(5),
        "seed": torch.arange(5),
        "position": torch.zeros(5, dtype=torch.int64),
    }
    measured = traffic.measure(op, "head", inputs)
    kernels = {one.kernel: one for one in measured.kernels}
    weights, tiles = 512 * 64 * 2, 4
    assert kernels["head"].stored == 5 * tiles * 8 * 4
    assert weights <= kernels["head"].loaded <= weights + tiles * 2 * 5 * 64 * 2 + tiles * 5 * 64
    assert kernels["redo_logits"].bytes <= tiles * 5 * 8
    assert measured.floor_bytes == weights + 5 * 64 * 2


def test_attention_asks_for_little_more_than_its_floor_at_a_short_prefix():
    """16 rows, prefix 512, suffix 16, 8 heads over 4 KV heads of dim 64, fp16: each key and value once, three partial results a row."""
    op = next(op for op in registry.ops() if op.name == "shared_prefix_attention")
    inputs = make_inputs(decode_tree(512, (16,) * 16), (8, 4, 64, 64), torch.float16, torch.Generator().manual_seed(0))
    # As a fresh cache gives them: slots in order, none of which is unseen.
    inputs["plan"] = decode_tree(512, (16,) * 16).plan(torch.arange(768).int(), 8, 4, 64)
    measured = traffic.measure(op, "short", inputs)
    assert measured.floor_bytes == 768 * 4 * 128 * 2 + 2 * 16 * 8 * 64 * 2
    assert measured.floor_bytes < measured.bytes <= 1.35 * measured.floor_bytes
    # No key or value is read twice.
    attention = next(one for one in measured.kernels if one.kernel == "attention")
    assert attention.loaded < 1.1 * measured.floor_bytes

"""The small ops: bitwise invariance of a row, special values, refusals; accuracy is covered by the registry's test."""

from __future__ import annotations

import pytest
import torch

from spct_kernels import BackendError, InputError, add_rms_norm, gated_activation, rms_norm, rope_append

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same_rows(function, *tensors):
    """The results of all rows at once, and of each row alone, are bitwise equal."""
    together = function(*tensors)
    for row in range(len(tensors[0])):
        assert torch.equal(function(*(tensor[row : row + 1] for tensor in tensors))[0], together[row]), row


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 576])
def test_rows_do_not_see_each_other(width, dtype):
    weight = random(width, seed=1)
    x, residual = random(37, width).to(dtype), random(37, width, seed=2).to(dtype)
    same_rows(lambda x: rms_norm(x, weight, 1e-6), x)
    same_rows(lambda x, residual: add_rms_norm(x, residual, weight, 1e-6)[0], x, residual)
    same_rows(lambda x: gated_activation(x, "silu"), random(37, 2 * width).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sum_is_exact_and_what_is_normalised(dtype):
    x, residual, weight = random(9, 33).to(dtype), random(9, 33, seed=1).to(dtype), random(33, seed=2)
    normed, total = add_rms_norm(x, residual, weight, 1e-6)
    assert torch.equal(total, x + residual)
    assert torch.equal(normed, rms_norm(total, weight, 1e-6))


def test_eps_zero_is_legal_and_a_zero_row_is_nan():
    x = torch.stack((torch.ones(8), torch.zeros(8)))
    out = rms_norm(x, torch.full((8,), 3.0), 0.0)
    assert torch.equal(out[0], torch.full((8,), 3.0))
    assert out[1].isnan().all()


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_activation_of_special_values(kind):
    gate = torch.tensor([0.0, -0.0, 100.0, -100.0, torch.inf, torch.nan, 1e-30, -88.0])
    out = gated_activation(torch.cat((gate, torch.ones(8)))[None], kind)[0]
    assert out[:4].tolist() == [0.0, 0.0, 100.0, 0.0] or abs(out[3]) < 1e-30
    assert out[4] == torch.inf
    assert out[5].isnan()
    assert out[6] == pytest.approx(5e-31)
    assert abs(out[7]) < 1e-30


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_rope_turns_halves_and_appends(backend):
    # One head of 16 dims, a quarter turn of all 4 pairs of the first 8 dims: (x1, x2) -> (-x2, x1).
    qkv = torch.arange(48.0)[None]
    caches = [torch.full((5, 1, 16), torch.nan) for _ in range(2)]
    zeros, ones = torch.zeros(1, 4), torch.ones(1, 4)
    q = rope_append(qkv, zeros, ones, torch.tensor([3]).int(), *caches, num_heads=1, num_kv_heads=1, head_dim=16, backend=backend)
    assert q.flatten().tolist() == [-4, -5, -6, -7, 0, 1, 2, 3, *range(8, 16)]
    assert caches[0][3].flatten().tolist() == [-20, -21, -22, -23, 16, 17, 18, 19, *range(24, 32)]
    assert caches[1][3].flatten().tolist() == list(range(32, 48))
    assert all(cache[[0, 1, 2, 4]].isnan().all() for cache in caches)


def test_rope_keeps_the_length_of_each_pair():
    angle = random(7, 16) * 50
    caches = [torch.zeros(7, 2, 32) for _ in range(2)]
    qkv = random(7, (4 + 4) * 32, seed=1)
    options = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 32}
    q = rope_append(qkv, angle.cos(), angle.sin(), torch.arange(7).int(), *caches, **options)
    before = qkv[:, : 4 * 32].view(7, 4, 2, 16).square().sum(2)
    assert torch.allclose(q.view(7, 4, 2, 16).square().sum(2), before, rtol=1e-5)


@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_rope_into_strided_caches_of_another_dtype(cache_dtype):
    both = torch.zeros((6, 2, 2, 32), dtype=cache_dtype)
    qkv, angle = random(3, 6 * 32), random(3, 16)
    slots = torch.tensor([5, 0, 2]).int()
    options = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 32}
    rope_append(qkv, angle.cos(), angle.sin(), slots, both[:, 0], both[:, 1], **options)
    plain = [torch.zeros((6, 2, 32), dtype=cache_dtype) for _ in range(2)]
    rope_append(qkv, angle.cos(), angle.sin(), slots, *plain, **options, backend="reference")
    assert torch.allclose(both[:, 0].float(), plain[0].float(), rtol=1e-2 if cache_dtype != torch.float32 else 1e-6, atol=1e-6)
    assert torch.equal(both[:, 1], plain[1])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rope_rounds_the_queries_once_to_the_dtype_asked_for(dtype, backend):
    qkv, angle = random(5, 6 * 32).bfloat16(), random(5, 16)
    options = {"num_heads": 2, "num_kv_heads": 2, "head_dim": 32, "backend": backend}
    slots = torch.arange(5).int()

    def turned(activations, q_dtype):
        caches = [torch.zeros((5, 2, 32)) for _ in range(2)]
        return rope_append(activations, angle.cos(), angle.sin(), slots, *caches, **options, q_dtype=q_dtype)

    exact = turned(qkv.float(), None)
    assert turned(qkv, None).dtype == torch.bfloat16
    assert torch.equal(turned(qkv, dtype), exact.to(dtype))
    with pytest.raises(InputError, match="q_dtype: expected a floating-point dtype"):
        turned(qkv, torch.int32)


def test_wrong_arguments_are_refused():
    x = random(3, 8)
    with pytest.raises(InputError, match=r"weight: expected shape \(E=8,\), got \(7,\)"):
        rms_norm(x, random(7), 1e-6)
    with pytest.raises(InputError, match="residual: expected dtype float32, got bfloat16"):
        add_rms_norm(x, x.bfloat16(), random(8), 1e-6)
    with pytest.raises(InputError, match="gate_up: expected an even width"):
        gated_activation(random(3, 7), "silu")
    with pytest.raises(InputError, match="kind: expected one of silu"):
        gated_activation(x, "relu")
    with pytest.raises(InputError, match="x: expected dtype"):
        rms_norm(x.long(), random(8), 1e-6)
    with pytest.raises(BackendError, match="expected fp32, bf16 or fp16, got float64"):
        rms_norm(x.double(), random(8), 1e-6, backend="cpu")
    assert rms_norm(x.double(), random(8), 1e-6).dtype == torch.float64


def test_rope_refuses_slots_outside_of_the_cache():
    caches = [torch.zeros(4, 1, 16) for _ in range(2)]
    for slot in (-1, 4):
        with pytest.raises(RuntimeError, match="0 <= slot < 4"):
            rope_append(
                random(1, 48),
                random(1, 8),
                random(1, 8),
                torch.tensor([slot]).int(),
                *caches,
                num_heads=1,
                num_kv_heads=1,
                head_dim=16,
                backend="cpu",
            )

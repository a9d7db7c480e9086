"""Weights in fp8: what the packing loses, the Triton kernel under the interpreter, and where there is none."""

from __future__ import annotations

import pytest
import torch

from spct_kernels import BackendError, InputError, linear, pack, triton_linear
from spct_kernels.linear import linear_reference
from spct_kernels.packed import quantise_fp8


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_packing_errs_by_half_a_step_at_most():
    weight = normal(37, 70) * torch.logspace(-30, 30, 37)[:, None]
    weight[5] = 0.0
    weight[6, 1:] = 0.0
    stored, scale = quantise_fp8(weight)
    assert stored.dtype == torch.float8_e4m3fn
    assert scale[5] == 1.0
    assert not stored.float().isnan().any()
    error = (stored.float() * scale[:, None] - weight).abs()
    # Half a step of 3 bits, or of the subnormal 2^-9; and a rounding of the division.
    assert (error <= torch.maximum(weight.abs() / 16, scale[:, None] * 2**-10) * (1 + 1e-6)).all()
    packed = pack(weight, "fp8")
    assert torch.equal(packed.unpack(), stored.float() * scale[:, None])
    assert torch.equal(packed.rows(torch.tensor([36, 0, 17])), packed.unpack()[[36, 0, 17]])
    assert packed.nbytes == 48 * 70 + 4 * 37
    packed.replace(weight * 2)
    assert torch.equal(packed.unpack(), 2 * stored.float() * scale[:, None])


def test_what_fp8_cannot_hold_is_refused():
    weight = normal(3, 4)
    weight[1, 2] = torch.inf
    with pytest.raises(InputError, match="scheme 'fp8', got NaN or Inf in row 1"):
        pack(weight, "fp8")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (13, 17, 67), (3, 20, 1100)], ids=str)
def test_the_kernel_agrees_with_the_fp64_oracle(dtype, shape):
    rows, outputs, inputs = shape
    weight, x, bias = pack(normal(outputs, inputs), "fp8"), normal(rows, inputs, seed=1).to(dtype), normal(outputs, seed=2)
    exact = linear_reference(x.double(), weight, bias)
    result, own = linear(x, weight, bias, backend="triton"), linear_reference(x, weight, bias)
    error, allowed = ((part.double() - exact).abs().max().item() for part in (result, own))
    assert result.dtype == dtype
    assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    assert torch.equal(linear(x[:1], weight, bias, backend="triton"), result[:1])


def test_a_cpu_and_an_older_gpu_have_no_kernel(monkeypatch):
    weight, x = pack(normal(5, 20), "fp8"), normal(3, 20)
    assert torch.equal(linear(x, weight), linear_reference(x, weight, None))
    with pytest.raises(BackendError, match="no C\\+\\+ kernel for scheme 'fp8'"):
        linear(x, weight, backend="cpu")
    monkeypatch.setattr(triton_linear, "target", lambda device: "sm_80")
    with pytest.raises(BackendError, match="from sm_89 on, got sm_80"):
        linear(x, weight, backend="triton")


def test_it_compiles_to_the_custom_op():
    weight, x = pack(normal(5, 20), "fp8"), normal(3, 20)
    compiled = torch.compile(lambda rows: linear(rows, weight, backend="triton"), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), linear(x, weight, backend="triton"))

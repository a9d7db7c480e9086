"""The Triton kernels of the small ops under the interpreter: the registry's cases, and what only they can get wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib

import pytest
import torch

from spct_kernels import BackendError, add_rms_norm, gated_activation, registry, rms_norm, rope_append

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # numpy's; exp(-gate) = inf gives 0, as meant

OPS = ("rms_norm", "add_rms_norm", "gated_activation", "rope_append")
CALLS = [
    pytest.param(op, case, dtype, id=f"{op.name}-{case.name}-{str(dtype).removeprefix('torch.')}")
    for op in registry.ops()
    if op.name in OPS
    for case in op.cases
    if not case.name.startswith("rows=257 ")  # a program a row: many rows show nothing new, and the interpreter runs them one by one
    for dtype in case.dtypes
]


def build(case, dtype):
    return case.build(dtype, torch.Generator().manual_seed(zlib.crc32(case.name.encode())))


def assert_within_rule(actual, same_dtype, exact):
    """err(kernel, fp64) <= 2 err(torch in the same dtype, fp64) + 4 fp32 roundings of the largest value."""
    assert actual.dtype == same_dtype.dtype
    assert actual.shape == exact.shape
    if exact.numel():
        error, allowed = ((values.double() - exact).abs().max().item() for values in (actual, same_dtype))
        assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize(("op", "case", "dtype"), CALLS)
def test_agrees_with_the_fp64_oracle(op, case, dtype):
    inputs, same, wide = build(case, dtype), build(case, dtype), registry.widened(op, build(case, dtype))
    if op.name == "rope_append":
        # What the kernel does not write must stay, and what it writes must be all of a slot.
        inputs["k_cache"].fill_(torch.nan)
        inputs["v_cache"].fill_(torch.nan)
    actual = op.outputs(inputs, op.run(**inputs, backend="triton"))
    same_dtype = op.outputs(same, op.reference(**same))
    exact = op.outputs(wide, op.reference(**wide))
    for got, own, truth in zip(actual, same_dtype, exact, strict=True):
        if op.name == "rope_append" and got is not actual[0]:
            slots = inputs["slots"].long()
            untouched = torch.ones(len(got), dtype=torch.bool)
            untouched[slots] = False
            assert got[untouched].isnan().all()
            got, own, truth = got[slots], own[slots], truth[slots]
        assert_within_rule(got, own, truth)


def test_rows_have_the_same_bits_alone():
    generator = torch.Generator().manual_seed(1)
    x, residual = (torch.randn((7, 300), generator=generator) for _ in range(2))
    weight = torch.randn(300, generator=generator)
    for row in range(7):
        alone = slice(row, row + 1)
        assert torch.equal(rms_norm(x, weight, 1e-6, backend="triton")[alone], rms_norm(x[alone], weight, 1e-6, backend="triton"))
        whole = add_rms_norm(x, residual, weight, 1e-6, backend="triton")
        for one, other in zip(whole, add_rms_norm(x[alone], residual[alone], weight, 1e-6, backend="triton"), strict=True):
            assert torch.equal(one[alone], other)
        assert torch.equal(gated_activation(x, "gelu", backend="triton")[alone], gated_activation(x[alone], "gelu", backend="triton"))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "gelu"])
def test_activations_keep_their_tails(kind):
    gate = torch.tensor([-80.0, -12.0, -6.0, -1.0, -1e-6, 0.0, 1e-6, 0.4, 3.0, 12.0, 80.0])
    gate_up = torch.cat((gate, torch.ones_like(gate)))[None]
    got = gated_activation(gate_up, kind, backend="triton").double()
    exact = gated_activation(gate_up.double(), kind, backend="reference")
    # exp(-z^2) multiplies a relative rounding by z^2; below fp32's smallest normal number a GPU may flush to zero.
    assert torch.allclose(got, exact, rtol=2e-5, atol=1e-37)


def test_rope_append_writes_strided_caches_in_another_dtype():
    generator = torch.Generator().manual_seed(2)
    qkv, angles = torch.randn((3, 4 * 32), generator=generator), torch.rand((3, 16), generator=generator)
    both = {name: torch.zeros((9, 1, 2, 32), dtype=torch.bfloat16) for name in ("triton", "reference")}
    slots = torch.tensor([7, 0, 4], dtype=torch.int32)
    results = {
        name: rope_append(
            qkv, angles.cos(), angles.sin(), slots, kv[:, :, 0], kv[:, :, 1], num_heads=2, num_kv_heads=1, head_dim=32, backend=name
        )
        for name, kv in both.items()
    }
    assert torch.allclose(results["triton"], results["reference"], rtol=0, atol=1e-6)
    assert torch.allclose(both["triton"].float(), both["reference"].float(), rtol=2**-7, atol=1e-6)


def test_cpu_tensors_without_the_interpreter_are_refused():
    call = "s.rms_norm(torch.ones(1, 4), torch.ones(4), 0.0, backend='triton')"
    program = f"import torch, spct_kernels as s\ntry: {call}\nexcept s.BackendError as e: print(e)"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }
    shown = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True).stdout
    assert "set TRITON_INTERPRET=1 before the program starts" in shown


def test_double_precision_is_refused():
    with pytest.raises(BackendError, match="float64"):
        rms_norm(torch.ones(1, 4, dtype=torch.float64), torch.ones(4), 0.0, backend="triton")

"""The Triton matrix product under the interpreter: the registry's cases, both layouts of the weight, segments, a row's bits."""

from __future__ import annotations

import zlib

import pytest
import torch

from spct_kernels import linear, pack, registry, triton_linear
from spct_kernels.linear import PackedLinear, linear_reference

OP = next(op for op in registry.ops() if op.name == "linear")


def assert_within_rule(actual, same_dtype, exact):
    """err(kernel, fp64) <= 2 err(torch in the same dtype, fp64) + 4 fp32 roundings of the largest value."""
    assert actual.dtype == same_dtype.dtype
    assert actual.shape == exact.shape
    if exact.numel():
        error, allowed = ((values.double() - exact).abs().max().item() for values in (actual, same_dtype))
        assert error <= 2 * allowed + 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize("case", OP.cases, ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
def test_agrees_with_the_fp64_oracle(case, dtype):
    inputs = case.build(dtype, torch.Generator().manual_seed(zlib.crc32(case.name.encode())))
    exact = linear_reference(inputs["x"].double(), inputs["weight"], inputs["bias"])
    assert_within_rule(linear(**inputs, backend="triton"), linear_reference(**inputs), exact)


def plain(weight):
    """The layout that other devices than a CPU have: [O, I, 1]."""
    return PackedLinear(
        weight.panels.transpose(1, 2).reshape(-1, weight.shape[1])[: weight.shape[0], :, None].contiguous(), weight.scheme, weight.shape
    )


@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp16"])
def test_both_layouts_and_mixed_dtypes(stored):
    generator = torch.Generator().manual_seed(1)
    packed, x = pack(torch.randn((37, 70), generator=generator), stored), torch.randn((5, 70), generator=generator)
    exact = linear_reference(x.double(), packed, None)
    result = linear(x, packed, backend="triton")
    assert_within_rule(result, linear_reference(x, packed, None), exact)
    assert torch.equal(linear(x, plain(packed), backend="triton"), result)
    assert torch.equal(plain(packed).unpack(), packed.unpack())
    assert torch.equal(plain(packed).rows(torch.tensor([36, 0, 17])), packed.rows(torch.tensor([36, 0, 17])))


def test_weights_are_replaced_in_the_plain_layout():
    weight = plain(pack(torch.zeros(5, 3), "fp32"))
    new = torch.arange(15.0).view(5, 3)
    weight.replace(new)
    assert torch.equal(weight.unpack(), new)


@pytest.mark.parametrize("full_grid", [1, 264], ids=["one program", "a program a segment"])
def test_segments_in_one_program_or_several_agree_with_the_oracle_bit_for_bit(monkeypatch, full_grid):
    generator = torch.Generator().manual_seed(2)
    packed = pack(torch.randn((20, 1100), generator=generator), "bf16")
    x, bias = torch.randn((3, 1100), generator=generator).bfloat16(), torch.randn(20, generator=generator)
    count, length = triton_linear.segments(20, 1100, 64)
    assert (count, length) == (2, 576)
    exact = linear_reference(x.double(), packed, bias)
    several = linear(x, packed, bias, backend="triton")
    assert_within_rule(several, linear_reference(x, packed, bias), exact)
    # The segments stay as they are; only who computes them changes.
    monkeypatch.setattr(triton_linear, "segments", lambda *shape: (count, length))
    monkeypatch.setattr(triton_linear, "_FULL_GRID", full_grid)
    assert torch.equal(linear(x, packed, bias, backend="triton"), several)


def test_segments_cover_the_inputs_and_depend_on_the_shape_alone():
    for outputs, inputs in ((1, 1), (64, 511), (64, 1024), (4096, 4096), (1024, 14336), (4096, 14336), (128256, 4096), (8, 100003)):
        for block in (32, 64):
            count, length = triton_linear.segments(outputs, inputs, block)
            assert (count - 1) * length < inputs <= count * length
            assert count == 1 or length % block == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_row_has_the_same_bits_in_any_batch(dtype):
    generator = torch.Generator().manual_seed(3)
    x, packed = (
        torch.randn((130, 65), generator=generator).to(dtype),
        pack(torch.randn((24, 65), generator=generator), "fp32" if dtype == torch.float32 else "bf16"),
    )
    whole = linear(x, packed, backend="triton")
    for begin, end in ((0, 1), (5, 22), (66, 130)):
        assert torch.equal(linear(x[begin:end], packed, backend="triton"), whole[begin:end])


def test_without_determinism_the_librarys_product_is_used_where_it_fits(monkeypatch):
    generator = torch.Generator().manual_seed(5)
    packed, x = plain(pack(torch.randn((9, 20), generator=generator), "fp32")), torch.randn((3, 20), generator=generator)
    exact = linear_reference(x.double(), packed, None)
    calls = []
    own = triton_linear.linear
    monkeypatch.setattr(triton_linear, "linear", lambda *arguments: calls.append(1) or own(*arguments))
    assert torch.allclose(linear(x, packed, deterministic=False, backend="triton").double(), exact, atol=1e-5)
    assert not calls
    linear(x, packed, backend="triton")
    linear(x.bfloat16(), packed, deterministic=False, backend="triton")
    assert len(calls) == 2

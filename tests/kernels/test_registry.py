"""Every registered op, on every backend, over all its cases and dtypes, against the fp64 oracle with the project's tolerance."""

from __future__ import annotations

import copy
import zlib

import pytest
import torch
from torch import Tensor

import spct_kernels  # noqa: F401 - registers the ops
from spct_kernels import registry

CALLS = [
    pytest.param(op, case, backend, dtype, id=f"{op.name}-{case.name}-{backend}-{str(dtype).removeprefix('torch.')}")
    for op in registry.ops()
    for case in op.cases
    for backend in ("reference", *op.backends)
    for dtype in case.dtypes
]


def build(case, dtype):
    generator = torch.Generator().manual_seed(zlib.crc32(case.name.encode()))
    return case.build(dtype, generator)


def assert_within_rule(actual: Tensor, same_dtype: Tensor, exact: Tensor) -> None:
    """err(kernel, fp64) <= 2 err(torch in the same dtype, fp64) + 4 fp32 roundings of the largest value."""
    assert actual.shape == exact.shape
    if not actual.is_floating_point():
        assert torch.equal(actual, exact)
        return
    assert actual.dtype == same_dtype.dtype
    finite = exact.isfinite()
    assert torch.equal(actual.isnan(), exact.isnan())
    assert torch.equal(actual[~finite].double().nan_to_num(7.0), exact[~finite].nan_to_num(7.0))
    if not finite.any():
        return
    exact = exact[finite]
    error, allowed = ((values[finite].double() - exact).abs().max().item() for values in (actual, same_dtype))
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    assert error <= 2 * allowed + floor, f"error {error:.3e}, torch's own {allowed:.3e}, floor {floor:.3e}"


@pytest.mark.parametrize(("op", "case", "backend", "dtype"), CALLS)
def test_backend_agrees_with_the_fp64_oracle(op, case, backend, dtype):
    inputs = build(case, dtype)
    oracle_inputs = registry.widened(op, inputs)
    same_inputs = build(case, dtype)
    exact = op.outputs(oracle_inputs, op.reference(**oracle_inputs))
    same_dtype = op.outputs(same_inputs, op.reference(**same_inputs))
    actual = op.outputs(inputs, op.run(**inputs, backend=backend))
    assert len(actual) == len(exact)
    for got, same, truth in zip(actual, same_dtype, exact, strict=True):
        assert_within_rule(got, same, truth)


@pytest.mark.parametrize("op", registry.ops(), ids=lambda op: op.name)
def test_inputs_are_left_alone_and_repeats_are_bitwise_equal(op):
    case = op.cases[-1]
    inputs = build(case, case.dtypes[0])
    before = copy.deepcopy({name: value for name, value in inputs.items() if isinstance(value, Tensor)})
    first = op.outputs(inputs, op.run(**inputs))
    first = [part.clone() for part in first]
    written = {id(part) for part in op.outputs(inputs, op.run(**inputs))}
    for name, value in before.items():
        if id(inputs[name]) not in written:
            assert torch.equal(inputs[name].nan_to_num(7.0), value.nan_to_num(7.0)), name
    again = op.outputs(inputs, op.run(**inputs))
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0))


@pytest.mark.parametrize("op", registry.ops(), ids=lambda op: op.name)
def test_cost_is_positive_and_grows(op):
    costs = [op.cost(build(case, case.dtypes[0])) for case in op.cases]
    assert all(cost.bytes >= 0 and cost.flops >= 0 for cost in costs)
    assert len({cost.bytes for cost in costs}) > 1


def test_an_op_needs_cases_and_a_free_name():
    op = registry.ops()[0]
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(op)
    with pytest.raises(ValueError, match="at least one case"):
        registry.register(registry.Op("lonely", op.run, op.reference, [], op.cost))
    with pytest.raises(ValueError, match="expected backends"):
        registry.register(registry.Op("elsewhere", op.run, op.reference, op.cases, op.cost, backends=("abacus",)))

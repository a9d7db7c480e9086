"""Every op that has a CPU kernel, at the shapes of real models: checked against fp64, then timed, with the floor of its cost."""

from __future__ import annotations

import zlib

import pytest
import torch
from kernel_shapes import Call, calls, cost_info
from model_check import assert_within_rule
from pytest_benchmark.fixture import BenchmarkFixture

from spct.benchmark.floor import Peaks
from spct_kernels.registry import Inputs, widened


def _inputs(call: Call) -> Inputs:
    return call.build(torch.Generator().manual_seed(zlib.crc32(call.name.encode())))


def check(call: Call) -> None:
    """The project's tolerance rule."""
    ours, plain, exact = _inputs(call), _inputs(call), widened(call.op, _inputs(call))
    results = (call.op.run(**ours, backend="cpu"), call.op.reference(**plain), call.op.reference(**exact))
    parts = [call.op.outputs(inputs, result) for inputs, result in zip((ours, plain, exact), results, strict=True)]
    magnitude = _largest_term(exact) if "lm_head" in exact else 0.0
    for actual, same, truth in zip(*parts, strict=True):
        assert_within_rule(call.name, actual, same, truth, magnitude)


def _largest_term(inputs: Inputs) -> float:
    """The largest logit: what log-probabilities are differences of.

    A head in int8 quantises the normed row, and where the norms of two backends differ by an ulp one of its numbers may land on the
    next of 127 steps: its share of a logit counts as rounding too, in units of the rule's 4 fp32 roundings.
    """
    if not inputs["hidden"].numel():
        return 0.0
    hidden, head = inputs["hidden"], inputs["lm_head"].unpack().double()
    normed = hidden * (hidden.square().mean(1, keepdim=True) + inputs["norm_eps"]).rsqrt() * inputs["norm_weight"]
    largest = float((normed @ head.T).abs().max())
    if inputs["lm_head"].scheme != "w8a8":
        return largest
    return largest + float(normed.abs().max() / 127 * head.abs().max()) / (4 * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize(("call", "is_small"), [pytest.param(c, c.is_small, id=f"{c.op.name}: {c.name}") for c in calls()])
def test_kernel(benchmark: BenchmarkFixture, call: Call, is_small: bool, peaks: Peaks | None) -> None:
    """One call, as the engine makes it."""
    check(call)
    benchmark.group = call.op.name
    inputs = _inputs(call)
    benchmark.extra_info.update(cost_info(call.op.cost(inputs), peaks))
    benchmark(call.op.run, **inputs, backend="cpu")

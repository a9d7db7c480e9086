"""Correctness on the device, before any timing: every op's cases against the fp64 oracle, poisoned outputs, bitwise repeats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from gpu_shapes import DTYPES, Grid, attention_inputs, head_inputs, linear_inputs
from torch import Tensor

from spct_kernels import AttentionPlan, PackedLinear, fused_sample, linear, pack, registry, shared_prefix_attention


class CheckFailedError(Exception):
    """An op's result is wrong; the message names the op and the case."""


def on_device(value: Any, device: torch.device) -> Any:
    """An argument of an op, moved: tensors, packed weights, plans, lists; anything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, PackedLinear):
        return value if device.type == "cpu" else pack(value.unpack().to(device), value.scheme)
    if isinstance(value, AttentionPlan):
        nodes, count = value.nodes.cpu(), value.num_nodes
        return AttentionPlan.build(
            node_parent=nodes[1, :count],
            node_offset=nodes[0, : count + 1],
            node_slots=value.node_slots[: int(nodes[0, count])],
            row_node=value.rows[0, : value.num_rows],
            row_position=value.rows[1, : value.num_rows],
            num_heads=value.num_heads,
            num_kv_heads=value.num_kv_heads,
            head_dim=value.head_dim,
            device=device,
        )
    return tuple(on_device(part, device) for part in value) if isinstance(value, tuple) else value


def poison(device: torch.device) -> None:
    """Leaves NaN in memory that the allocator will hand out next: an output that is not written shows."""
    for size in (1 << 8, 1 << 12, 1 << 16, 1 << 20):
        blocks = [torch.full((size,), torch.nan, device=device) for _ in range(8)]
        del blocks


def close(name: str, actual: Tensor, exact: Tensor, same_dtype: Tensor) -> None:
    """The project's rule: err(kernel, fp64) <= 2 err(torch in the same dtype, fp64) + 4 fp32 roundings of the largest value.

    Raises: CheckFailedError.
    """
    actual, same_dtype = actual.cpu(), same_dtype.cpu()
    exact = exact.cpu()
    if not actual.is_floating_point():
        if not torch.equal(actual, exact):
            raise CheckFailedError(f"{name}: integers differ")
        return
    if not torch.equal(actual.isnan(), exact.isnan()):
        raise CheckFailedError(f"{name}: NaN where the oracle has none, or none where it has")
    finite = exact.isfinite()
    if not finite.any():
        return
    error, allowed = ((part[finite].double() - exact[finite].double()).abs().max().item() for part in (actual, same_dtype))
    floor = 4 * torch.finfo(torch.float32).eps * exact[finite].abs().max().item()
    if not error <= 2 * allowed + floor:
        raise CheckFailedError(f"{name}: error {error:.2e} against fp64, torch's own is {allowed:.2e}")


def registered(device: torch.device, seed: int, dry: bool) -> Iterator[str]:
    """Every op's cases with fresh numbers; dry: the cheapest three of an op, in one dtype, as the interpreter is slow."""
    for op in (one for one in registry.ops() if one.triton):
        cases = sorted(op.cases, key=lambda case: op.cost(case.build(case.dtypes[0], torch.Generator().manual_seed(0))).flops)
        for case in cases[:3] if dry else cases:
            for dtype in case.dtypes[:1] if dry else case.dtypes:
                builds = [case.build(dtype, torch.Generator().manual_seed(seed)) for _ in range(3)]
                wide, same = registry.widened(op, builds[0]), builds[1]
                exact = op.outputs(wide, op.reference(**wide))
                own = op.outputs(same, op.reference(**same))
                inputs = {name: on_device(value, device) for name, value in builds[2].items()}
                poison(device)
                actual = op.outputs(inputs, op.run(**inputs, backend="triton"))
                name = f"{op.name}, {case.name}, {dtype}"
                for got, truth, plain in zip(actual, exact, own, strict=True):
                    close(name, got, truth, plain)
                yield name


def repeats(grid: Grid, device: torch.device, generator: torch.Generator, count: int) -> Iterator[str]:
    """The same call `count` times at the largest batch: bits that change are a race.

    Raises: CheckFailedError.
    """
    model = grid.models[0]
    batch = max(grid.batches(model), key=lambda one: (one.rows, -one.prefix, one.suffix))
    attention = attention_inputs(model, batch, device, generator)
    head = head_inputs(model, batch.rows, 0.95, device, generator)
    product = linear_inputs((batch.rows, *model.projections[0][1:]), DTYPES[model.dtype], device, generator)
    calls = {
        "attention": lambda: shared_prefix_attention(**attention, backend="triton"),
        "head": lambda: fused_sample(**head, backend="triton").logprob,
        "linear": lambda: linear(**product, backend="triton"),
    }
    for name, call in calls.items():
        first = call()
        differing = torch.zeros((), dtype=torch.int64, device=device)
        for _ in range(count):
            differing += (call() != first).any()
        if int(differing):
            raise CheckFailedError(f"{name}, {model.name}, {batch.name}: {int(differing)} of {count} repeats differ")
        yield f"{name}, {model.name}, {batch.name}: {count} repeats alike"

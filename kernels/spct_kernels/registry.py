"""The registry of ops: none without its reference, its cases and its cost, so that one test and one bench cover them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One way to call an op.

    name    what is special about it, such as "rows=33 width=7"
    build   (dtype, generator) -> keyword arguments, on the CPU; everything random comes from the generator
    dtypes  the dtypes that the case is run with
    """

    name: str
    build: Callable[[torch.dtype, torch.Generator], Inputs]
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Cost:
    """What an op must at least move and compute: the floor that its time is compared with."""

    bytes: int
    flops: int


def _plain_outputs(inputs: Mapping[str, Any], result: object) -> tuple[Tensor, ...]:
    """A result's tensors: itself, or the members of a tuple."""
    return (result,) if isinstance(result, Tensor) else tuple(part for part in result if isinstance(part, Tensor))  # type: ignore[attr-defined] # a tuple


@dataclass(frozen=True, slots=True)
class Op:
    """One op: how it is run on a backend, and what every backend is held to.

    name       the public function's name
    run        the public function; takes `backend=` beside the inputs
    reference  plain torch on the same inputs, in their own dtype; with fp64 inputs it is the oracle
    cases      the calls that tests and benchmarks make
    cost       bytes and FLOPs of a call
    backends   the backends that exist beside "reference"
    outputs    (inputs, result) -> the tensors to compare: those that the op writes in place belong to them
    widen      inputs -> the same with fp64 tensors, for the oracle
    triton     False: it has no Triton kernel, so what measures those leaves it out
    """

    name: str
    run: Callable[..., Any]
    reference: Callable[..., Any]
    cases: Sequence[Case]
    cost: Callable[[Inputs], Cost]
    backends: tuple[str, ...] = ("cpu",)
    outputs: Callable[[Inputs, Any], tuple[Tensor, ...]] = _plain_outputs
    widen: Callable[[Inputs], Inputs] | None = None
    triton: bool = True


_ops: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Adds an op.

    Raises: ValueError if the name is taken, or if it comes without cases or with an unknown backend.
    """
    if op.name in _ops:
        raise ValueError(f"op {op.name!r} is registered twice")
    if not op.cases:
        raise ValueError(f"op {op.name!r}: expected at least one case, got none")
    if not (callable(op.run) and callable(op.reference) and callable(op.cost)):
        raise ValueError(f"op {op.name!r}: run, reference and cost must be functions")
    unknown = set(op.backends) - {"cpu", "triton"}
    if unknown:
        raise ValueError(f"op {op.name!r}: expected backends cpu, triton, got {sorted(unknown)}")
    _ops[op.name] = op
    return op


def ops() -> tuple[Op, ...]:
    """Every registered op, by name."""
    return tuple(_ops[name] for name in sorted(_ops))


def widened(op: Op, inputs: Inputs) -> Inputs:
    """The inputs of the fp64 oracle: floating-point tensors in fp64, everything else as it is; nothing is shared."""
    if op.widen is not None:
        return op.widen(inputs)
    return {
        name: (value.double() if value.is_floating_point() else value.clone()) if isinstance(value, Tensor) else value
        for name, value in inputs.items()
    }

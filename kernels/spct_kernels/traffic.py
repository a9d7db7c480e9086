"""Counts the bytes and FLOPs that Triton kernels ask for, against the op's floor: `python -m spct_kernels.traffic [--json]`.

The kernels run under Triton's interpreter, whose loads, stores, atomics and dots are counted: an instruction's distinct addresses
once, a dot with all rows and columns of its tile. Caches are not modelled: what two programs read is counted twice. The floor is the
cost that the op is registered with. Exit status: 0, 2 on bad usage.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import numpy as np
import torch
from triton.runtime import interpreter

from spct_kernels.errors import BackendError
from spct_kernels.registry import Inputs, Op, ops

MAX_FLOPS = 1 << 24
"""The largest registered case up to here is run: the interpreter takes seconds for it."""


@dataclass(slots=True)
class Traffic:
    """What a kernel asked for, over all its programs.

    loaded, stored  bytes; atomics count as both
    flops           of dots: two per product
    """

    kernel: str
    loaded: int = 0
    stored: int = 0
    flops: int = 0
    launches: int = 0

    @property
    def bytes(self) -> int:
        """Loaded and stored."""
        return self.loaded + self.stored


@dataclass(slots=True)
class Measured:
    """One op's call: what its kernels asked for, and the floor."""

    op: str
    case: str
    bytes: int
    floor_bytes: int
    flops: int
    floor_flops: int
    kernels: list[Traffic] = field(default_factory=list)


def _asked_bytes(pointers: Any, mask: Any) -> int:
    """Bytes at the distinct addresses of one instruction."""
    addresses = np.broadcast_to(pointers.data, np.broadcast_shapes(np.shape(pointers.data), np.shape(mask.data)))
    distinct: Any = np.unique(addresses[np.broadcast_to(mask.data, addresses.shape).astype(bool)])
    element = pointers.get_element_ty()
    return int(distinct.size) * max(8, int(element.primitive_bitwidth)) // 8


@contextlib.contextmanager
def counting() -> Iterator[dict[str, Traffic]]:
    """Counts what every kernel launched inside asks for, by the kernel's name.

    Raises: BackendError if Triton was imported without its interpreter.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError("traffic: expected TRITON_INTERPRET=1 when Triton is imported; set it before the program starts")
    counts: dict[str, Traffic] = {}
    running: list[Traffic] = []
    builder, executor = interpreter.InterpreterBuilder, interpreter.GridExecutor
    originals = {name: getattr(builder, name) for name in ("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_dot")}
    launch = executor.__call__

    def load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        running[-1].loaded += _asked_bytes(pointers, mask)
        return originals["create_masked_load"](self, pointers, mask, *rest)

    def store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        running[-1].stored += _asked_bytes(pointers, mask)
        return originals["create_masked_store"](self, pointers, value, mask, *rest)

    def atomic(self: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        asked = _asked_bytes(pointers, mask)
        running[-1].loaded += asked
        running[-1].stored += asked
        return originals["create_atomic_rmw"](self, operation, pointers, value, mask, *rest)

    def dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        running[-1].flops += 2 * int(a.data.size) * int(b.data.shape[-1])
        return originals["create_dot"](self, a, b, *rest)

    @functools.wraps(launch)
    def launched(self: Any, *arguments: Any, **options: Any) -> Any:
        name = str(self.fn.__name__).strip("_").removesuffix("_kernel")
        running.append(counts.setdefault(name, Traffic(name)))
        running[-1].launches += 1
        try:
            return launch(self, *arguments, **options)
        finally:
            running.pop()

    patched: dict[str, Callable[..., Any]] = dict(zip(originals, (load, store, atomic, dot), strict=True))
    try:
        for name, function in patched.items():
            setattr(builder, name, function)
        executor.__call__ = launched
        yield counts
    finally:
        for name, function in originals.items():
            setattr(builder, name, function)
        executor.__call__ = launch


def measure(op: Op, case: str, inputs: Inputs) -> Measured:
    """Runs an op's Triton backend on CPU tensors and counts."""
    floor = op.cost(inputs)
    with counting() as counts:
        op.run(**inputs, backend="triton")
    kernels = sorted(counts.values(), key=lambda one: -one.bytes)
    return Measured(
        op.name, case, sum(one.bytes for one in kernels), floor.bytes, sum(one.flops for one in kernels), floor.flops, kernels
    )  # fmt: skip


def largest_case(op: Op, dtype: torch.dtype) -> tuple[str, Inputs]:
    """The registered case with the highest floor up to MAX_FLOPS."""
    built = [(case.name, case.build(dtype, torch.Generator().manual_seed(0))) for case in op.cases if dtype in case.dtypes]
    affordable = [one for one in built if op.cost(one[1]).flops <= MAX_FLOPS]
    return max(affordable, key=lambda one: op.cost(one[1]).bytes)


def _print_table(rows: list[Measured]) -> None:
    print(f"{'op / kernel':34} {'loaded':>12} {'stored':>12} {'floor':>12} {'ratio':>7} {'FLOPs':>14} {'ratio':>7}")
    for row in rows:
        ratio, work = row.bytes / max(1, row.floor_bytes), row.flops / max(1, row.floor_flops)
        loaded, stored = sum(one.loaded for one in row.kernels), sum(one.stored for one in row.kernels)
        print(f"{row.op:34} {loaded:12} {stored:12} {row.floor_bytes:12} {ratio:7.2f} {row.flops:14} {work:7.2f}   {row.case}")
        for one in row.kernels:
            print(f"  {one.kernel:32} {one.loaded:12} {one.stored:12} {'':12} {'':7} {one.flops:14}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m spct_kernels.traffic", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout: a list of ops with their kernels")
    parser.add_argument("--op", default="", help="only ops whose name holds this")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    options = parser.parse_args(arguments)
    known = [op for op in ops() if op.triton]
    chosen = [op for op in known if options.op in op.name]
    if not chosen:
        print(f"traffic: no op is called {options.op!r}; there are {', '.join(op.name for op in known)}", file=sys.stderr)
        return 2
    rows = []
    for op in chosen:
        case, inputs = largest_case(op, getattr(torch, options.dtype))
        rows.append(measure(op, case, inputs))
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        print()
    else:
        _print_table(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())

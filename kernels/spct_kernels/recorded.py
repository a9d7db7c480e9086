"""Records how kernels are launched, under Triton's interpreter: what an engine run needs, to be held against `compile_rows`."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from triton.runtime.interpreter import GridExecutor

from spct_kernels.errors import BackendError
from spct_kernels.specialisation import Specialisation

TILES = frozenset({"BLOCK_M", "BLOCK_N", "BLOCK_T", "BLOCK_V", "BLOCK_E", "BLOCK_O", "BLOCK_I", "HEADS", "ROWS"})
"""Constants that the device decides; the interpreter's say nothing about a GPU's."""

_TYPES = {
    "float32": "fp32", "bfloat16": "bf16", "float16": "fp16", "float8_e4m3fn": "fp8e4nv", "int8": "i8", "int32": "i32", "int64": "i64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel with its pointers' types and its constants, TILES left out; what is None counts as a constant."""

    kernel: str
    pointers: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, str], ...]


def launch_of(one: Specialisation) -> Launch:
    """The launch that a row of `compile_rows` stands for."""
    pointers = {name: kind for name, kind in one.signature.items() if kind.startswith("*")}
    return _launch(one.kernel_name, pointers, dict(one.constexprs))


def _launch(kernel: str, pointers: dict[str, str], constants: dict[str, Any]) -> Launch:
    kept = sorted((name, repr(value)) for name, value in constants.items() if name not in TILES)
    return Launch(kernel, tuple(sorted(pointers.items())), tuple(kept))


@contextlib.contextmanager
def recording() -> Iterator[set[Launch]]:
    """The set of all launches inside, which grows as they happen.

    Raises: BackendError if Triton was imported without its interpreter.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError("recorded: expected TRITON_INTERPRET=1 when Triton is imported; set it before the program starts")
    found: set[Launch] = set()
    launch = GridExecutor.__call__

    @functools.wraps(launch)
    def launched(self: Any, *arguments: Any, **options: Any) -> Any:
        given = dict(zip(self.arg_names, arguments, strict=False)) | options
        kinds = self.fn.__annotations__
        pointers = {name: f"*{_TYPES[str(value.dtype)[6:]]}" for name, value in given.items() if isinstance(value, Tensor)}
        constants = {name: value for name, value in given.items() if name in kinds and (value is None or name in self.constexprs)}
        found.add(_launch(str(self.fn.__name__).strip("_").removesuffix("_kernel"), pointers, constants))
        return launch(self, *arguments, **options)

    GridExecutor.__call__ = launched
    try:
        yield found
    finally:
        GridExecutor.__call__ = launch

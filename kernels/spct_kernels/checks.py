"""Checks of arguments, shared by every op: symbolic shapes bound across tensors, dtypes, devices."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from spct_kernels.errors import InputError

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@functools.lru_cache(maxsize=1024)
def _parse(shape: str) -> tuple[tuple[str, int | None], ...]:
    """Dimensions of "T H 2": (name, None) for a symbol, (text, value) for a number."""
    return tuple((name, int(name) if name.isdigit() else None) for name in shape.split())


def _describe(shape: str, dims: dict[str, int]) -> str:
    """The expected shape for a message: symbols already bound show their value."""
    names = [f"{name}={dims[name]}" if name in dims and not name.isdigit() else name for name, _ in _parse(shape)]
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def bind(dims: dict[str, int] | None = None, /, **tensors: tuple[Tensor, str]) -> dict[str, int]:
    """Binds symbolic dimensions across tensors: `bind(q=(q, "T H D"), k=(k, "S K D"))` gives {"T": …, "H": …, …}.

    dims     dimensions bound before (extended in place), or None
    tensors  name=(tensor, shape): the first tensor that has a symbol binds it, later ones must agree; a number means itself
    returns  every bound dimension

    Raises: InputError, such as "k: expected shape (S, K, D=128), got (40, 8, 64)", for a wrong shape, or for tensors on
    different devices.
    """
    dims = {} if dims is None else dims
    given = dict(dims)
    device: torch.device | None = None
    for name, (tensor, shape) in tensors.items():
        sizes = tensor.shape
        parsed = _parse(shape)
        matches = len(sizes) == len(parsed)
        if matches:
            for size, (symbol, number) in zip(sizes, parsed, strict=True):
                if (number if number is not None else dims.setdefault(symbol, size)) != size:
                    matches = False
        if not matches:
            raise InputError(f"{name}: expected shape {_describe(shape, _bound_before(name, given, tensors))}, got {tuple(sizes)}")
        if device is None:
            device = tensor.device
        elif tensor.device != device:
            raise InputError(f"{name}: expected all tensors on one device, {device}, got {tensor.device}; move it with .to()")
    return dims


def _bound_before(name: str, given: dict[str, int], tensors: dict[str, tuple[Tensor, str]]) -> dict[str, int]:
    """The dimensions known when tensor `name` was looked at: the given ones, then those of the tensors before it."""
    dims = dict(given)
    for other, (tensor, shape) in tensors.items():
        if other == name:
            break
        for size, (symbol, _) in zip(tensor.shape, _parse(shape), strict=True):
            dims.setdefault(symbol, size)
    return dims


def check_dtype(name: str, tensor: Tensor, allowed: Iterable[torch.dtype]) -> None:
    """Raises InputError unless the tensor's dtype is one of `allowed`."""
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise InputError(f"{name}: expected dtype {names}, got {str(tensor.dtype).removeprefix('torch.')}; convert it with .to()")

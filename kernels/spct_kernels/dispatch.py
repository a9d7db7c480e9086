"""Which backend computes an op: "auto", "reference" (plain torch), "cpu" (csrc) or "triton".

The C++ library is loaded once, on import; where it is missing or can't be loaded, "cpu" raises BackendError on use and "auto"
computes with plain torch after one warning. `SPCT_CPU` forces a lower CPU level (one of CPU_LEVELS) than the best one.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from spct_kernels.errors import BackendError, InputError

_HAS_TRITON = importlib.util.find_spec("triton") is not None

BACKENDS = ("auto", "reference", "cpu", "triton")
CPU_LEVELS = ("scalar", "avx2", "avx512", "avx512vnni", "avx512bf16", "amx", "neon", "neondot")

_BUILD_HINT = "build it with `pip install --no-build-isolation -e .` (needs a C++20 compiler), or pass backend='reference'"


class _Library:
    """The loaded C++ library, or why there is none."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.warned = False
        files = sorted(Path(__file__).parent.glob("_C*.so"))
        if not files:
            self.error = f"the C++ kernels (spct_kernels/_C*.so) are not built; {_BUILD_HINT}"
            return
        try:
            torch.ops.load_library(str(files[0]))  # type: ignore[no-untyped-call] # torch leaves it untyped
        except OSError as error:
            self.error = f"{files[0].name} can't be loaded by torch {torch.__version__}: {error}; {_BUILD_HINT}"
            return
        level = os.environ.get("SPCT_CPU", "")
        if level:
            try:
                set_cpu_level(level)
            except BackendError as error:
                self.error = f"SPCT_CPU={level}: {error}"


def set_cpu_level(level: str) -> None:
    """Makes the C++ kernels run at a lower CPU level than the best one, for tests and comparisons; process-wide.

    Raises: BackendError if the level is unknown, or if this CPU or this build lacks it.
    """
    ops = torch.ops.spct
    available = [name for index, name in enumerate(CPU_LEVELS) if ops.cpu_level_supported(index)]
    if level not in available:
        raise BackendError(f"CPU level: expected one of {', '.join(available)} on this machine, got {level!r}")
    ops.set_cpu_level(CPU_LEVELS.index(level))


def cpu_level() -> str:
    """The CPU level that the C++ kernels run at: one of CPU_LEVELS.

    Raises: BackendError if the C++ kernels are missing.
    """
    return CPU_LEVELS[cpu_ops().cpu_level()]


def cpu_levels() -> tuple[str, ...]:
    """The levels that this machine can run, the slowest first; empty without the C++ kernels."""
    if _library.error is not None:
        return ()
    return tuple(name for index, name in enumerate(CPU_LEVELS) if torch.ops.spct.cpu_level_supported(index))


def cpu_ops() -> Any:
    """The namespace `torch.ops.spct` of the C++ kernels.

    Raises: BackendError if they are missing.
    """
    if _library.error is not None:
        raise BackendError(f"backend 'cpu': {_library.error}")
    return torch.ops.spct


def resolve(backend: str, device: torch.device, dtype: torch.dtype | None = None) -> str:
    """The backend that computes on `device`: "reference", "cpu" or "triton"; never "auto". fp64 is left to plain torch.

    Raises: InputError for an unknown name; BackendError if the backend is missing or does not fit the device or dtype.
    """
    kind = device.type
    if backend == "auto":
        if kind != "cpu":
            backend = "triton"
        elif dtype == torch.float64:
            return "reference"
        elif _library.error is None:
            return "cpu"
        else:
            if not _library.warned:
                _library.warned = True
                warnings.warn(f"spct_kernels: computing with plain torch: {_library.error}", RuntimeWarning, stacklevel=3)
            return "reference"
    if backend == "reference":
        return backend
    if backend == "cpu":
        if kind != "cpu":
            raise BackendError(f"backend 'cpu': expected CPU tensors, got {device}; pass backend='auto' or move them with .cpu()")
        cpu_ops()
        if dtype == torch.float64:
            raise BackendError("backend 'cpu': expected fp32, bf16 or fp16, got float64; pass backend='reference', which takes it")
        return backend
    if backend == "triton":
        _check_triton(device, dtype)
        return backend
    raise InputError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")


def _check_triton(device: torch.device, dtype: torch.dtype | None) -> None:
    """Raises BackendError unless Triton is installed and can compute on the device in the dtype."""
    if not _HAS_TRITON:
        raise BackendError("backend 'triton': the package triton is not installed; install it, or pass backend='reference'")
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendError(
            "backend 'triton': CPU tensors need Triton's interpreter; set TRITON_INTERPRET=1 before the program starts, "
            "or pass backend='cpu'"
        )
    if dtype == torch.float64:
        raise BackendError("backend 'triton': expected fp32, bf16 or fp16, got float64; pass backend='reference', which takes it")


_triton_modules: dict[str, Any] = {}


def triton_kernels(name: str) -> Any:
    """The module `spct_kernels.triton_{name}`, imported when it is first used: Triton is optional, and its import takes a second."""
    _load_triton(name)
    return _triton_modules[name]


def _load_triton(name: str) -> bool:
    if name not in _triton_modules:
        _triton_modules[name] = importlib.import_module(f"spct_kernels.triton_{name}")
    return True


# torch.compile does not trace imports: it calls this one while it traces. What torch.compiler.assume_constant_result does, whose own
# import takes seconds.
_load_triton._dynamo_marked_constant = True  # type: ignore[attr-defined] # functions have no such attribute by themselves


def has_cpu_kernels() -> bool:
    """True if the C++ kernels are loaded."""
    return _library.error is None


_library = _Library()

"""What every Triton kernel shares: how a kernel is marked, compile options, arithmetic that the interpreter and the GPU both have.

Kernels are decided at import: with TRITON_INTERPRET=1 in the environment they run on CPU tensors, without it on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
import triton
import triton.language as tl
from torch import Tensor

from spct_kernels.errors import BackendError

_P = ParamSpec("_P")
_R = TypeVar("_R")

COMPILE = {"enable_fp_fusion": False}
"""Passed to every launch. Triton compiles a kernel anew for other alignments of its arguments; where a multiplication and an
addition may fuse, such a compilation could round otherwise, and a row's bits would depend on the batch. Dots still use FMA."""

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""True where kernels run on CPU tensors."""


def kernel(*unspecialised: str) -> Callable[[Callable[..., Any]], Any]:
    """Marks a launched kernel; arguments named here are not compiled in, whatever their value (counts of rows change every step)."""

    def mark(function: Callable[..., Any]) -> Any:
        return triton.jit(function, do_not_specialize=list(unspecialised))

    return mark


def device(function: Callable[..., Any]) -> Any:
    """Marks a function that kernels call."""
    return triton.jit(function)


def traced_as_op(host: Callable[_P, _R]) -> Callable[_P, _R]:
    """Marks a host function whose name and arguments are those of an op of `custom_ops`: `torch.compile` sees that op, one node.

    Called otherwise, it runs without torch's dispatcher, which would cost tens of microseconds a launch.
    """

    @functools.wraps(host)
    def run(*arguments: _P.args, **options: _P.kwargs) -> _R:
        if torch.compiler.is_compiling():
            return getattr(torch.ops.spct_triton, host.__name__)(*arguments, **options)  # type: ignore[no-any-return] # torch.ops is untyped
        return host(*arguments, **options)

    return run


def next_power_of_2(count: int) -> int:
    """The smallest power of two that is at least `count`; 1 for 0."""
    return 1 << max(0, count - 1).bit_length()


def check_runnable(tensor: Tensor, function: Any) -> None:
    """Raises BackendError if the kernel was compiled for a GPU and the tensor is on the CPU, or the other way round."""
    interpreted = not isinstance(function, triton.runtime.JITFunction)
    if interpreted != (tensor.device.type == "cpu"):
        raise BackendError(
            f"backend 'triton': expected {'CPU tensors' if interpreted else 'GPU tensors'}, got {tensor.device}: TRITON_INTERPRET was "
            f"{'set' if interpreted else 'not set'} when the kernels were imported; set it before the program starts, or unset it"
        )


@functools.cache
def target(device: torch.device) -> str:
    """The device's name among compile targets, such as "sm_90" or "gfx942"; "cpu" under the interpreter."""
    if device.type == "cpu":
        return "cpu"
    if torch.version.hip:
        return str(torch.cuda.get_device_properties(device).gcnArchName).split(":")[0]
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


@device
def narrow(x: tl.tensor, dtype: tl.constexpr) -> tl.tensor:
    """fp32 numbers in a storage dtype, rounded to nearest even. The interpreter cuts where it converts to bf16: there by hand."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        return tl.where(x == x, rounded, x).to(dtype)
    else:
        return x.to(dtype)


@device
def dot(a: tl.tensor, b: tl.tensor, accumulator: tl.tensor) -> tl.tensor:
    """Product: accumulator + a @ b in fp32, no TF32. The interpreter's product of bf16 operands is wrong (Triton 3.6, 3.7)."""
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), accumulator, input_precision="ieee")
    else:
        return tl.dot(a, b, accumulator, input_precision="ieee")


@device
def tanh(x: tl.tensor) -> tl.tensor:
    """Hyperbolic tangent to about 2 fp32 roundings; libdevice's is missing under the interpreter.

    Beyond 0.5: 1 - 2 / (e^2x + 1). Below, where that cancels: the continued fraction of tanh (Lambert 1761), cut after 11.
    """
    square = x * x
    fraction = x / (1.0 + square / (3.0 + square / (5.0 + square / (7.0 + square / (9.0 + square / 11.0)))))
    power = tl.exp2(tl.abs(x) * 2.8853900817779268)
    outer = 1.0 - 2.0 / (power + 1.0)
    return tl.where(tl.abs(x) < 0.5, fraction, tl.where(x < 0.0, -outer, outer))


@device
def inverse_rms(square_sum: tl.tensor, width: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """1 / sqrt(mean square + eps), rounded correctly at each step as on the CPU."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(square_sum, width) + eps))

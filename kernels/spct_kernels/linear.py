"""Linear layers with packed weights (`packed`): the op, its reference, and its cases."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.dispatch import cpu_ops, has_cpu_kernels, resolve, triton_kernels
from spct_kernels.errors import BackendError, InputError
from spct_kernels.packed import PANEL, SCHEMES, SHARD_AXES, PackedLinear, pack, quantise_int8, quantise_rows
from spct_kernels.registry import Case, Cost, Inputs, Op, register

__all__ = ["PANEL", "SCHEMES", "SHARD_AXES", "PackedLinear", "linear", "linear_reference", "pack", "quantise_int8", "w8a8_reference"]


def linear_reference(x: Tensor, weight: PackedLinear, bias: Tensor | None) -> Tensor:
    """X @ weight.T + bias in fp32 (fp64 where x is fp64), rounded to x's dtype; under "w8a8" with the rows of x quantised."""
    wide = x if x.dtype == torch.float64 else x.float()
    bias = None if bias is None else bias.to(wide.dtype)
    if weight.scheme != "w8a8":
        return F.linear(wide, weight.unpack().to(wide.dtype), bias).to(x.dtype)
    out = w8a8_reference(wide, weight, torch.arange(weight.shape[0], device=x.device))
    return (out if bias is None else out + bias).to(x.dtype)


def w8a8_reference(x: Tensor, weight: PackedLinear, ids: Tensor) -> Tensor:
    """Products of quantised rows with some outputs of a "w8a8" weight: the exact sum, times the row's scale, times the output's.

    x        [T, I]  fp32, or fp64: then nothing after the quantisation, which is defined in fp32, is rounded
    ids      [n]     outputs
    returns  [T, n]  x's dtype
    """
    assert weight.scale is not None
    quantised, row_scale = quantise_rows(x)
    stored = weight.panels[ids // PANEL, :, ids % PANEL].flatten(1)[:, : weight.shape[1]]
    # fp64 holds every sum exactly: MAX_W8A8_INPUTS keeps them below 2^31.
    sums = (quantised.double() @ stored.double().T).to(x.dtype)
    return sums * row_scale.to(x.dtype)[:, None] * weight.scale[ids].to(x.dtype)


def linear(x: Tensor, weight: PackedLinear, bias: Tensor | None = None, deterministic: bool = True, *, backend: str = "auto") -> Tensor:
    """Linear layer: x @ weight.T + bias, products and sums in fp32, or in int32 under "w8a8".

    x              [T, I]  fp32, bf16 or fp16
    weight         (O, I)  from `pack`
    bias           [O]     any of these, or None
    deterministic  False: on a GPU cuBLAS may compute it, whose bits depend on T, where x and the weight have one dtype
    returns        [T, O]  x's dtype

    "w8a8" quantises every row of x by itself (`quantise_rows`): out = sum * row's scale * output's scale + bias, three fp32 roundings
    after an exact sum. A row with NaN or Inf gives NaN, its neighbours do not change.

    Where x and the weight are bf16, the C++ kernels add exact products by pairs at the CPU levels avx512bf16 and amx; these instructions
    take subnormal numbers for zero.

    Cost: the packed weight read once for all rows; 2*T*O*I FLOPs, or as many integer operations. Invariant: a row's bits depend neither
    on T, nor on its place, nor on the threads (the C++ backend holds this also under deterministic=False); under "w8a8" not on the
    CPU level or the backend either. An fp8 weight has no C++ kernel: "auto" computes it with plain torch on a CPU, without that
    invariant; its Triton kernel needs a GPU from sm_89 on, or gfx942.
    Raises: InputError if shapes, dtypes or devices disagree; BackendError if the backend is missing or has no kernel for the scheme.
    """
    outputs, inputs = weight.shape
    dims = {"O": outputs, "I": inputs}
    if bias is None:
        bind(dims, x=(x, "T I"))
    else:
        bind(dims, x=(x, "T I"), bias=(bias, "O"))
    check_dtype("x", x, FLOAT_DTYPES)
    if weight.device != x.device:
        raise InputError(f"weight: expected on x's device {x.device}, got {weight.device}; pack it there")
    chosen = resolve(backend, x.device, x.dtype)
    if chosen == "cpu" and weight.scheme == "fp8":
        if backend == "cpu":
            raise BackendError("backend 'cpu': there is no C++ kernel for scheme 'fp8'; pack the weight as 'int8', or pass backend='auto'")
        chosen = "reference"
    if chosen == "reference":
        return linear_reference(x, weight, bias)
    if chosen == "triton" and weight.scheme == "w8a8":
        raise BackendError("backend 'triton': there is no kernel for scheme 'w8a8'; pack the weight as 'int8', or pass backend='auto'")
    if chosen == "triton" and not deterministic and weight.panels.dtype == x.dtype and weight.panels.shape[2] == 1:
        return F.linear(x, weight.panels[:, :, 0], None if bias is None else bias.to(x.dtype))
    if bias is not None:
        bias = bias.float().contiguous()
    x = x.contiguous()
    if chosen == "triton":
        return triton_kernels("linear").linear(x, weight, bias)  # type: ignore[no-any-return] # imported by name
    ops = cpu_ops()  # torch.ops is untyped
    if weight.sums is not None:
        return ops.linear_w8a8(x, weight.panels, weight.scale, weight.sums, bias)  # type: ignore[no-any-return]
    if weight.scale is not None:
        return ops.linear_int8(x, weight.panels, weight.scale, bias)  # type: ignore[no-any-return]
    return ops.linear(x, weight.panels, bias, outputs)  # type: ignore[no-any-return]


def _linear_int8_fake(x: Tensor, packed: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Shapes and dtypes alone, for torch's tracing."""
    return x.new_empty((x.shape[0], scale.shape[0]))


def _linear_w8a8_fake(x: Tensor, packed: Tensor, scale: Tensor, sums: Tensor, bias: Tensor | None) -> Tensor:
    """Shapes and dtypes alone, for torch's tracing."""
    return x.new_empty((x.shape[0], scale.shape[0]))


if has_cpu_kernels():
    torch.library.register_fake("spct::linear_int8", _linear_int8_fake)
    torch.library.register_fake("spct::linear_w8a8", _linear_w8a8_fake)


def _case(rows: int, outputs: int, inputs: int, bias: bool, strided: bool = False, scheme: str = "") -> Case:
    def build(dtype: torch.dtype, generator: torch.Generator) -> Inputs:
        stored = scheme or next(name for name, stored in SCHEMES.items() if stored == dtype)
        step = 2 if strided else 1
        return {
            "x": torch.randn((rows, inputs * step), generator=generator).to(dtype)[:, ::step],
            "weight": pack(torch.randn((outputs, inputs), generator=generator), stored),
            "bias": torch.randn(outputs, generator=generator) if bias else None,
        }

    options = "".join(f" {name}" for name, there in (("bias", bias), ("strided", strided), (scheme, scheme)) if there)
    return Case(f"rows={rows} outputs={outputs} inputs={inputs}{options}", build)


def _cost(inputs: Inputs) -> Cost:
    x, weight = inputs["x"], inputs["weight"]
    outputs, depth = weight.shape
    return Cost(weight.nbytes + (x.numel() + len(x) * outputs) * x.element_size(), 2 * len(x) * outputs * depth)


register(
    Op(
        "linear",
        linear,
        linear_reference,
        [
            _case(1, 1, 1, False),
            _case(1, 17, 67, True),
            _case(2, 64, 129, False),
            _case(13, 31, 128, True),
            _case(33, 192, 512, False),
            _case(5, 48, 300, True, strided=True),
            _case(0, 16, 32, True),
            _case(200, 70, 61, False),
        ],
        _cost,
    )
)
register(
    Op(
        "linear_int8",
        linear,
        linear_reference,
        [_case(*shape, scheme="int8") for shape in ((1, 1, 1, False), (1, 17, 67, True), (3, 20, 1100, True), (0, 16, 32, False))],
        _cost,
        backends=("cpu", "triton"),
    )
)
register(
    Op(
        "linear_fp8",
        linear,
        linear_reference,
        [_case(*shape, scheme="fp8") for shape in ((1, 1, 1, False), (1, 17, 67, True), (3, 20, 1100, True), (0, 16, 32, False))],
        _cost,
        backends=("triton",),
    )
)
register(
    Op(
        "linear_w8a8",
        linear,
        linear_reference,
        [
            _case(*shape, scheme="w8a8")
            for shape in (
                (1, 1, 1, False, False),
                (1, 17, 67, True, False),
                (2, 64, 129, False, False),
                (13, 31, 128, True, False),
                (33, 192, 512, False, False),
                (5, 48, 302, True, True),
                (0, 16, 32, True, False),
                (200, 70, 61, False, False),
            )
        ],
        _cost,
        triton=False,
    )
)

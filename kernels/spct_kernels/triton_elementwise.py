"""The `triton` backend of the norms and the gated activation: one pass over memory, fp32 arithmetic; maths in `elementwise_reference`."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from spct_kernels.specialisation import ModelShape, Specialisation
from spct_kernels.triton_common import COMPILE, check_runnable, device, inverse_rms, kernel, narrow, next_power_of_2, traced_as_op

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
_MAX_COLUMNS = 2048
"""Columns of a row that one program of the gated activation takes."""


@kernel()
def _rms_norm_kernel(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    out_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    num_columns: tl.tensor,
    eps: tl.tensor,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row a program: the row stays in registers between the sum of squares and the result."""
    columns = tl.arange(0, BLOCK)
    inside = columns < num_columns
    row = tl.program_id(0).to(tl.int64) * num_columns
    x = tl.load(x_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(residual_ptr + row + columns, mask=inside, other=0.0).to(tl.float32)
        total = narrow(x, sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row + columns, total, mask=inside)
        # The norm is that of the sum as the next layer will read it.
        x = total.to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    scale = inverse_rms(tl.sum(x * x, axis=0), num_columns.to(tl.float32), eps)
    tl.store(out_ptr + row + columns, narrow(x * scale * weight, out_ptr.dtype.element_ty), mask=inside)


@device
def _half_erfc(z: tl.tensor) -> tl.tensor:
    """erfc(z) / 2 for z >= 0, relative error below 1.2e-7 (Press et al., Numerical Recipes, section 6.2)."""
    t = 1.0 / (1.0 + 0.5 * z)
    tail = 1.48851587 + t * (-0.82215223 + t * 0.17087277)
    tail = 0.09678418 + t * (-0.18628806 + t * (0.27886807 + t * (-1.13520398 + t * tail)))
    return 0.5 * t * tl.exp(-z * z - 1.26551223 + t * (1.00002368 + t * (0.37409196 + t * tail)))


@device
def _activate(gate: tl.tensor, KIND: tl.constexpr) -> tl.tensor:
    """The activation of index KIND in ACTIVATIONS. The tanh form is written as x * sigmoid(2u), which keeps its lower tail."""
    if KIND == 0:
        return gate / (1.0 + tl.exp(-gate))
    elif KIND == 1:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        return gate / (1.0 + tl.exp(-2.0 * inner))
    else:
        half = _half_erfc(tl.abs(gate) * 0.7071067811865476)
        return gate * tl.where(gate < 0.0, half, 1.0 - half)


@kernel()
def _gated_activation_kernel(
    gate_up_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_columns: tl.tensor,
    KIND: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK columns of one row a program."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    gate = tl.load(gate_up_ptr + row * 2 * num_columns + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * 2 * num_columns + num_columns + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * num_columns + columns, narrow(_activate(gate, KIND) * up, out_ptr.dtype.element_ty), mask=inside)


def _norm_warps(block: int) -> int:
    """16 numbers a thread, at least one warp, at most 16."""
    return min(16, max(1, block // 512))


def _normalise(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    check_runnable(x, _rms_norm_kernel)
    out = torch.empty_like(x)
    total = torch.empty_like(x) if residual is not None else out
    block = next_power_of_2(x.shape[1])
    if x.numel():
        _rms_norm_kernel[(x.shape[0],)](
            x,
            x if residual is None else residual,
            weight,
            out,
            total,
            x.shape[1],
            eps,
            ADD=residual is not None,
            BLOCK=block,
            num_warps=_norm_warps(block),
            **COMPILE,
        )
    return out, total


@traced_as_op
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`spct_kernels.rms_norm` of contiguous tensors."""
    return _normalise(x, None, weight, eps)[0]


@traced_as_op
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """`spct_kernels.add_rms_norm` of contiguous tensors."""
    return _normalise(x, residual, weight, eps)


@traced_as_op
def gated_activation(gate_up: Tensor, kind: str) -> Tensor:
    """`spct_kernels.gated_activation` of a contiguous tensor."""
    check_runnable(gate_up, _gated_activation_kernel)
    rows, columns = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty((rows, columns), dtype=gate_up.dtype, device=gate_up.device)
    block = min(_MAX_COLUMNS, next_power_of_2(columns))
    if out.numel():
        grid = (rows, -(-columns // block))
        _gated_activation_kernel[grid](
            gate_up, out, columns, KIND=ACTIVATIONS.index(kind), BLOCK=block, num_warps=_norm_warps(block), **COMPILE
        )
    return out


def model_rows(model: ModelShape) -> list[Specialisation]:
    """The norms (weights in fp32) and the activation."""
    stored = f"*{model.dtype}"
    block = next_power_of_2(model.width)
    pointers = {"x_ptr": stored, "residual_ptr": stored, "weight_ptr": "*fp32", "out_ptr": stored, "sum_ptr": stored}
    rows = [
        Specialisation(
            _rms_norm_kernel,
            name=f"{model.name}{', residual' if add else ''}",
            signature=pointers | {"num_columns": "i32", "eps": "fp32"},
            constexprs={"ADD": add, "BLOCK": block},
            divisible=(*pointers, "num_columns"),
            options={"num_warps": _norm_warps(block), **COMPILE},
        )
        for add in (False, True)
    ]
    columns = min(_MAX_COLUMNS, next_power_of_2(model.inner_width))
    rows.append(
        Specialisation(
            _gated_activation_kernel,
            name=f"{model.dtype} {model.activation}",
            signature={"gate_up_ptr": stored, "out_ptr": stored, "num_columns": "i32"},
            constexprs={"KIND": ACTIVATIONS.index(model.activation), "BLOCK": columns},
            divisible=("gate_up_ptr", "out_ptr", "num_columns"),
            options={"num_warps": _norm_warps(columns), **COMPILE},
        )
    )
    return rows


def other_rows() -> list[Specialisation]:
    """The exact GELU."""
    return model_rows(ModelShape("gelu", 32, 8, 128, 4096, 14336, 32_000, activation="gelu"))[2:]

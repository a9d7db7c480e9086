"""The `triton` backend of the small ops: one pass over memory each, fp32 arithmetic; maths and references in `elementwise_reference`."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from spct_kernels.specialisation import ModelShape, Specialisation
from spct_kernels.triton_common import COMPILE, check_runnable, device, kernel, narrow, next_power_of_2, traced_as_op

ACTIVATIONS = ("silu", "gelu_tanh", "gelu")
_MAX_COLUMNS = 2048
"""Columns of a row that one program of the gated activation takes."""
_MAX_HEADS = 8
"""Heads that one program of `rope_append` takes: 8 x 128 fp32 numbers fill 8 registers of 4 warps, twice that with its halves."""


@device
def _inverse_rms(square_sum: tl.tensor, width: tl.tensor, eps: tl.tensor) -> tl.tensor:
    """1 / sqrt(mean square + eps), rounded correctly at each step as on the CPU."""
    return tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(square_sum, width) + eps))


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
    scale = _inverse_rms(tl.sum(x * x, axis=0), num_columns.to(tl.float32), eps)
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


@device
def _append(
    values: tl.tensor,
    dims: tl.tensor,
    inside: tl.tensor,
    heads: tl.tensor,
    row: tl.tensor,
    slot: tl.tensor,
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_slot_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_slot_stride: tl.tensor,
    v_head_stride: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
) -> None:
    """Stores values [heads, dims] of one row: query heads to q, key and value heads to their caches."""
    is_q = heads < NUM_HEADS
    is_v = heads >= NUM_HEADS + NUM_KV_HEADS
    q_offsets = (row * NUM_HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(q_ptr + q_offsets, narrow(values, q_ptr.dtype.element_ty), mask=inside & is_q[:, None])
    k_offsets = slot * k_slot_stride + (heads - NUM_HEADS)[:, None] * k_head_stride + dims[None, :]
    tl.store(k_ptr + k_offsets, narrow(values, k_ptr.dtype.element_ty), mask=inside & ~is_q[:, None] & ~is_v[:, None])
    v_offsets = slot * v_slot_stride + (heads - NUM_HEADS - NUM_KV_HEADS)[:, None] * v_head_stride + dims[None, :]
    tl.store(v_ptr + v_offsets, narrow(values, v_ptr.dtype.element_ty), mask=inside & is_v[:, None])


@device
def _norm_weight(
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    dims: tl.tensor,
    inside: tl.tensor,
    heads: tl.tensor,
    NUM_HEADS: tl.constexpr,
) -> tl.tensor:
    """[heads, dims] weights of the per-head norms: the queries' or the keys'."""
    q_weight = tl.load(q_norm_ptr + dims, mask=inside, other=0.0)
    k_weight = tl.load(k_norm_ptr + dims, mask=inside, other=0.0)
    return tl.where((heads < NUM_HEADS)[:, None], q_weight[None, :], k_weight[None, :])


@kernel()
def _rope_append_kernel(
    qkv_ptr: tl.tensor,
    cos_ptr: tl.tensor,
    sin_ptr: tl.tensor,
    slots_ptr: tl.tensor,
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    q_norm_ptr: tl.tensor,
    k_norm_ptr: tl.tensor,
    k_slot_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_slot_stride: tl.tensor,
    v_head_stride: tl.tensor,
    norm_eps: tl.tensor,
    NORMED: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    PAIRS: tl.constexpr,
    PAIRS_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
) -> None:
    """HEADS_BLOCK heads of one row a program: halves x1 and x2 of the turning dimensions, and the rest that passes through."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS_BLOCK + tl.arange(0, HEADS_BLOCK)
    exists = heads < NUM_HEADS + 2 * NUM_KV_HEADS
    is_v = (heads >= NUM_HEADS + NUM_KV_HEADS)[:, None]
    slot = tl.load(slots_ptr + row).to(tl.int64)
    pairs = tl.arange(0, PAIRS_BLOCK)
    turning = pairs < PAIRS
    inside = exists[:, None] & turning[None, :]
    base = (row * (NUM_HEADS + 2 * NUM_KV_HEADS) + heads)[:, None] * HEAD_DIM
    x1 = tl.load(qkv_ptr + base + pairs[None, :], mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(qkv_ptr + base + PAIRS + pairs[None, :], mask=inside, other=0.0).to(tl.float32)
    if REST_BLOCK > 0:
        rest_dims = 2 * PAIRS + tl.arange(0, REST_BLOCK)
        rest_inside = exists[:, None] & (rest_dims < HEAD_DIM)[None, :]
        rest = tl.load(qkv_ptr + base + rest_dims[None, :], mask=rest_inside, other=0.0).to(tl.float32)
    if NORMED:
        squares = tl.sum(x1 * x1, axis=1) + tl.sum(x2 * x2, axis=1)
        if REST_BLOCK > 0:
            squares += tl.sum(rest * rest, axis=1)
        scale = _inverse_rms(squares, HEAD_DIM * 1.0, norm_eps)[:, None]
        x1 = tl.where(is_v, x1, x1 * scale * _norm_weight(q_norm_ptr, k_norm_ptr, pairs, turning, heads, NUM_HEADS))
        x2 = tl.where(is_v, x2, x2 * scale * _norm_weight(q_norm_ptr, k_norm_ptr, PAIRS + pairs, turning, heads, NUM_HEADS))
        if REST_BLOCK > 0:
            weight = _norm_weight(q_norm_ptr, k_norm_ptr, rest_dims, rest_dims < HEAD_DIM, heads, NUM_HEADS)
            rest = tl.where(is_v, rest, rest * scale * weight)
    cos = tl.load(cos_ptr + row * PAIRS + pairs, mask=turning, other=1.0)[None, :]
    sin = tl.load(sin_ptr + row * PAIRS + pairs, mask=turning, other=0.0)[None, :]
    first = tl.where(is_v, x1, x1 * cos - x2 * sin)
    second = tl.where(is_v, x2, x2 * cos + x1 * sin)
    _append(
        first, pairs, inside, heads, row, slot, q_ptr, k_ptr, v_ptr,
        k_slot_stride, k_head_stride, v_slot_stride, v_head_stride, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM,
    )  # fmt: skip
    _append(
        second, PAIRS + pairs, inside, heads, row, slot, q_ptr, k_ptr, v_ptr,
        k_slot_stride, k_head_stride, v_slot_stride, v_head_stride, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM,
    )  # fmt: skip
    if REST_BLOCK > 0:
        _append(
            rest, rest_dims, rest_inside, heads, row, slot, q_ptr, k_ptr, v_ptr,
            k_slot_stride, k_head_stride, v_slot_stride, v_head_stride, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM,
        )  # fmt: skip


def _norm_warps(block: int) -> int:
    """16 numbers a thread, at least one warp, at most 16."""
    return min(16, max(1, block // 512))


def _rope_warps(heads: int, pairs: int) -> int:
    """4 pairs a thread, at least one warp, at most 4."""
    return min(4, max(1, heads * next_power_of_2(pairs) // 128))


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


@traced_as_op
def rope_append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    norm_eps: float,
) -> Tensor:
    """`spct_kernels.rope_append`; everything but the caches contiguous, cos, sin and norms in fp32."""
    check_runnable(qkv, _rope_append_kernel)
    rows, pairs = cos.shape
    q = torch.empty((rows, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    total = num_heads + 2 * num_kv_heads
    block = min(_MAX_HEADS, next_power_of_2(total))
    rest = head_dim - 2 * pairs
    if rows:
        _rope_append_kernel[(rows, -(-total // block))](
            qkv,
            cos,
            sin,
            slots,
            q,
            k_cache,
            v_cache,
            cos if q_norm is None else q_norm,
            cos if k_norm is None else k_norm,
            k_cache.stride(0),
            k_cache.stride(1),
            v_cache.stride(0),
            v_cache.stride(1),
            norm_eps,
            NORMED=q_norm is not None,
            NUM_HEADS=num_heads,
            NUM_KV_HEADS=num_kv_heads,
            HEAD_DIM=head_dim,
            PAIRS=pairs,
            PAIRS_BLOCK=next_power_of_2(pairs),
            REST_BLOCK=next_power_of_2(rest) if rest else 0,
            HEADS_BLOCK=block,
            num_warps=_rope_warps(block, pairs),
            **COMPILE,
        )
    return q


def model_rows(model: ModelShape) -> list[Specialisation]:
    """The norms (weights in fp32), the activation, and the append with the model's rotation."""
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
    return [*rows, _rope_row(model)]


def _rope_row(model: ModelShape) -> Specialisation:
    """The append of a model's queries, keys and values."""
    pairs = (model.rotary_dim or model.head_dim) // 2
    rest = model.head_dim - 2 * pairs
    block = min(_MAX_HEADS, next_power_of_2(model.num_heads + 2 * model.num_kv_heads))
    tensors = dict.fromkeys(("qkv_ptr", "q_ptr"), f"*{model.dtype}") | dict.fromkeys(("k_ptr", "v_ptr"), f"*{model.cache_dtype}")
    tensors |= dict.fromkeys(("cos_ptr", "sin_ptr", "q_norm_ptr", "k_norm_ptr"), "*fp32") | {"slots_ptr": "*i32"}
    strides = dict.fromkeys(("k_slot_stride", "k_head_stride", "v_slot_stride", "v_head_stride"), "i32")
    return Specialisation(
        _rope_append_kernel,
        name=model.name,
        signature=tensors | strides | {"norm_eps": "fp32"},
        constexprs={
            "NORMED": model.qk_norm,
            "NUM_HEADS": model.num_heads,
            "NUM_KV_HEADS": model.num_kv_heads,
            "HEAD_DIM": model.head_dim,
            "PAIRS": pairs,
            "PAIRS_BLOCK": next_power_of_2(pairs),
            "REST_BLOCK": next_power_of_2(rest) if rest else 0,
            "HEADS_BLOCK": block,
        },
        divisible=(*tensors, *strides),
        options={"num_warps": _rope_warps(block, pairs), **COMPILE},
    )


def other_rows() -> list[Specialisation]:
    """A rotation of some dimensions only, and the exact GELU."""
    partial = ModelShape("partial rotation", 32, 8, 80, 2560, 10240, 32_000, rotary_dim=32)
    gelu = ModelShape("gelu", 32, 8, 128, 4096, 14336, 32_000, activation="gelu")
    return [_rope_row(partial), model_rows(gelu)[2]]

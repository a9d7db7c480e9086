"""The `triton` backend of `rope_append`: norms of heads, rotation and append in one pass; maths in `elementwise_reference`."""

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from spct_kernels.specialisation import ModelShape, Specialisation
from spct_kernels.triton_common import COMPILE, check_runnable, device, inverse_rms, kernel, narrow, next_power_of_2, traced_as_op

_MAX_HEADS = 8
"""Heads that one program of `rope_append` takes: 8 x 128 fp32 numbers fill 8 registers of 4 warps, twice that with its halves."""


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
        scale = inverse_rms(squares, HEAD_DIM * 1.0, norm_eps)[:, None]
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


def _rope_warps(heads: int, pairs: int) -> int:
    """4 pairs a thread, at least one warp, at most 4."""
    return min(4, max(1, heads * next_power_of_2(pairs) // 128))


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
    """The append of a model's queries, keys and values."""
    pairs = (model.rotary_dim or model.head_dim) // 2
    rest = model.head_dim - 2 * pairs
    block = min(_MAX_HEADS, next_power_of_2(model.num_heads + 2 * model.num_kv_heads))
    tensors = dict.fromkeys(("qkv_ptr", "q_ptr"), f"*{model.dtype}") | dict.fromkeys(("k_ptr", "v_ptr"), f"*{model.cache_dtype}")
    tensors |= dict.fromkeys(("cos_ptr", "sin_ptr", "q_norm_ptr", "k_norm_ptr"), "*fp32") | {"slots_ptr": "*i32"}
    strides = dict.fromkeys(("k_slot_stride", "k_head_stride", "v_slot_stride", "v_head_stride"), "i32")
    append = Specialisation(
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
    return [append]


def other_rows() -> list[Specialisation]:
    """A rotation of some dimensions only."""
    return model_rows(ModelShape("partial rotation", 32, 8, 80, 2560, 10240, 32_000, rotary_dim=32))

"""The `triton` backend of shared-prefix attention: a program for each item of the plan's work list and KV head, then a small merge.

Maths (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao 2023, arXiv 2307.08691), in base 2: with scores s, a state (m, l, a) =
(max s, sum 2^(s-m), sum 2^(s-m) v) takes the next tile's or split's state by rescaling both to the larger m; the output is a / l and
the natural log-sum-exp is (m + log2 l) ln 2. Which states are folded in which order: `triton_attention_plan`. The reference is in
`attention_reference`.

All G query heads of a KV head stand side by side in a program's tile: index i is row i // HEADS, head i % HEADS of the group.
"""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from spct_kernels.plan import AttentionPlan
from spct_kernels.triton_attention_merge import finish, fold, merge_kernel
from spct_kernels.triton_attention_options import Shape, compile_options, tile_options
from spct_kernels.triton_common import COMPILE, INTERPRETED, check_runnable, device, dot, kernel, narrow, next_power_of_2, tanh, target

_LOG2_E = 1.4426950408889634


@device
def _attend_step(
    q: tl.tensor,
    state: tl.tensor,
    step_ptr: tl.tensor,
    tile_slots_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    k_stride: tl.tensor,
    v_stride: tl.tensor,
    rows: tl.tensor,
    positions: tl.tensor,
    lowest: tl.tensor,
    highest: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    head: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALED: tl.constexpr,
    GUARD: tl.constexpr,
    ISOLATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
) -> tl.tensor:
    """The state after one key tile. A row that sees nothing of it keeps its state bit for bit: it adds 0 and scales by 1."""
    maximum, total, out = state
    keys = tl.arange(0, BLOCK_N)
    run = tl.load(step_ptr + 1)
    position = tl.load(step_ptr + 2) + keys
    # Keys past every row, or before every row's window, are not even asked for.
    live = (keys < tl.load(step_ptr + 3)) & (position <= highest)
    if WINDOW:
        live = live & (position > lowest - window)
    named = tl.load(tile_slots_ptr + tl.load(step_ptr).to(tl.int64) * BLOCK_N + keys, mask=live & (run < 0), other=0)
    slots = tl.where(run >= 0, run + keys, named).to(tl.int64)
    seen = live[None, :] & (position[None, :] <= positions[:, None])
    if WINDOW:
        seen = seen & (positions[:, None] - position[None, :] < window)
    if GUARD:
        seen = seen & ((rows >= tl.load(step_ptr + 4)) & (rows < tl.load(step_ptr + 5)))[:, None]
    dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    k = tl.load(k_ptr + slots[:, None] * k_stride + dims[None, :], mask=live[:, None] & (dims < KEY_DIM)[None, :], other=0.0)
    v = tl.load(v_ptr + slots[:, None] * v_stride + value_dims[None, :], mask=live[:, None] & (value_dims < VALUE_DIM)[None, :], other=0.0)
    if ISOLATE:
        # A value that some rows see and others do not may be NaN or Inf, and 0 * NaN is NaN: it counts as 0, and its readers are told.
        finite = v.to(tl.float32) - v.to(tl.float32) == 0.0
        broken = tl.max(tl.where(finite, 0, 1), axis=1)
        v = tl.where(finite, v, 0.0)
        poisoned = tl.max(tl.where(seen, broken[None, :], 0), axis=1)
    if k.dtype != q.dtype:  # fp32 products, or int8 keys: -127 to 127 are exact in either 16-bit type
        k, v = narrow(k.to(tl.float32), q.dtype), narrow(v.to(tl.float32), q.dtype)
    scores = dot(q, tl.trans(k), tl.zeros([BLOCK_M, BLOCK_N], dtype=tl.float32))
    if SCALED == 1:
        scores *= tl.load(k_scale_ptr + head)
    if SCALED == 2:
        scores *= tl.load(k_scale_ptr + slots * NUM_KV_HEADS + head, mask=live, other=0.0)[None, :]
    if SOFTCAP:
        scores = tanh(scores * scale) * softcap
    else:
        scores *= scale
    scores = tl.where(seen, scores, float("-inf"))
    largest = tl.maximum(maximum, tl.max(scores, axis=1))
    base = tl.where(largest == float("-inf"), 0.0, largest)
    decay = tl.exp2(maximum - base)
    weights = tl.exp2(scores - base[:, None])
    total = total * decay + tl.sum(weights, axis=1)
    if ISOLATE:
        total = tl.where(poisoned > 0, float("nan"), total)
    if SCALED == 1:
        weights *= tl.load(v_scale_ptr + head)
    if SCALED == 2:
        weights *= tl.load(v_scale_ptr + slots * NUM_KV_HEADS + head, mask=live, other=0.0)[None, :]
    return largest, total, dot(narrow(weights, v.dtype), v, out * decay[:, None])


@kernel()
def _attention_kernel(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    k_scale_ptr: tl.tensor,
    v_scale_ptr: tl.tensor,
    items_ptr: tl.tensor,
    segments_ptr: tl.tensor,
    steps_ptr: tl.tensor,
    tile_slots_ptr: tl.tensor,
    row_position_ptr: tl.tensor,
    row_first_ptr: tl.tensor,
    row_count_ptr: tl.tensor,
    out_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    partial_ptr: tl.tensor,
    partial_state_ptr: tl.tensor,
    k_slot_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_slot_stride: tl.tensor,
    v_head_stride: tl.tensor,
    scale: tl.tensor,
    softcap: tl.tensor,
    window: tl.tensor,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SCALED: tl.constexpr,
    FOLD: tl.constexpr,
    GUARD: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_DV: tl.constexpr,
) -> None:
    """One item, one KV head, HEADS of its query heads.

    FOLD: items may have several segments (splits), which are folded here in the merge's order. GUARD: steps may concern a part of
    the rows. WIDE: fp32 products. SCALED: 0 no scales of keys and values, 1 one a KV head, 2 one a slot and KV head.
    """
    item = items_ptr + tl.program_id(0) * 4
    num_rows = tl.load(item + 3)
    chunks: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    head, chunk = tl.program_id(1) // chunks, tl.program_id(1) % chunks
    index = tl.arange(0, BLOCK_M)
    rows = tl.load(item + 2) + index // HEADS
    member = chunk * HEADS + index % HEADS
    valid = (index // HEADS < num_rows) & (member < GROUP)
    positions = tl.load(row_position_ptr + rows, mask=valid, other=-1)
    highest = tl.max(positions, axis=0)
    lowest = tl.min(tl.where(valid, positions, 1 << 30), axis=0)
    query_heads = rows.to(tl.int64) * (NUM_KV_HEADS * GROUP) + head * GROUP + member
    dims, value_dims = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_DV)
    q_inside = valid[:, None] & (dims < KEY_DIM)[None, :]
    q = tl.load(q_ptr + query_heads[:, None] * KEY_DIM + dims[None, :], mask=q_inside, other=0.0)
    if WIDE:
        q = q.to(tl.float32)
    k_ptr += head.to(tl.int64) * k_head_stride
    v_ptr += head.to(tl.int64) * v_head_stride
    empty = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)
    zeros = tl.zeros([BLOCK_M, BLOCK_DV], dtype=tl.float32)
    state = empty, tl.zeros([BLOCK_M], dtype=tl.float32), zeros
    first_segment = tl.load(item)
    num_segments = tl.load(item + 1) - first_segment
    number = num_segments * 0
    while number < num_segments:
        segment = segments_ptr + (first_segment + number) * 4
        step, end = tl.load(segment), tl.load(segment + 1)
        start_position, end_position = tl.load(segment + 2), tl.load(segment + 3)
        if (end - step) * BLOCK_N < end_position - start_position + BLOCK_N:
            # One step a tile: only those between the rows' bounds.
            first_step = step
            end = tl.minimum(end, first_step + tl.maximum(highest + BLOCK_N - start_position, 0) // BLOCK_N)
            if WINDOW:
                step += tl.maximum(lowest - window + 1 - start_position, 0) // BLOCK_N
        if WINDOW and end_position <= lowest - window + 1:
            end = step
        before = state
        if FOLD:
            state = empty, tl.zeros([BLOCK_M], dtype=tl.float32), zeros
        if INTERPRETED:  # its range() takes no tensors in Triton 3.6
            while step < end:
                state = _attend_step(
                    q, state, steps_ptr + step * 8, tile_slots_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, k_slot_stride, v_slot_stride,
                    rows, positions, lowest, highest, scale, softcap, window, head, NUM_KV_HEADS, KEY_DIM, VALUE_DIM, SOFTCAP, WINDOW,
                    SCALED, GUARD, GUARD or WINDOW, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
                )  # fmt: skip
                step += 1
        else:
            for at in tl.range(step, end):
                state = _attend_step(
                    q, state, steps_ptr + at * 8, tile_slots_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, k_slot_stride, v_slot_stride,
                    rows, positions, lowest, highest, scale, softcap, window, head, NUM_KV_HEADS, KEY_DIM, VALUE_DIM, SOFTCAP, WINDOW,
                    SCALED, GUARD, GUARD or WINDOW, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
                )  # fmt: skip
        if FOLD:
            state = fold(before, state)
        number += 1
    maximum, total, out = state
    inside = valid[:, None] & (value_dims < VALUE_DIM)[None, :]
    count = tl.load(row_count_ptr + rows, mask=valid, other=0)
    result, lse = finish(maximum, total, out)
    alone = count == 1
    tl.store(
        out_ptr + query_heads[:, None] * VALUE_DIM + value_dims[None, :],
        narrow(result, out_ptr.dtype.element_ty),
        mask=inside & alone[:, None],
    )
    tl.store(lse_ptr + query_heads, lse, mask=valid & alone)
    several = valid & (count > 1)
    split = tl.load(row_first_ptr + rows, mask=several, other=0) + _split_index(tl.load(segments_ptr + first_segment * 4 + 2))
    places = split.to(tl.int64) * (NUM_KV_HEADS * GROUP) + head * GROUP + member
    tl.store(partial_state_ptr + places * 2, maximum, mask=several)
    tl.store(partial_state_ptr + places * 2 + 1, total, mask=several)
    tl.store(partial_ptr + places[:, None] * VALUE_DIM + value_dims[None, :], out, mask=inside & several[:, None])


@device
def _split_index(position: tl.tensor) -> tl.tensor:
    """The split that begins at a position: the inverse of `split_ends`."""
    return tl.where(position < 512, position // 256, tl.where(position < 4096, position // 512 + 1, position // 1024 + 5))


def shared_prefix_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of `spct_kernels.shared_prefix_attention`, of contiguous q."""
    check_runnable(q, _attention_kernel)
    num_rows, num_heads, key_dim = q.shape
    num_kv_heads, value_dim = v_cache.shape[1:]
    out = torch.empty((num_rows, num_heads, value_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((num_rows, num_heads), dtype=torch.float32, device=q.device)
    if num_rows == 0:
        return out, lse
    shape = Shape(num_heads // num_kv_heads, key_dim, value_dim, q.dtype, k_cache.dtype)
    options = tile_options(shape, q.device)
    work = plan.work(options.block_n, options.rows_per_tile(shape.group), options.fold)
    partial = torch.empty((work.num_partials if work.merges else 0, num_heads, value_dim), dtype=torch.float32, device=q.device)
    partial_state = torch.empty((*partial.shape[:2], 2), dtype=torch.float32, device=q.device)
    layout: dict[str, Any] = {"VALUE_DIM": value_dim, "BLOCK_DV": next_power_of_2(value_dim)}
    if work.num_items:
        heads = min(shape.group, options.block_m)
        scales, scaled = _scales(k_scale, v_scale, k_cache)
        _attention_kernel[(work.num_items, num_kv_heads * -(-shape.group // heads))](
            q,
            k_cache,
            v_cache,
            *scales,
            work.items,
            work.segments,
            work.steps,
            work.tile_slots,
            plan.rows[1],
            work.row_splits[0],
            work.row_splits[1],
            out,
            lse,
            partial,
            partial_state,
            *k_cache.stride()[:2],
            *v_cache.stride()[:2],
            scale / softcap if softcap else scale * _LOG2_E,
            (softcap or 0.0) * _LOG2_E,
            window or 0,
            NUM_KV_HEADS=num_kv_heads,
            GROUP=shape.group,
            HEADS=heads,
            KEY_DIM=key_dim,
            SOFTCAP=softcap is not None,
            WINDOW=window is not None,
            SCALED=scaled,
            FOLD=work.folds,
            GUARD=work.guards,
            WIDE=shape.wide,
            BLOCK_M=options.block_m,
            BLOCK_N=options.block_n,
            BLOCK_D=next_power_of_2(key_dim),
            num_warps=options.num_warps,
            num_stages=options.num_stages,
            **compile_options(target(q.device)),
            **layout,
            **COMPILE,
        )
    if work.merges:
        merge_kernel[(num_rows, num_heads)](
            work.row_splits[0], work.row_splits[1], partial, partial_state, out, lse, num_heads, **layout, num_warps=1, **COMPILE
        )
    return out, lse


def _scales(k_scale: Tensor | None, v_scale: Tensor | None, cache: Tensor) -> tuple[tuple[Tensor, Tensor], int]:
    """Both scales in one form, and which: 0 none, 1 [K], 2 [num_slots, K]. A missing one beside the other is ones."""
    if k_scale is None and v_scale is None:
        return (cache, cache), 0
    per_slot = any(scale is not None and scale.dim() == 2 for scale in (k_scale, v_scale))
    shape = cache.shape[:2] if per_slot else cache.shape[1:2]
    given = [torch.ones(1, device=cache.device) if scale is None else scale.float() for scale in (k_scale, v_scale)]
    both = [scale.expand(shape).contiguous() for scale in given]
    return (both[0], both[1]), 2 if per_slot else 1

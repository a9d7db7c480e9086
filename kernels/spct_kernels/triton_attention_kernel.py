"""Device side of shared-prefix attention: one program for an item of the work list and a KV head; maths in `triton_attention`.

All G query heads of a KV head stand side by side in a program's tile: index i is row i // HEADS, head i % HEADS of the group.
"""

from __future__ import annotations

import triton.language as tl

from spct_kernels.triton_attention_merge import finish
from spct_kernels.triton_common import INTERPRETED, device, dot, kernel, narrow, tanh


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


@device
def _fold_kept(
    kept: tl.tensor, state: tl.tensor, kept_ptr: tl.tensor, is_first: tl.tensor, BLOCK_M: tl.constexpr, BLOCK_DV: tl.constexpr
) -> tl.tensor:
    """Folds a split's state into the kept one: its (maximum, total), while its output stands at kept_ptr; as `fold`, bit for bit.

    Two outputs do not fit the registers: the split's goes to memory behind the kept one, and both come back 32 dimensions at a time.
    """
    index, dims = tl.arange(0, BLOCK_M)[:, None], tl.arange(0, BLOCK_DV)[None, :]
    largest = tl.maximum(kept[0], state[0])
    base = tl.where(largest == float("-inf"), 0.0, largest)
    first, second = tl.exp2(kept[0] - base), tl.exp2(state[0] - base)
    total = kept[1] * first + state[1] * second
    fresh_ptr = kept_ptr + BLOCK_M * BLOCK_DV
    tl.store(fresh_ptr + index * BLOCK_DV + dims, state[2])
    tl.debug_barrier()  # a thread may load what another one stored
    width: tl.constexpr = min(BLOCK_DV, 32)
    for start in tl.static_range(0, BLOCK_DV, width):
        at = index * BLOCK_DV + start + tl.arange(0, width)[None, :]
        before = tl.load(kept_ptr + at, mask=(index >= 0) & (at >= 0) & ~is_first, other=0.0)
        tl.store(kept_ptr + at, before * first[:, None] + tl.load(fresh_ptr + at) * second[:, None])
    tl.debug_barrier()
    return largest, total


@kernel()
def attention_kernel(
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
    kept_ptr: tl.tensor,
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

    FOLD: items may have several segments (splits), which are folded here in the merge's order; what is folded waits at kept_ptr.
    GUARD: steps may concern a part of the rows. WIDE: fp32 products. SCALED: 0 no scales of keys and values, 1 one a KV head, 2 one a
    slot and KV head.
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
    if FOLD:
        program = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
        kept_ptr += program * (2 * BLOCK_M * BLOCK_DV)
        kept = empty, tl.zeros([BLOCK_M], dtype=tl.float32)
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
        # Tiles that every row sees whole come first. The few others of a prefill isolate their values, and are not pipelined; beyond 128
        # value dims they are, as their loop would spill without the copies to shared memory (160 bytes on sm_90).
        shared_end = end
        if GUARD or WINDOW:
            shared_end = step
        else:
            whole = tl.maximum(lowest + 1 - start_position, 0) // BLOCK_N
            shared_end = tl.minimum(step + whole, end)
        if FOLD:
            state = empty, tl.zeros([BLOCK_M], dtype=tl.float32), zeros
        for ISOLATE in tl.static_range(1 if GUARD or WINDOW else 0, 2):
            at, stop = (shared_end, end) if ISOLATE else (step, shared_end)
            if INTERPRETED:  # its range() takes no tensors in Triton 3.6
                while at < stop:
                    state = _attend_step(
                        q, state, steps_ptr + at * 8, tile_slots_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, k_slot_stride,
                        v_slot_stride, rows, positions, lowest, highest, scale, softcap, window, head, NUM_KV_HEADS, KEY_DIM, VALUE_DIM,
                        SOFTCAP, WINDOW, SCALED, GUARD, ISOLATE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
                    )  # fmt: skip
                    at += 1
            else:
                for number_of_step in tl.range(at, stop, num_stages=1 if ISOLATE and not (GUARD or WINDOW) and BLOCK_DV <= 128 else None):
                    state = _attend_step(
                        q, state, steps_ptr + number_of_step * 8, tile_slots_ptr, k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, k_slot_stride,
                        v_slot_stride, rows, positions, lowest, highest, scale, softcap, window, head, NUM_KV_HEADS, KEY_DIM, VALUE_DIM,
                        SOFTCAP, WINDOW, SCALED, GUARD, ISOLATE, BLOCK_M, BLOCK_N, BLOCK_D, BLOCK_DV,
                    )  # fmt: skip
        if FOLD:
            kept = _fold_kept(kept, state, kept_ptr, number == 0, BLOCK_M, BLOCK_DV)
        number += 1
    maximum, total, out = state
    if FOLD:
        maximum, total = kept
        out = tl.load(kept_ptr + index[:, None] * BLOCK_DV + value_dims[None, :], mask=valid[:, None] & (num_segments > 0), other=0.0)
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

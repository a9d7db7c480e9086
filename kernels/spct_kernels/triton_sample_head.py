"""The output head's first kernels: final norm, lists to bits, LM head tiles, logits of listed ids. No logits [T, V] are written."""

from __future__ import annotations

import triton.language as tl

from spct_kernels.triton_common import kernel, narrow
from spct_kernels.triton_philox import gumbel_of, philox_words
from spct_kernels.triton_sample_tile import (
    BEST,
    BEST_ID,
    BINS,
    ID_1,
    ID_2,
    LOGIT_1,
    LOGIT_2,
    MAXIMUM,
    SUM,
    best_of,
    drawable_of,
    inverse_power_of_two,
    inverse_temperature,
    logit_tile,
    power_of_two_below,
    row_of,
    soft_capped,
    to_histogram,
)


@kernel("num_rows")
def _final_norm_kernel(
    hidden_ptr: tl.tensor,
    norm_weight_ptr: tl.tensor,
    meta_weight_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    parts_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    meta_ptr: tl.tensor,
    histogram_ptr: tl.tensor,
    num_rows: tl.tensor,
    hidden_stride: tl.tensor,
    norm_eps: tl.tensor,
    meta_bias: tl.tensor,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    HAS_META: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row: hidden * norm weight as a sum of PARTS numbers of the head's dtype, the factor that is left, and the meta logit.

    Powers of two keep squares and parts in range. bf16 times bf16 has 16 bits, so that two parts of bf16 hold it exactly, three
    hold any fp32 number; the rest of the norm, a factor in (1/2, 1], is applied to the logits. Zeroes the row's histogram, too.
    """
    row = tl.program_id(0)
    row_ptr = hidden_ptr + row.to(tl.int64) * hidden_stride
    lane = tl.arange(0, BLOCK)
    largest = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        x = tl.load(row_ptr + start + lane, mask=start + lane < WIDTH, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(x))
    down = inverse_power_of_two(power_of_two_below(tl.max(largest, axis=0)))
    squares = tl.zeros([BLOCK], tl.float32)
    for start in range(0, WIDTH, BLOCK):
        x = tl.load(row_ptr + start + lane, mask=start + lane < WIDTH, other=0.0).to(tl.float32) * down
        squares += x * x
    eps = tl.where(norm_eps > 0.0, norm_eps * down * down, 0.0)
    rms = tl.sqrt_rn(tl.div_rn(tl.sum(squares, axis=0), WIDTH) + eps)
    step = inverse_power_of_two(power_of_two_below(rms))
    rest = tl.div_rn(1.0, rms * step)
    total = tl.zeros([BLOCK], tl.float32)
    part_stride = num_rows.to(tl.int64) * WIDTH
    for start in range(0, WIDTH, BLOCK):
        inside = start + lane < WIDTH
        x = tl.load(row_ptr + start + lane, mask=inside, other=0.0).to(tl.float32) * down * step
        x = x * tl.load(norm_weight_ptr + start + lane, mask=inside, other=0.0).to(tl.float32)
        if HAS_META:
            total += x * tl.load(meta_weight_ptr + start + lane, mask=inside, other=0.0).to(tl.float32)
        for part in tl.static_range(PARTS):
            piece = narrow(x, parts_ptr.dtype.element_ty)
            tl.store(parts_ptr + part * part_stride + row.to(tl.int64) * WIDTH + start + lane, piece, mask=inside)
            x -= piece.to(tl.float32)
    tl.store(scale_ptr + row, rest)
    if HAS_META:
        tl.store(meta_ptr + row, tl.sum(total, axis=0) * rest + meta_bias)
    if (tl.load(top_k_ptr + row) > 0) | (tl.load(top_p_ptr + row) < 1.0):
        for start in range(0, BINS, BLOCK):
            tl.store(histogram_ptr + row.to(tl.int64) * BINS + start + lane, tl.zeros([BLOCK], tl.int64), mask=start + lane < BINS)


@kernel("num_rows", "num_ids")
def _mark_kernel(
    offsets_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    bits_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_ids: tl.tensor,
    vocabulary: tl.tensor,
    words: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """Sets the bit of every listed id in its row of bits [T, words]."""
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    listed = index < num_ids
    ids = tl.load(ids_ptr + index, mask=listed, other=0)
    row = row_of(offsets_ptr, num_rows, index)
    listed &= (ids >= 0) & (ids < vocabulary)
    tl.atomic_or(bits_ptr + row.to(tl.int64) * words + ids // 32, tl.full([BLOCK], 1, tl.int32) << (ids % 32), mask=listed, sem="relaxed")


@kernel("num_rows")
def _head_kernel(
    parts_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    head_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    seed_ptr: tl.tensor,
    position_ptr: tl.tensor,
    allowed_ptr: tl.tensor,
    banned_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    floats_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    histogram_ptr: tl.tensor,
    num_rows: tl.tensor,
    vocabulary: tl.tensor,
    head_stride: tl.tensor,
    words: tl.tensor,
    softcap: tl.tensor,
    HAS_SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    HAS_ALLOWED: tl.constexpr,
    HAS_BANNED: tl.constexpr,
    PARTS: tl.constexpr,
    PANEL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """One tile. Rows of the same ids run side by side, so that the head is read from memory once."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    tile = tl.program_id(1)
    ids = tile * BLOCK_V + tl.arange(0, BLOCK_V)
    row_mask = rows < num_rows
    id_mask = ids < vocabulary
    inside, drawable = drawable_of(allowed_ptr, banned_ptr, offsets_ptr, rows, row_mask, ids, id_mask, words, HAS_ALLOWED, HAS_BANNED)
    products = tl.zeros([BLOCK_V, BLOCK_T], tl.float32)
    if (not HAS_ALLOWED) or tl.max(tl.max(inside.to(tl.int32), axis=1), axis=0) > 0:  # without an allowed id no weight is read
        products = logit_tile(parts_ptr, head_ptr, rows, row_mask, ids, id_mask, num_rows, head_stride, WIDTH, PARTS, PANEL, BLOCK_E)
    scale = tl.load(scale_ptr + rows, mask=row_mask, other=0.0)
    logit = tl.trans(products) * scale[:, None]
    failed = inside & ((logit != logit) | (logit == float("inf")))
    if HAS_SOFTCAP:
        logit = soft_capped(logit, softcap)
    logit = tl.where(inside & ~failed, logit, float("-inf"))
    maximum = tl.max(logit, axis=1)
    total = tl.sum(tl.exp(logit - tl.where(maximum == float("-inf"), 0.0, maximum)[:, None]), axis=1)
    total = tl.where(tl.max(failed.to(tl.int32), axis=1) > 0, float("nan"), total)

    logit = tl.where(drawable, logit, float("-inf"))
    best, best_id = best_of(logit, ids)
    temperature = tl.load(temperature_ptr + rows, mask=row_mask, other=0.0)
    cooling = inverse_temperature(temperature)
    noisy = tl.where(logit == float("-inf"), float("-inf"), (logit - best[:, None]) * cooling[:, None])
    if tl.max(temperature, axis=0) > 0.0:
        seed = tl.load(seed_ptr + rows, mask=row_mask, other=0)
        position = tl.load(position_ptr + rows, mask=row_mask, other=0)
        quads = tile * (BLOCK_V // 4) + tl.arange(0, BLOCK_V // 4)
        c0, c1, c2, c3 = philox_words(quads[None, :], seed[:, None], position[:, None])
        noise = gumbel_of(tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3)))
        noisy += tl.where((temperature > 0.0)[:, None], noise, 0.0)
    value_1, id_1 = best_of(noisy, ids)
    first = ids[None, :] == id_1[:, None]
    noisy = tl.where(first, float("-inf"), noisy)
    value_2, id_2 = best_of(noisy, ids)
    second = ids[None, :] == id_2[:, None]

    tiles = tl.num_programs(1)
    at = rows.to(tl.int64) * tiles + tile
    stride = num_rows.to(tl.int64) * tiles
    tl.store(floats_ptr + stride * MAXIMUM + at, maximum, mask=row_mask)
    tl.store(floats_ptr + stride * SUM + at, total, mask=row_mask)
    tl.store(floats_ptr + stride * BEST + at, best, mask=row_mask)
    tl.store(floats_ptr + stride * LOGIT_1 + at, tl.max(tl.where(first, logit, float("-inf")), axis=1), mask=row_mask)
    tl.store(floats_ptr + stride * LOGIT_2 + at, tl.max(tl.where(second, logit, float("-inf")), axis=1), mask=row_mask)
    tl.store(ids_ptr + stride * BEST_ID + at, tl.where(best == float("-inf"), -1, best_id), mask=row_mask)
    tl.store(ids_ptr + stride * ID_1 + at, tl.where(value_1 == float("-inf"), -1, id_1), mask=row_mask)
    tl.store(ids_ptr + stride * ID_2 + at, tl.where(value_2 == float("-inf"), -1, id_2), mask=row_mask)

    top_k = tl.load(top_k_ptr + rows, mask=row_mask, other=0)
    top_p = tl.load(top_p_ptr + rows, mask=row_mask, other=1.0)
    cut = (temperature > 0.0) & ((top_k > 0) | (top_p < 1.0))
    if tl.max(cut.to(tl.int32), axis=0) > 0:
        to_histogram(histogram_ptr, rows, cut[:, None] & (logit > float("-inf")), logit, cooling)


@kernel("num_rows", "num_ids")
def _token_logits_kernel(
    parts_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    head_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    out_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_ids: tl.tensor,
    vocabulary: tl.tensor,
    head_stride: tl.tensor,
    softcap: tl.tensor,
    HAS_SOFTCAP: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    PANEL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_V: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> None:
    """BLOCK_V listed ids: their tile with every group of BLOCK_T rows that owns one of them, of which each takes its own row."""
    index = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    listed = index < num_ids
    ids = tl.load(ids_ptr + index, mask=listed, other=0)
    owner = row_of(offsets_ptr, num_rows, tl.minimum(index, num_ids - 1))
    valid = listed & (ids >= 0) & (ids < vocabulary)
    result = tl.zeros([BLOCK_V], tl.float32)
    group = tl.min(owner, axis=0) // BLOCK_T
    while group <= tl.max(owner, axis=0) // BLOCK_T:
        rows = group * BLOCK_T + tl.arange(0, BLOCK_T)
        row_mask = rows < num_rows
        products = logit_tile(parts_ptr, head_ptr, rows, row_mask, ids, valid, num_rows, head_stride, WIDTH, PARTS, PANEL, BLOCK_E)
        scale = tl.load(scale_ptr + rows, mask=row_mask, other=0.0)
        result += tl.sum(tl.where(rows[None, :] == owner[:, None], products * scale[None, :], 0.0), axis=1)
        group += 1
    if HAS_SOFTCAP:
        result = soft_capped(result, softcap)
    tl.store(out_ptr + index, result, mask=listed)

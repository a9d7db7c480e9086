"""The rows without a certificate: their logits once more, with the head's own tiles, then the exact end of what truncation keeps.

Both kernels are launched every step and leave at once where there is nothing to do.
"""

from __future__ import annotations

import triton.language as tl

from spct_kernels.sample_reference import TOP_P_SLACK
from spct_kernels.triton_common import device, kernel
from spct_kernels.triton_sample_draw import UNCERTIFIED, above_min_p, noisy_value
from spct_kernels.triton_sample_tile import (
    NO_ID,
    drawable_of,
    inverse_temperature,
    logit_tile,
    soft_capped,
)

_TOP_P_SLACK = tl.constexpr(TOP_P_SLACK)
_SEARCH_ROUNDS = tl.constexpr(8)
_LEAST_KEY = tl.constexpr(-(2**31))


@kernel("num_rows")
def _redo_logits_kernel(
    parts_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    head_ptr: tl.tensor,
    allowed_ptr: tl.tensor,
    banned_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    token_ptr: tl.tensor,
    logits_ptr: tl.tensor,
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
    """A tile of logits, -inf where not drawable, of the rows without a certificate; without such a row it leaves at once."""
    rows = tl.program_id(0) * BLOCK_T + tl.arange(0, BLOCK_T)
    redone = tl.load(token_ptr + rows, mask=rows < num_rows, other=-1) == UNCERTIFIED
    if tl.max(redone.to(tl.int32), axis=0) > 0:
        ids = tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
        row_mask = rows < num_rows
        id_mask = ids < vocabulary
        products = logit_tile(parts_ptr, head_ptr, rows, row_mask, ids, id_mask, num_rows, head_stride, WIDTH, PARTS, PANEL, BLOCK_E)
        logit = tl.trans(products) * tl.load(scale_ptr + rows, mask=row_mask, other=0.0)[:, None]
        if HAS_SOFTCAP:
            logit = soft_capped(logit, softcap)
        inside, drawable = drawable_of(allowed_ptr, banned_ptr, offsets_ptr, rows, row_mask, ids, id_mask, words, HAS_ALLOWED, HAS_BANNED)
        at = rows.to(tl.int64)[:, None] * vocabulary + ids[None, :]
        tl.store(logits_ptr + at, tl.where(inside & drawable, logit, float("-inf")), mask=redone[:, None] & id_mask[None, :])


@device
def key_of(logit: tl.tensor) -> tl.tensor:
    """int64 keys in the order of the logits; 0.0 and -0.0 have the same."""
    bits = (logit + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)


@device
def weights_of(
    row_ptr: tl.tensor, ids: tl.tensor, best: tl.tensor, cooling: tl.tensor, VOCABULARY: tl.constexpr, BY_MASS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """(keys, weights) of some tokens: their mass relative to the best token's, or 1; 0 for what can't be drawn."""
    logit = tl.load(row_ptr + ids, mask=ids < VOCABULARY, other=float("-inf"))
    there = logit > float("-inf")
    weight = there.to(tl.float32)
    if BY_MASS:
        weight = tl.where(there, tl.exp((tl.where(there, logit, best) - best) * cooling), 0.0)
    return key_of(logit), weight


@device
def weight_above(
    row_ptr: tl.tensor,
    best: tl.tensor,
    cooling: tl.tensor,
    key: tl.tensor,
    VOCABULARY: tl.constexpr,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """(weight of the tokens above a key, weight of those at it) in fp64."""
    above = tl.full([], 0.0, tl.float64)
    equal = tl.full([], 0.0, tl.float64)
    for start in range(0, VOCABULARY, BLOCK):
        keys, weight = weights_of(row_ptr, start + tl.arange(0, BLOCK), best, cooling, VOCABULARY, BY_MASS)
        above += tl.sum(tl.where(keys > key, weight, 0.0), axis=0).to(tl.float64)
        equal += tl.sum(tl.where(keys == key, weight, 0.0), axis=0).to(tl.float64)
    return above, equal


@device
def last_key(
    row_ptr: tl.tensor,
    best: tl.tensor,
    cooling: tl.tensor,
    limit: tl.tensor,
    VOCABULARY: tl.constexpr,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The smallest key above which there is less weight than `limit`: four of its bits a pass."""
    key = tl.full([], _LEAST_KEY, tl.int64)
    step = tl.full([], 1 << 28, tl.int64)
    for _ in range(_SEARCH_ROUNDS):
        thresholds = key + (tl.arange(0, 16).to(tl.int64) + 1) * step - 1
        weight_at = tl.zeros([16], tl.float64)
        for start in range(0, VOCABULARY, BLOCK):
            keys, weight = weights_of(row_ptr, start + tl.arange(0, BLOCK), best, cooling, VOCABULARY, BY_MASS)
            weight_at += tl.sum(tl.where(keys[:, None] > thresholds[None, :], weight[:, None], 0.0), axis=0).to(tl.float64)
        reached = (weight_at >= limit) & (tl.arange(0, 16) < 15)
        key += tl.sum(reached.to(tl.int64), axis=0) * step
        step = step // 16
    return key


@kernel()
def _redo_draw_kernel(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    top_p_ptr: tl.tensor,
    min_p_ptr: tl.tensor,
    seed_ptr: tl.tensor,
    position_ptr: tl.tensor,
    token_ptr: tl.tensor,
    logprob_ptr: tl.tensor,
    best_ptr: tl.tensor,
    normaliser_ptr: tl.tensor,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row without a certificate: the last key that is kept, how many of its equals, and the best noisy token among these."""
    row = tl.program_id(0)
    if tl.load(token_ptr + row) == UNCERTIFIED:
        row_ptr = logits_ptr + row.to(tl.int64) * VOCABULARY
        best = tl.load(best_ptr + row)
        temperature = tl.load(temperature_ptr + row)
        cooling = inverse_temperature(temperature)
        top_k = tl.load(top_k_ptr + row)
        top_p = tl.load(top_p_ptr + row)
        min_p = tl.load(min_p_ptr + row)
        limit = tl.where(top_k > 0, top_k, NO_ID).to(tl.float64)
        key = last_key(row_ptr, best, cooling, limit, VOCABULARY, False, BLOCK)
        above, equal = weight_above(row_ptr, best, cooling, key, VOCABULARY, False, BLOCK)
        equals = tl.minimum(limit - above, equal)
        if top_p < 1.0:
            mass_above, mass_equal = weight_above(row_ptr, best, cooling, key, VOCABULARY, True, BLOCK)
            each = mass_equal / tl.maximum(equal, 1.0)
            fraction = top_p.to(tl.float64) * (1.0 - _TOP_P_SLACK)
            mass = tl.maximum((mass_above + equals * each) * fraction, 1e-30)  # the best token stays at top_p = 0
            nucleus = last_key(row_ptr, best, cooling, mass, VOCABULARY, True, BLOCK)
            if nucleus >= key:
                mass_above, mass_equal = weight_above(row_ptr, best, cooling, nucleus, VOCABULARY, True, BLOCK)
                above, equal = weight_above(row_ptr, best, cooling, nucleus, VOCABULARY, False, BLOCK)
                each = tl.maximum(mass_equal / tl.maximum(equal, 1.0), 1e-300)
                wanted = tl.maximum(tl.ceil((mass - mass_above) / each), 1.0)
                equals = tl.where(nucleus == key, tl.minimum(equals, wanted), wanted)
                key = nucleus
        seed = tl.load(seed_ptr + row) + tl.zeros([BLOCK], tl.int64)
        position = tl.load(position_ptr + row) + tl.zeros([BLOCK], tl.int64)
        winning = tl.full([], float("-inf"), tl.float32)
        token = tl.full([], -1, tl.int32)
        passed = tl.full([], 0, tl.int32)
        for start in range(0, VOCABULARY, BLOCK):
            ids = start + tl.arange(0, BLOCK)
            logit = tl.load(row_ptr + ids, mask=ids < VOCABULARY, other=float("-inf"))
            keys = key_of(logit)
            there = logit > float("-inf")
            same = ((keys == key) & there).to(tl.int32)
            place = passed + tl.cumsum(same, axis=0) - same
            kept = there & ((keys > key) | ((same == 1) & (place < equals))) & above_min_p(logit, best, temperature, min_p)
            value = noisy_value(logit, best, cooling, ids, kept, seed, position, temperature)
            largest = tl.max(value, axis=0)
            lowest = tl.min(tl.where(value == largest, ids, NO_ID), axis=0)
            token = tl.where(largest > winning, lowest, token)
            winning = tl.maximum(largest, winning)
            passed += tl.sum(same, axis=0)
        tl.store(token_ptr + row, token.to(tl.int64))
        tl.store(logprob_ptr + row, tl.load(row_ptr + token) - tl.load(normaliser_ptr + row))

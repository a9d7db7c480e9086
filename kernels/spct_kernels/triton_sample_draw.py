"""Device side of the draw: tiles merge to one token a row where a certificate says that it is the right one; other rows are redone.

The right token is the best by logit / temperature + noise among those that truncation keeps, which are a beginning of the order
(logit down, id up). The histogram bounds where that beginning ends: a bin is certainly kept, certainly not, or open. The first
of the tiles' tokens in noisy order that is not certainly out is the draw if it is certainly in, and if no tile whose two tokens
are both out might hide a better one. Else the row's token becomes UNCERTIFIED and the redo kernels, always launched, compute its
logits again with the same tiles, find the end of the beginning exactly and draw.
"""

from __future__ import annotations

import triton.language as tl

from spct_kernels.sample_reference import MIN_P_SLACK, TOP_P_SLACK
from spct_kernels.triton_common import device, kernel
from spct_kernels.triton_philox import gumbel_of, random_bits_of
from spct_kernels.triton_sample_head import (
    BEST,
    BEST_ID,
    BINS,
    BINS_PER_NAT,
    COUNT_SHIFT,
    ID_1,
    ID_2,
    LOGIT_1,
    LOGIT_2,
    LOWEST,
    MASS_UNITS,
    MAXIMUM,
    ONE_TOKEN,
    SUM,
    bin_of,
    drawable_of,
    inverse_temperature,
    logit_tile,
    soft_capped,
    upper_edge_of,
)

UNCERTIFIED = tl.constexpr(-2)
NUM_COUNTERS = 2
"""Rows drawn under a truncation; of these the ones without a certificate."""

_MARGIN = tl.constexpr(8e-6)
_TOP_P_SLACK = tl.constexpr(TOP_P_SLACK)
_MIN_P_SLACK = tl.constexpr(MIN_P_SLACK)
_NO_ID = tl.constexpr(0x7FFFFFFF)
_SEARCH_ROUNDS = tl.constexpr(8)
_LEAST_KEY = tl.constexpr(-(2**31))


@device
def above_min_p(logit: tl.tensor, best: tl.tensor, temperature: tl.tensor, min_p: tl.tensor) -> tl.tensor:
    """Whether min-p keeps a logit; every token if min_p is 0 or the row greedy."""
    floor = tl.log(tl.where(min_p > 0.0, min_p, 1.0))
    slack = tl.where(min_p < 1.0, _MIN_P_SLACK * tl.maximum(-floor, 1.0), 0.0)
    floor = tl.where((temperature > 0.0) & (min_p > 0.0), floor - slack, float("-inf"))
    return (logit - best) * inverse_temperature(temperature) >= floor


@device
def certain_bins(
    histogram_ptr: tl.tensor, row: tl.tensor, best: tl.tensor, cooling: tl.tensor, top_k: tl.tensor, top_p: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """(lowest bin that top-k and top-p certainly keep, highest bin that one of them certainly drops).

    Sums run from the best bin down and carry their errors: units of the fixed-point masses, and _MARGIN for exp and fp32 sums.
    """
    bins = tl.arange(0, BINS)
    token = tl.load(histogram_ptr + row.to(tl.int64) * BINS + bins)
    count = (token >> COUNT_SHIFT).to(tl.int32)
    units = (token & (ONE_TOKEN - 1)).to(tl.float32)
    edge = tl.exp(tl.minimum((upper_edge_of(bins) - best) * cooling, 60.0))
    least = tl.where(bins == 0, 0.0, edge * tl.exp(-(1.0 / BINS_PER_NAT + 1e-4) * cooling))
    unit = edge * (1.0 / MASS_UNITS)
    number = count.to(tl.float32)
    low = tl.maximum((units - number) * unit, number * least) * (1.0 - _MARGIN)
    high = tl.minimum((units + 2.0 * number) * unit, number * edge) * (1.0 + _MARGIN)
    filled = count > 0

    place = tl.cumsum(count, axis=0, reverse=True)
    limit = tl.where(top_k > 0, top_k, _NO_ID)
    kept = place <= limit
    dropped = place - count >= limit
    rest = tl.where(kept | dropped, 0, limit - (place - count)).to(tl.float32)
    total_low = tl.sum(tl.where(kept, low, rest * least), axis=0)
    total_high = tl.sum(tl.where(kept, high, rest * edge), axis=0)

    to_here_low = tl.cumsum(low, axis=0, reverse=True)
    to_here_high = tl.cumsum(high, axis=0, reverse=True)
    fraction = top_p * (1.0 - _TOP_P_SLACK)
    sure = tl.where(top_p < 1.0, total_low * fraction * (1.0 - _MARGIN), 3e38)
    possible = tl.where(top_p < 1.0, total_high * fraction * (1.0 + _MARGIN), 3e38)
    # the last token of a bin has everything else of the bin before it, its first one only what is above the bin
    in_nucleus = (to_here_high - least) * (1.0 + _MARGIN) < sure
    past_nucleus = (to_here_low - low * (1.0 + _MARGIN)) - to_here_low * _MARGIN >= possible
    kept &= in_nucleus
    dropped |= past_nucleus & (place > count)
    # a bin that is open closes everything below it to certain keeping, although the bounds are looser there
    lowest_kept = tl.max(tl.where(filled & ~kept, bins, -1), axis=0) + 1
    highest_dropped = tl.max(tl.where(filled & dropped, bins, -1), axis=0)
    return lowest_kept, highest_dropped


@device
def tile_field(base_ptr: tl.tensor, field: tl.tensor, at: tl.tensor, stride: tl.tensor, mask: tl.tensor, other: tl.tensor) -> tl.tensor:
    """One field of every tile of a row."""
    return tl.load(base_ptr + field * stride + at, mask=mask, other=other)


@device
def noisy_value(
    logit: tl.tensor,
    best: tl.tensor,
    cooling: tl.tensor,
    ids: tl.tensor,
    valid: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    random: tl.tensor,
) -> tl.tensor:
    """(logit - best) / temperature + noise of single tokens; -inf where there is none."""
    value = tl.where(valid, (tl.where(valid, logit, best) - best) * cooling, float("-inf"))
    noise = gumbel_of(random_bits_of(ids, seed + tl.zeros_like(ids).to(tl.int64), position + tl.zeros_like(ids).to(tl.int64)))
    return value + tl.where(random, noise, 0.0)


@kernel("num_rows")
def _decide_kernel(
    floats_ptr: tl.tensor,
    ids_ptr: tl.tensor,
    histogram_ptr: tl.tensor,
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
    counters_ptr: tl.tensor,
    num_rows: tl.tensor,
    num_tiles: tl.tensor,
    FORCE_REDO: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One row. BLOCK >= num_tiles, so that the order of the sums is fixed by the vocabulary."""
    row = tl.program_id(0)
    tile = tl.arange(0, BLOCK)
    there = tile < num_tiles
    at = row.to(tl.int64) * num_tiles + tile
    stride = num_rows.to(tl.int64) * num_tiles
    maximum = tile_field(floats_ptr, MAXIMUM, at, stride, there, float("-inf"))
    highest = tl.max(maximum, axis=0)
    share = tl.exp(maximum - tl.where(highest == float("-inf"), 0.0, highest))
    normaliser = highest + tl.log(tl.sum(tile_field(floats_ptr, SUM, at, stride, there, 0.0) * share, axis=0))
    bests = tile_field(floats_ptr, BEST, at, stride, there, float("-inf"))
    best = tl.max(bests, axis=0)
    best_ids = tile_field(ids_ptr, BEST_ID, at, stride, there, -1)
    best_id = tl.min(tl.where((bests == best) & (best_ids >= 0), best_ids, _NO_ID), axis=0)

    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    seed = tl.load(seed_ptr + row)
    position = tl.load(position_ptr + row)
    random = temperature > 0.0
    cooling = inverse_temperature(temperature)
    cut = random & ((top_k > 0) | (top_p < 1.0))
    truncated = cut | (random & (min_p > 0.0))
    lowest_kept = tl.full([], 0, tl.int32)
    highest_dropped = tl.full([], -1, tl.int32)
    if cut:
        lowest_kept, highest_dropped = certain_bins(histogram_ptr, row, best, cooling, top_k, top_p)
        beyond = best >= -LOWEST - 1.0 / BINS_PER_NAT  # past the grid nothing is certain but the best token
        lowest_kept = tl.where(beyond, BINS, lowest_kept)
        highest_dropped = tl.where(beyond, -1, highest_dropped)

    logit_1 = tile_field(floats_ptr, LOGIT_1, at, stride, there, float("-inf"))
    logit_2 = tile_field(floats_ptr, LOGIT_2, at, stride, there, float("-inf"))
    id_1 = tile_field(ids_ptr, ID_1, at, stride, there, -1)
    id_2 = tile_field(ids_ptr, ID_2, at, stride, there, -1)
    value_1 = noisy_value(logit_1, best, cooling, id_1, id_1 >= 0, seed, position, random)
    value_2 = noisy_value(logit_2, best, cooling, id_2, id_2 >= 0, seed, position, random)
    large_1 = above_min_p(logit_1, best, temperature, min_p)
    large_2 = above_min_p(logit_2, best, temperature, min_p)
    out_1 = (id_1 != best_id) & (~large_1 | (bin_of(logit_1) <= highest_dropped))
    out_2 = (id_2 != best_id) & (~large_2 | (bin_of(logit_2) <= highest_dropped))
    open_1 = (id_1 != best_id) & (bin_of(logit_1) < lowest_kept)
    open_2 = (id_2 != best_id) & (bin_of(logit_2) < lowest_kept)
    left_1 = tl.where(out_1, float("-inf"), value_1)
    left_2 = tl.where(out_2, float("-inf"), value_2)
    winning = tl.max(tl.maximum(left_1, left_2), axis=0)
    token_1 = tl.where((left_1 == winning) & (id_1 >= 0), id_1, _NO_ID)
    token_2 = tl.where((left_2 == winning) & (id_2 >= 0), id_2, _NO_ID)
    token = tl.min(tl.minimum(token_1, token_2), axis=0)
    unseen = there & out_1 & out_2 & (id_2 >= 0) & (value_2 >= winning)
    doubtful = unseen | (open_1 & (id_1 == token)) | (open_2 & (id_2 == token))
    certain = tl.max(doubtful.to(tl.int32), axis=0) == 0
    if FORCE_REDO:
        certain = ~truncated
    chosen = tl.max(tl.maximum(tl.where(id_1 == token, logit_1, float("-inf")), tl.where(id_2 == token, logit_2, float("-inf"))), axis=0)

    valid = (normaliser == normaliser) & (best > float("-inf"))
    tl.store(token_ptr + row, tl.where(valid, tl.where(certain, token, UNCERTIFIED), -1).to(tl.int64))
    tl.store(logprob_ptr + row, tl.where(valid, chosen - normaliser, float("nan")))
    tl.store(best_ptr + row, best)
    tl.store(normaliser_ptr + row, normaliser)
    if truncated & valid:
        tl.atomic_add(counters_ptr, 1, sem="relaxed")
        if ~certain:
            tl.atomic_add(counters_ptr + 1, 1, sem="relaxed")


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
    if BY_MASS:
        weight = tl.where(there, tl.exp((tl.where(there, logit, best) - best) * cooling), 0.0)
    else:
        weight = there.to(tl.float32)
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
        limit = tl.where(top_k > 0, top_k, _NO_ID).to(tl.float64)
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
        seed = tl.load(seed_ptr + row)
        position = tl.load(position_ptr + row)
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
            value = noisy_value(logit, best, cooling, ids, kept, seed, position, True)
            largest = tl.max(value, axis=0)
            lowest = tl.min(tl.where(value == largest, ids, _NO_ID), axis=0)
            token = tl.where(largest > winning, lowest, token)
            winning = tl.maximum(largest, winning)
            passed += tl.sum(same, axis=0)
        tl.store(token_ptr + row, token.to(tl.int64))
        tl.store(logprob_ptr + row, tl.load(row_ptr + token) - tl.load(normaliser_ptr + row))

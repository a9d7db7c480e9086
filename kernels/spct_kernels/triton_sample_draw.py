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
from spct_kernels.triton_sample_tile import (
    BEST,
    BEST_ID,
    BINS,
    BINS_PER_NAT,
    COUNT_SHIFT,
    ID_1,
    LOGIT_1,
    LOWEST,
    MASS_UNITS,
    MAXIMUM,
    NO_ID,
    ONE_TOKEN,
    SUM,
    bin_of,
    inverse_temperature,
    upper_edge_of,
)

UNCERTIFIED = tl.constexpr(-2)
NUM_COUNTERS = 2
"""Rows drawn under a truncation; of these the ones without a certificate."""

_MARGIN = tl.constexpr(8e-6)
_TOP_P_SLACK = tl.constexpr(TOP_P_SLACK)
_MIN_P_SLACK = tl.constexpr(MIN_P_SLACK)


@device
def above_min_p(logit: tl.tensor, best: tl.tensor, temperature: tl.tensor, min_p: tl.tensor) -> tl.tensor:
    """Whether min-p keeps a logit; every token if min_p is 0 or the row greedy."""
    floor = tl.log(tl.where(min_p > 0.0, min_p, 1.0))
    slack = tl.where(min_p < 1.0, tl.maximum(-floor, 1.0) * _MIN_P_SLACK, 0.0)
    floor = tl.where((temperature > 0.0) & (min_p > 0.0), floor - slack, float("-inf"))
    return (logit - best) * inverse_temperature(temperature) >= floor


@device
def certain_bins(
    histogram_ptr: tl.tensor, rows: tl.tensor, cut: tl.tensor, best: tl.tensor, cooling: tl.tensor, top_k: tl.tensor, top_p: tl.tensor
) -> tuple[tl.tensor, tl.tensor]:
    """Per row (lowest bin that top-k and top-p certainly keep, highest bin that one of them certainly drops).

    Sums run from the best bin down and carry their errors: units of the fixed-point masses, and _MARGIN for exp and fp32 sums.
    Everything but `histogram_ptr` is [rows, 1].
    """
    bins = tl.arange(0, BINS)[None, :]
    token = tl.load(histogram_ptr + rows.to(tl.int64) * BINS + bins, mask=cut & (bins >= 0), other=0)
    count = (token >> COUNT_SHIFT).to(tl.int32)
    units = (token & (ONE_TOKEN - 1)).to(tl.float32)
    edge = tl.exp(tl.minimum((upper_edge_of(bins) - best) * cooling, 60.0))
    least = tl.where(bins == 0, 0.0, edge * tl.exp(cooling * (-1.0 / BINS_PER_NAT - 1e-4)))
    unit = edge * (1.0 / MASS_UNITS)
    number = count.to(tl.float32)
    low = tl.maximum((units - number) * unit, number * least) * (1.0 - _MARGIN)
    high = tl.minimum((units + 2.0 * number) * unit, number * edge) * (1.0 + _MARGIN)

    place = tl.cumsum(count, axis=1, reverse=True)
    limit = tl.where(top_k > 0, top_k, NO_ID)
    kept = place <= limit
    dropped = place - count >= limit
    rest = tl.where(kept | dropped, 0, limit - (place - count)).to(tl.float32)
    total_low = tl.sum(tl.where(kept, low, rest * least), axis=1, keep_dims=True)
    total_high = tl.sum(tl.where(kept, high, rest * edge), axis=1, keep_dims=True)

    to_here_low = tl.cumsum(low, axis=1, reverse=True)
    to_here_high = tl.cumsum(high, axis=1, reverse=True)
    fraction = top_p * (1.0 - _TOP_P_SLACK)
    sure = tl.where(top_p < 1.0, total_low * fraction * (1.0 - _MARGIN), 3e38)
    possible = tl.where(top_p < 1.0, total_high * fraction * (1.0 + _MARGIN), 3e38)
    # before the last token of a bin stands everything else of the bin, before its first one only what is above the bin
    in_nucleus = (to_here_high - least) * (1.0 + _MARGIN) < sure
    past_nucleus = (to_here_low - low * (1.0 + _MARGIN)) - to_here_low * _MARGIN >= possible
    kept &= in_nucleus
    dropped |= past_nucleus & (place > count)
    lowest_kept = tl.max(tl.where((count > 0) & ~kept, bins, -1), axis=1, keep_dims=True) + 1
    highest_dropped = tl.max(tl.where((count > 0) & dropped, bins, -1), axis=1, keep_dims=True)
    beyond = best >= -LOWEST - 1.0 / BINS_PER_NAT  # past the grid nothing is certain but the best token
    return tl.where(beyond, BINS, lowest_kept), tl.where(beyond, -1, highest_dropped)


@device
def noisy_value(
    logit: tl.tensor,
    best: tl.tensor,
    cooling: tl.tensor,
    ids: tl.tensor,
    valid: tl.tensor,
    seed: tl.tensor,
    position: tl.tensor,
    temperature: tl.tensor,
) -> tl.tensor:
    """(logit - best) / temperature + noise of single tokens; -inf where there is none."""
    value = tl.where(valid, (tl.where(valid, logit, best) - best) * cooling, float("-inf"))
    return value + tl.where(temperature > 0.0, gumbel_of(random_bits_of(ids, seed, position)), 0.0)


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
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """ROWS rows (one, but for the interpreter). BLOCK >= num_tiles, so that the order of the sums is fixed by the vocabulary."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = row < num_rows
    rows = row[:, None]
    tile = tl.arange(0, BLOCK)[None, :]
    inside = there[:, None] & (tile < num_tiles)
    stride = num_rows.to(tl.int64) * num_tiles
    at = rows.to(tl.int64) * num_tiles + tile
    maximum = tl.load(floats_ptr + stride * MAXIMUM + at, mask=inside, other=float("-inf"))
    highest = tl.max(maximum, axis=1)
    share = tl.exp(maximum - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
    sums = tl.load(floats_ptr + stride * SUM + at, mask=inside, other=0.0)
    normaliser = highest + tl.log(tl.sum(sums * share, axis=1))
    bests = tl.load(floats_ptr + stride * BEST + at, mask=inside, other=float("-inf"))
    best = tl.max(bests, axis=1)[:, None]
    best_ids = tl.load(ids_ptr + stride * BEST_ID + at, mask=inside, other=-1)
    best_id = tl.min(tl.where((bests == best) & (best_ids >= 0), best_ids, NO_ID), axis=1)[:, None]

    temperature = tl.load(temperature_ptr + row, mask=there, other=0.0)[:, None]
    top_k = tl.load(top_k_ptr + row, mask=there, other=0)[:, None]
    top_p = tl.load(top_p_ptr + row, mask=there, other=1.0)[:, None]
    min_p = tl.load(min_p_ptr + row, mask=there, other=0.0)[:, None]
    cooling = inverse_temperature(temperature)
    cut = (temperature > 0.0) & ((top_k > 0) | (top_p < 1.0))
    truncated = cut | ((temperature > 0.0) & (min_p > 0.0))
    lowest_kept = tl.zeros([ROWS, 1], tl.int32)
    highest_dropped = tl.full([ROWS, 1], -1, tl.int32)
    if tl.max(tl.max(cut.to(tl.int32), axis=1), axis=0) > 0:
        lowest, highest_out = certain_bins(histogram_ptr, rows, cut, best, cooling, top_k, top_p)
        lowest_kept = tl.where(cut, lowest, 0)
        highest_dropped = tl.where(cut, highest_out, -1)

    entry = tl.arange(0, 2 * BLOCK)[None, :]  # the first of every tile, then the second of every tile
    inside = there[:, None] & (entry % BLOCK < num_tiles)
    at = (entry // BLOCK) * stride + rows.to(tl.int64) * num_tiles + entry % BLOCK
    logit = tl.load(floats_ptr + stride * LOGIT_1 + at, mask=inside, other=float("-inf"))
    ids = tl.load(ids_ptr + stride * ID_1 + at, mask=inside, other=-1)
    seed = tl.load(seed_ptr + row, mask=there, other=0)[:, None]
    position = tl.load(position_ptr + row, mask=there, other=0)[:, None]
    value = noisy_value(logit, best, cooling, ids, ids >= 0, seed, position, temperature)
    bins = bin_of(logit)
    out = (ids != best_id) & (~above_min_p(logit, best, temperature, min_p) | (bins <= highest_dropped))
    left = tl.where(out, float("-inf"), value)
    winning = tl.max(left, axis=1)[:, None]
    token = tl.min(tl.where((left == winning) & (ids >= 0), ids, NO_ID), axis=1)[:, None]
    chosen = tl.max(tl.where(ids == token, logit, float("-inf")), axis=1)
    open_winner = (ids == token) & (ids != best_id) & (bins < lowest_kept)
    # a tile whose two tokens are out may hide a better one below the worse of them
    ceiling = tl.min(tl.reshape(tl.where(out & (ids >= 0), value, float("-inf")), [ROWS, 2, BLOCK]), axis=1)
    worst = tl.max(ceiling, axis=1)[:, None]
    certain = (tl.max(open_winner.to(tl.int32), axis=1)[:, None] == 0) & ((worst < winning) | (worst == float("-inf")))
    if FORCE_REDO:
        certain = ~truncated

    normal = normaliser[:, None]
    valid = (normal == normal) & (best > float("-inf"))
    drawn = tl.where(valid, tl.where(certain, token, UNCERTIFIED), -1).to(tl.int64)
    tl.store(token_ptr + rows, drawn, mask=there[:, None])
    tl.store(logprob_ptr + rows, tl.where(valid, chosen[:, None] - normal, float("nan")), mask=there[:, None])
    tl.store(best_ptr + rows, best, mask=there[:, None])
    tl.store(normaliser_ptr + rows, normal, mask=there[:, None])
    counted = truncated & valid & there[:, None]
    one = tl.full([ROWS, 1], 1, tl.int64)
    tl.atomic_add(counters_ptr + rows * 0, one, mask=counted, sem="relaxed")
    tl.atomic_add(counters_ptr + 1 + rows * 0, one, mask=counted & ~certain, sem="relaxed")

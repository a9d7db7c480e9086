"""What the output head's kernels share: tiles of logits, lists as bits, the histogram's grid, and the layout of a tile's results.

A tile is BLOCK_V vocabulary ids of BLOCK_T rows. Per row and tile the head leaves, in two buffers [fields, T, tiles]:

    floats  MAXIMUM, SUM: of exp(logit - MAXIMUM) over the allowed ids, NaN where a logit is NaN or +Inf
            BEST: the largest logit that may be drawn; LOGIT_1, LOGIT_2: of the two best by logit / temperature + noise
    ids     BEST_ID, ID_1, ID_2: of these, ties to the lower id; -1 where there is none

and for rows under top-k or top-p, per bin of logits, how many tokens are in it and their mass (see `to_histogram`).
"""

from __future__ import annotations

import triton.language as tl

from spct_kernels.triton_common import device, dot, tanh

MAXIMUM = tl.constexpr(0)
SUM = tl.constexpr(1)
BEST = tl.constexpr(2)
LOGIT_1 = tl.constexpr(3)
LOGIT_2 = tl.constexpr(4)
NUM_FLOATS = tl.constexpr(5)
BEST_ID = tl.constexpr(0)
ID_1 = tl.constexpr(1)
ID_2 = tl.constexpr(2)
NUM_IDS = tl.constexpr(3)

BINS = tl.constexpr(2048)
LOWEST = tl.constexpr(-128.0)
BINS_PER_NAT = tl.constexpr(8.0)
MASS_UNITS = tl.constexpr(1048576.0)
COUNT_SHIFT = tl.constexpr(40)
ONE_TOKEN = tl.constexpr(1 << 40)

NO_ID = tl.constexpr(0x7FFFFFFF)
"""Above every id: what a minimum over ids gives where there is none."""
_EXPONENT = tl.constexpr(0x7F800000)
_COLDEST = tl.constexpr(1e-30)


@device
def power_of_two_below(x: tl.tensor) -> tl.tensor:
    """The largest power of two <= x and <= 2^126, for a normal x > 0; else 1."""
    bits = x.to(tl.int32, bitcast=True) & _EXPONENT
    bits = tl.where((bits == 0) | (bits == _EXPONENT) | (x <= 0.0), 0x3F800000, bits)
    bits = tl.minimum(bits, 0x7E800000)  # of 2^127 the inverse is no normal number
    return bits.to(tl.float32, bitcast=True)


@device
def inverse_power_of_two(x: tl.tensor) -> tl.tensor:
    """1 / x for a power of two, exactly."""
    return (0x7F000000 - x.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)


@device
def inverse_temperature(temperature: tl.tensor) -> tl.tensor:
    """1 / temperature; 1 for a greedy row. Below 1e-30 it stays there: the best logit wins either way."""
    return tl.div_rn(tl.full(temperature.shape, 1.0, tl.float32), tl.where(temperature > 0.0, tl.maximum(temperature, _COLDEST), 1.0))


@device
def soft_capped(logit: tl.tensor, softcap: tl.tensor) -> tl.tensor:
    """Softcap * tanh(logit / softcap)."""
    return softcap * tanh(tl.div_rn(logit, tl.zeros_like(logit) + softcap))


@device
def bin_of(logit: tl.tensor) -> tl.tensor:
    """The bin of a logit on the absolute grid; the outermost bins take everything beyond."""
    place = tl.minimum(tl.maximum((logit - LOWEST) * BINS_PER_NAT, 0.0), BINS - 1.0)
    return place.to(tl.int32)


@device
def upper_edge_of(bins: tl.tensor) -> tl.tensor:
    """The logit at a bin's upper end."""
    return (bins + 1).to(tl.float32) / BINS_PER_NAT + LOWEST


@device
def row_of(offsets_ptr: tl.tensor, num_rows: tl.tensor, index: tl.tensor) -> tl.tensor:
    """The row that owns an entry of the lists: the largest one with offsets[row] <= index."""
    low = tl.zeros_like(index)
    high = tl.zeros_like(index) + num_rows
    for _ in range(32):
        middle = (low + high) // 2
        below = tl.load(offsets_ptr + middle) <= index
        more = high - low > 1
        low = tl.where(more & below, middle, low)
        high = tl.where(more & ~below, middle, high)
    return low


@device
def logit_tile(
    parts_ptr: tl.tensor,
    head_ptr: tl.tensor,
    rows: tl.tensor,
    row_mask: tl.tensor,
    ids: tl.tensor,
    id_mask: tl.tensor,
    num_rows: tl.tensor,
    head_stride: tl.tensor,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    PANEL: tl.constexpr,
    BLOCK_E: tl.constexpr,
) -> tl.tensor:
    """Products [ids, rows] of head rows and hidden states, before the rows' factor.

    Every user takes the same tile sizes, so that the bits of a logit depend on its row and id alone. PANEL > 0: the head stands as
    `linear.pack` left it. UPCAST: the interpreter can't multiply bf16.
    """
    lane = tl.arange(0, BLOCK_E)
    head_row = head_ptr + ids.to(tl.int64) * head_stride
    if PANEL:
        head_row = head_ptr + (ids // PANEL).to(tl.int64) * WIDTH * PANEL + ids % PANEL
    hidden_row = parts_ptr + rows.to(tl.int64) * WIDTH
    part_stride = num_rows.to(tl.int64) * WIDTH
    products = tl.zeros([ids.shape[0], rows.shape[0]], tl.float32)
    for start in range(0, WIDTH, BLOCK_E):
        e = start + lane
        step = e * PANEL if PANEL else e
        w = tl.load(head_row[:, None] + step[None, :], mask=id_mask[:, None] & (e < WIDTH)[None, :], other=0.0)
        for part in tl.static_range(PARTS):
            x = tl.load(hidden_row[None, :] + part * part_stride + e[:, None], mask=row_mask[None, :] & (e < WIDTH)[:, None], other=0.0)
            products = dot(w, x, products)
    return products


@device
def listed_of(bits_ptr: tl.tensor, rows: tl.tensor, row_mask: tl.tensor, ids: tl.tensor, id_mask: tl.tensor, words: tl.tensor) -> tl.tensor:
    """Which (row, id) have their bit set, [rows, ids]."""
    at = bits_ptr + rows.to(tl.int64)[:, None] * words + (ids // 32)[None, :]
    word = tl.load(at, mask=row_mask[:, None] & id_mask[None, :], other=0)
    return ((word >> (ids % 32)[None, :]) & 1) != 0


@device
def drawable_of(
    bits_ptr: tl.tensor,
    banned_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    rows: tl.tensor,
    row_mask: tl.tensor,
    ids: tl.tensor,
    id_mask: tl.tensor,
    words: tl.tensor,
    HAS_ALLOWED: tl.constexpr,
    HAS_BANNED: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """(ids over which the log-probability is taken, ids that may be drawn), [rows, ids] each."""
    inside = row_mask[:, None] & id_mask[None, :]
    if HAS_ALLOWED:
        first = tl.load(offsets_ptr + rows, mask=row_mask, other=0)
        free = tl.load(offsets_ptr + rows + 1, mask=row_mask, other=0) == first
        inside &= free[:, None] | listed_of(bits_ptr, rows, row_mask, ids, id_mask, words)
    drawable = inside
    if HAS_BANNED:
        drawable &= ~listed_of(banned_ptr, rows, row_mask, ids, id_mask, words)
    return inside, drawable


@device
def best_of(value: tl.tensor, ids: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """(largest value, its lowest id) of every row; the id of a row with nothing but -inf means nothing."""
    largest = tl.max(value, axis=1)
    return largest, tl.min(tl.where(value == largest[:, None], ids[None, :], NO_ID), axis=1)


@device
def to_histogram(histogram_ptr: tl.tensor, rows: tl.tensor, counted: tl.tensor, logit: tl.tensor, cooling: tl.tensor) -> None:
    """Adds tokens to their row's histogram: one integer a bin, count << 40 | mass, so that the sum has no order.

    A token's mass is exp((logit - upper edge of its bin) / temperature) in units of 2^-20, cut off: the sum of a bin of n tokens is
    right to within n units below and 2n above, and 2^20 tokens fit. Logits from -128 on have a bin of 1/8 nat.
    """
    bins = bin_of(logit)
    mass = tl.exp(tl.minimum((logit - upper_edge_of(bins)) * cooling[:, None], 0.0)) * MASS_UNITS
    mass = tl.where(counted, mass, 0.0)
    token = mass.to(tl.int64) + ONE_TOKEN
    tl.atomic_add(histogram_ptr + rows.to(tl.int64)[:, None] * BINS + bins, token, mask=counted, sem="relaxed")

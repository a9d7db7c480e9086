"""The output head's certificate in numpy, a row at a time, from its logits: what `triton_sample_draw` decides, beside the exact draw.

Written from the rule (tiles of 128 ids, their two best by noisy value, a histogram of mass over logit), in fp32 where the kernels are in
fp32; `certificates.py` holds its flags against the kernels' own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TILE = 128
BINS = 2048
LOWEST, BINS_PER_NAT = np.float32(-128), np.float32(8)
MASS_UNITS = np.float32(1 << 20)
MARGIN = np.float32(8e-6)
TOP_P_SLACK = np.float32(4e-7)
ONE = np.float32(1)


@dataclass(frozen=True)
class Verdict:
    """What became of one row: whether its draw has a certificate, the token drawn if so, and the exact draw; tokens of its nucleus."""

    certified: bool
    token: int
    exact: int
    nucleus: int


def histogram(logits: Floats, cooling: np.float32) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Tokens in each bin, and their mass below the bin's upper edge in units of 2^-20, each token's cut off."""
    bins = np.clip((logits - LOWEST) * BINS_PER_NAT, 0, BINS - 1).astype(np.int32)
    edges = (bins + 1).astype(np.float32) / BINS_PER_NAT + LOWEST
    mass = (np.exp(np.minimum((logits - edges) * cooling, 0)) * MASS_UNITS).astype(np.int64)
    counts, units = np.zeros(BINS, dtype=np.int64), np.zeros(BINS, dtype=np.int64)
    np.add.at(counts, bins, 1)
    np.add.at(units, bins, mass)
    return counts, units


def bounds(counts: npt.NDArray[np.int64], units: npt.NDArray[np.int64], best: float, cooling: np.float32, top_p: float) -> tuple[int, int]:
    """(lowest bin that is certainly in the nucleus, highest bin that is certainly out of it); without top-k."""
    bins = np.arange(BINS)
    edge = np.exp(np.minimum(((bins + 1).astype(np.float32) / BINS_PER_NAT + LOWEST - np.float32(best)) * cooling, np.float32(60)))
    least = np.where(bins == 0, np.float32(0), edge * np.exp(cooling * np.float32(-1 / 8 - 1e-4)))
    unit, number, total = edge / MASS_UNITS, counts.astype(np.float32), units.astype(np.float32)
    low = np.maximum((total - number) * unit, number * least) * (ONE - MARGIN)
    high = np.minimum((total + 2 * number) * unit, number * edge) * (ONE + MARGIN)
    to_here_low = np.cumsum(low[::-1], dtype=np.float32)[::-1]
    to_here_high = np.cumsum(high[::-1], dtype=np.float32)[::-1]
    fraction = np.float32(top_p) * (ONE - TOP_P_SLACK)
    sure, possible = low.sum() * fraction * (ONE - MARGIN), high.sum() * fraction * (ONE + MARGIN)
    kept = (to_here_high - least) * (ONE + MARGIN) < sure
    dropped = (to_here_low - low * (ONE + MARGIN)) - to_here_low * MARGIN >= possible
    dropped &= np.cumsum(counts[::-1])[::-1] > counts  # the best token's bin is never out
    open_bins, out_bins = np.flatnonzero((counts > 0) & ~kept), np.flatnonzero((counts > 0) & dropped)
    return int(open_bins.max(initial=-1)) + 1, int(out_bins.max(initial=-1))


def verdict(logits: Floats, noise: Floats, temperature: float, top_p: float) -> Verdict:
    """The row's certificate and draws.

    logits  [V] fp32, after the soft cap;  noise  [V] fp32 Gumbel variables;  temperature > 0;  0 < top_p < 1
    """
    cooling = ONE / np.float32(temperature)
    best_id, best = int(logits.argmax()), logits.max()
    lowest_kept, highest_dropped = bounds(*histogram(logits, cooling), float(best), cooling, top_p)
    padded = -(-len(logits) // TILE) * TILE
    noisy = np.full(padded, -np.inf, dtype=np.float32)
    noisy[: len(logits)] = (logits - best) * cooling + noise
    tiles = noisy.reshape(-1, TILE).copy()
    starts = TILE * np.arange(len(tiles))
    first = tiles.argmax(axis=1)
    tiles[np.arange(len(tiles)), first] = -np.inf
    ids = np.stack((starts + first, starts + tiles.argmax(axis=1)), axis=1)
    filled = np.append(logits, np.full(padded - len(logits), -np.inf, dtype=np.float32))
    bins = np.clip((filled[ids] - LOWEST) * BINS_PER_NAT, 0, BINS - 1).astype(np.int32)
    out = (ids != best_id) & (bins <= highest_dropped)
    left = np.where(out, -np.inf, noisy[ids])
    at = int(left.argmax())
    token, winning = int(ids.flat[at]), left.flat[at]
    hidden = np.where(out, noisy[ids], -np.inf).min(axis=1).max()  # the worse token of a tile whose two are out
    certain = (token == best_id or bins.flat[at] >= lowest_kept) and (hidden < winning or hidden == -np.inf)
    exact, nucleus = _exact(logits, noise, temperature, top_p)
    return Verdict(bool(certain), token, exact, nucleus)


def _exact(logits: Floats, noise: Floats, temperature: float, top_p: float) -> tuple[int, int]:
    """(the draw, by sorting in fp64; tokens of the nucleus)."""
    order = np.argsort(-logits, kind="stable")
    mass = np.exp((logits[order].astype(np.float64) - float(logits.max())) / temperature)
    before = np.cumsum(mass) - mass
    size = max(1, int(np.sum(before < mass.sum() * float(np.float32(top_p)) * (1 - float(TOP_P_SLACK)))))
    kept = np.sort(order[:size])
    value = logits[kept].astype(np.float64) / temperature + noise[kept]
    return int(kept[int(value.argmax())]), size

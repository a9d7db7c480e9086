"""Keyed noise on the device: the bits of `philox.random_bits` and Gumbel variables in fp32, as device functions of other kernels."""

from __future__ import annotations

import triton.language as tl

from spct_kernels.triton_common import device


@device
def philox_words(quad: tl.tensor, seed: tl.tensor, position: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Four uint32 words per counter: the bits of the ids 4 * quad … 4 * quad + 3.

    quad            int32, any shape
    seed, position  int64, shapes that broadcast with it; all 64 bits count
    """
    c0 = quad.to(tl.uint32) + tl.zeros_like(position).to(tl.uint32)
    c1 = position.to(tl.uint32) + tl.zeros_like(quad).to(tl.uint32)
    c2 = (position >> 32).to(tl.uint32) + tl.zeros_like(quad).to(tl.uint32)
    c3 = tl.zeros_like(c0)
    k0 = seed.to(tl.uint32) + tl.zeros_like(c0)
    k1 = (seed >> 32).to(tl.uint32) + tl.zeros_like(c0)
    m0 = tl.full(c0.shape, 0xD2511F53, tl.uint32)
    m1 = tl.full(c0.shape, 0xCD9E8D57, tl.uint32)
    for _ in tl.static_range(10):
        high0 = tl.umulhi(c0, m0)
        high1 = tl.umulhi(c2, m1)
        low0 = tl.mul(c0, m0, sanitize_overflow=False)
        low1 = tl.mul(c2, m1, sanitize_overflow=False)
        c0 = high1 ^ c1 ^ k0
        c2 = high0 ^ c3 ^ k1
        c1 = low1
        c3 = low0
        k0 = tl.add(k0, tl.full(c0.shape, 0x9E3779B9, tl.uint32), sanitize_overflow=False)
        k1 = tl.add(k1, tl.full(c0.shape, 0xBB67AE85, tl.uint32), sanitize_overflow=False)
    return c0, c1, c2, c3


@device
def random_bits_of(ids: tl.tensor, seed: tl.tensor, position: tl.tensor) -> tl.tensor:
    """The uint32 bits of single ids; a counter is computed for each, so this is for a few of them."""
    c0, c1, c2, c3 = philox_words(ids >> 2, seed, position)
    word = ids & 3
    return tl.where(word < 2, tl.where(word == 0, c0, c1), tl.where(word == 2, c2, c3))


@device
def gumbel_of(bits: tl.tensor) -> tl.tensor:
    """Standard Gumbel variables in fp32 from uint32 bits, both tails exact to a few roundings.

    log1p(-w) is log(1 - w) * w / (1 - (1 - w)), which undoes the rounding of 1 - w; libdevice's is missing under the interpreter.
    Source: W. Kahan, HP-15C Advanced Functions Handbook, 1982.
    """
    u = (bits.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    w = ((bits ^ tl.full(bits.shape, 0xFFFFFFFF, tl.uint32)).to(tl.float32) + 0.5) * 2.3283064365386963e-10
    rest = 1.0 - w
    taken = 1.0 - rest
    small = taken == 0.0
    log1p = tl.where(small, -w, tl.log(rest) * (w / tl.where(small, 1.0, taken)))
    exponential = tl.where(bits < 0x80000000, -tl.log(u), -log1p)
    return -tl.log(exponential)

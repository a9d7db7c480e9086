"""Keyed noise: Philox4x32-10 bits and the Gumbel variables made from them, in plain torch on any device.

The bits of a draw depend on (seed, position, vocabulary id) and on nothing else, so that a sample never changes with its row,
its batch, the step or the device. One counter gives the bits of four neighbouring ids:

    key = (seed low, seed high)    counter = (id // 4, position low, position high, 0)    word = id % 4

Source of the generator: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Four 32-bit words per counter, equal to the known answers of Random123.

    counter  four int64 tensors of one broadcastable shape, values 0 .. 2^32 - 1
    key      two int64 tensors that broadcast with them, values 0 .. 2^32 - 1
    returns  four int64 tensors, values 0 .. 2^32 - 1
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        high0, low0 = _multiply(MULTIPLIERS[0], c0)
        high1, low1 = _multiply(MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = (k0 + KEY_STEPS[0]) & _MASK
        k1 = (k1 + KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def random_bits(seed: Tensor, position: Tensor, num_ids: int) -> Tensor:
    """The 32 uniform bits of every vocabulary id for every row.

    seed      [T] int64, all 64 bits count
    position  [T] int64, of the token in its sequence
    returns   [T, num_ids] int64, values 0 .. 2^32 - 1
    """
    quads = torch.arange((num_ids + 3) // 4, dtype=torch.int64, device=seed.device)[None, :]
    place = (position & _MASK)[:, None], ((position >> 32) & _MASK)[:, None]
    key = (seed & _MASK)[:, None], ((seed >> 32) & _MASK)[:, None]
    words = philox4x32((quads, *place, torch.zeros_like(quads)), key)
    return torch.stack(words, dim=-1).flatten(1)[:, :num_ids]


def gumbel(bits: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard Gumbel variables with both tails exact: -log(E), E = -log(u) or -log1p(-(1 - u)), whichever does not cancel.

    bits     int64, values 0 .. 2^32 - 1
    dtype    of the arithmetic; in float32 the error stays near 1e-6 up to the largest value, 22.9
    returns  `dtype`, bits' shape; -log(-log(u)) of a 24-bit u would stop at 16.6 and bend the tail of a large vocabulary
    """
    scale = math.ldexp(1.0, -32)
    u = (bits.to(dtype) + 0.5) * scale
    w = ((bits ^ _MASK).to(dtype) + 0.5) * scale
    exponential = torch.where(bits < 2**31, -torch.log(u), -torch.log1p(-w))
    return -torch.log(exponential)


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a 32x32-bit product: in two halves, since int64 can't hold an unsigned 64-bit product."""
    low_part = constant * (x & 0xFFFF)
    upper = constant * (x >> 16) + (low_part >> 16)
    return upper >> 16, ((upper & 0xFFFF) << 16) | (low_part & 0xFFFF)

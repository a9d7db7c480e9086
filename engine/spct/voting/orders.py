"""In which order a sample sees the responses."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from typing import TypeVar

from spct.types import OrderMode

Score = TypeVar("Score", int, float)


def order_of(mode: OrderMode, num_responses: int, seed: int, content: bytes, index: int) -> tuple[int, ...]:
    """Give the order of sample `index`; it depends on (seed, content, index) alone.

    content  `content_key` of the request

    "balanced": rotation index mod n of one permutation drawn from seed and content, so that with n dividing the number of samples every
    response stands equally often in every place, and at most n prompts are prefilled. "all": a fresh shuffle per sample. "given": as in
    the request. The shuffles are exact (Fisher-Yates, rejection instead of a remainder).
    """
    if mode == "given" or num_responses == 1:
        return tuple(range(num_responses))
    if mode == "all":
        return _shuffle(num_responses, seed, content, index)
    base = _shuffle(num_responses, seed, content, -1)
    turn = index % num_responses
    return base[turn:] + base[:turn]


def orders(mode: OrderMode, num_responses: int, num_samples: int, seed: int, content: bytes) -> list[tuple[int, ...]]:
    """Give the orders of samples 0 .. num_samples - 1; those of fewer samples are a prefix of those of more."""
    if mode == "balanced":
        turns = [order_of(mode, num_responses, seed, content, i) for i in range(min(num_responses, num_samples))]
        return [turns[i % num_responses] for i in range(num_samples)]
    return [order_of(mode, num_responses, seed, content, i) for i in range(num_samples)]


def in_request_order(shown: Sequence[Score], order: Sequence[int]) -> tuple[Score, ...]:
    """Map scores in the order shown back: `shown[p]` belongs to response `order[p]`."""
    mapped = list(shown)
    for place, response in enumerate(order):
        mapped[response] = shown[place]
    return tuple(mapped)


def _shuffle(count: int, seed: int, content: bytes, index: int) -> tuple[int, ...]:
    words = _words(seed, content, index)
    items = list(range(count))
    for last in range(count - 1, 0, -1):
        bound = last + 1
        limit = 2**32 - 2**32 % bound
        word = next(words)
        while word >= limit:
            word = next(words)
        items[last], items[word % bound] = items[word % bound], items[last]
    return tuple(items)


def _words(seed: int, content: bytes, index: int) -> Iterator[int]:
    """Stream 32-bit words out of a keyed hash in counter mode."""
    counter = 0
    while True:
        digest = hashlib.blake2b(struct.pack("<qqq", seed, index, counter) + content, digest_size=64, person=b"spct.order").digest()
        yield from struct.unpack("<16I", digest)
        counter += 1

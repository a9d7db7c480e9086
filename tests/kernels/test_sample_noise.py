"""The keyed noise: known answers, the same bits everywhere, exact tails."""

import math

import numpy as np
import pytest
import torch
from sampling_oracle import BACKENDS, backend_at_level, gumbel_noise, philox_bits

from spct_kernels.philox import gumbel, philox4x32, random_bits
from spct_kernels.sample_cpu import random_bits_cpu

# Random123's kat_vectors for philox4x32 10: counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEEDS = [0, 1, -1, 2**63 - 1, -(2**63), 0x299F31D0A4093822]
POSITIONS = [0, 1, 2**32 - 1, 2**32, -1, 77]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_known_answers(counter, key, result):
    words = philox4x32(tuple(torch.tensor([word]) for word in counter), tuple(torch.tensor([word]) for word in key))
    assert tuple(int(word) for word in words) == result


@pytest.mark.parametrize("num_ids", [1, 3, 4, 5, 63, 64, 65, 1009])
@pytest.mark.parametrize("name", BACKENDS)
def test_bits_are_the_same_everywhere(name, num_ids):
    seed, position = torch.tensor(SEEDS), torch.tensor(POSITIONS)
    with backend_at_level(name) as backend:
        bits = (random_bits if backend == "reference" else random_bits_cpu)(seed, position, num_ids)
    for row, (s, p) in enumerate(zip(SEEDS, POSITIONS, strict=True)):
        assert np.array_equal(bits[row].numpy(), philox_bits(s, p, num_ids).astype(np.int64))


def test_the_layout_is_the_contract():
    seed, position = 0x0123456789ABCDEF, 0x1122334455667788
    key = torch.tensor([seed & 0xFFFFFFFF]), torch.tensor([seed >> 32])
    for token in (0, 1, 2, 3, 4, 4095):
        counter = (torch.tensor([token // 4]), torch.tensor([position & 0xFFFFFFFF]), torch.tensor([position >> 32]), torch.tensor([0]))
        word = philox4x32(counter, key)[token % 4]
        assert int(random_bits(torch.tensor([seed]), torch.tensor([position]), 4096)[0, token]) == int(word)


def test_gumbel_has_exact_tails_in_fp32():
    edges = [0, 1, 2, 255, 2**23, 2**24 + 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 2**24, 2**32 - 256, 2**32 - 2, 2**32 - 1]
    bits = torch.tensor(edges + np.random.default_rng(1).integers(0, 2**32, 20_000).tolist())
    exact = gumbel(bits)
    assert torch.allclose(gumbel(bits, torch.float32).double(), exact, rtol=2e-6, atol=2e-6)
    assert exact.max().item() == pytest.approx(33 * math.log(2), abs=1e-9)
    assert exact.min().item() == pytest.approx(-math.log(33 * math.log(2)), abs=1e-9)
    assert bool((exact[bits.argsort()].diff() >= 0).all())  # monotone across the change of formula


def test_gumbel_agrees_with_numpy():
    ours = gumbel(random_bits(torch.tensor([42]), torch.tensor([7]), 4097))[0].numpy()
    assert np.allclose(ours, gumbel_noise(42, 7, 4097), rtol=1e-13, atol=1e-13)


def test_uniforms_fill_the_interval():
    u = (random_bits(torch.tensor([3]), torch.tensor([9]), 1 << 20)[0].double() + 0.5) / 2**32
    counts = torch.histc(u, bins=256, min=0, max=1)
    expected = (1 << 20) / 256
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert torch.special.gammaincc(torch.tensor(127.5), torch.tensor(statistic / 2)) > 1e-6

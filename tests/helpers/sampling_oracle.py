"""An independent fp64 oracle of the sampler (numpy, one row at a time, by sorting), and the statistics that judge its draws."""

import contextlib
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from spct_kernels import fused_sample
from spct_kernels.dispatch import CPU_LEVELS, cpu_level, cpu_levels, set_cpu_level

BACKENDS = ("reference", *(f"cpu-{level}" for level in CPU_LEVELS))
ALPHA = 1e-6


@contextlib.contextmanager
def backend_at_level(name):
    """The `backend=` argument of "reference" or "cpu-LEVEL", with the CPU level set meanwhile."""
    backend, _, level = name.partition("-")
    if not level:
        yield backend
        return
    if level not in cpu_levels():
        pytest.skip(f"needs CPU with {level}")
    before = cpu_level()
    set_cpu_level(level)
    try:
        yield backend
    finally:
        set_cpu_level(before)


@dataclass(frozen=True)
class Row:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0


def parameters(rows):
    """Keyword arguments of `fused_sample` for these rows."""
    return {
        "temperature": torch.tensor([row.temperature for row in rows], dtype=torch.float32),
        "top_k": torch.tensor([row.top_k for row in rows], dtype=torch.int32),
        "top_p": torch.tensor([row.top_p for row in rows], dtype=torch.float32),
        "min_p": torch.tensor([row.min_p for row in rows], dtype=torch.float32),
        "seed": torch.tensor([row.seed for row in rows], dtype=torch.int64),
        "position": torch.tensor([row.position for row in rows], dtype=torch.int64),
    }


def repeated(row, count, **changed):
    """Parameters of `count` equal rows, except for the tensors in `changed`."""
    return {name: tensor.expand(count).contiguous() for name, tensor in parameters([row]).items()} | changed


def lists(per_row):
    """(offsets, ids) of a list of lists."""
    offsets = torch.tensor([0, *np.cumsum([len(ids) for ids in per_row])], dtype=torch.int64)
    return offsets, torch.tensor([token for ids in per_row for token in ids], dtype=torch.int32)


def draw_from(logits, keywords, backend="cpu", **more):
    """Draws from exactly these logits [V]: a model of width 1 whose normed hidden state is 1."""
    count = keywords["seed"].numel()
    head = torch.as_tensor(logits, dtype=torch.float32)[:, None]
    return fused_sample(torch.ones(count, 1), torch.ones(1), head, norm_eps=0.0, backend=backend, **keywords, **more)


def philox_bits(seed, position, num_ids):
    """Philox4x32-10 in numpy's uint64: the 32 bits of ids 0 .. num_ids - 1."""
    mask = np.uint64(0xFFFFFFFF)
    quads = np.arange((num_ids + 3) // 4, dtype=np.uint64)
    words = [quads, np.full_like(quads, position & 0xFFFFFFFF), np.full_like(quads, (position >> 32) & 0xFFFFFFFF), np.zeros_like(quads)]
    key = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF]
    for _ in range(10):
        x = words[0] * np.uint64(0xD2511F53)
        y = words[2] * np.uint64(0xCD9E8D57)
        first = (y >> np.uint64(32)) ^ words[1] ^ np.uint64(key[0])
        third = (x >> np.uint64(32)) ^ words[3] ^ np.uint64(key[1])
        words = [first, y & mask, third, x & mask]
        key = [(key[0] + 0x9E3779B9) & 0xFFFFFFFF, (key[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return np.stack(words, axis=1).reshape(-1)[:num_ids]


def gumbel_noise(seed, position, num_ids):
    bits = philox_bits(seed, position, num_ids)
    u = (bits.astype(np.float64) + 0.5) * 2.0**-32
    w = ((np.uint64(0xFFFFFFFF) - bits).astype(np.float64) + 0.5) * 2.0**-32
    return -np.log(np.where(bits < 2**31, -np.log(u), -np.log1p(-w)))


def ordered(logits):
    """Ids by logit, best first, ties by id; without those of -inf."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    return order[logits[order] > -np.inf]


def kept_tokens(logits, row, slack=0.0, order=None):
    """Ids that truncation leaves, best first. `slack` moves top-p down and min-p's bound down, both relatively."""
    order = ordered(logits) if order is None else order
    if row.top_k:
        order = order[: row.top_k]
    scaled = (logits[order] - logits[order[0]]) / np.float64(np.float32(row.temperature))
    mass = np.exp(scaled)
    keep = len(order)
    if row.top_p < 1:
        before = np.concatenate(([0.0], np.cumsum(mass)[:-1]))
        keep = max(1, int(np.sum(before < np.float64(np.float32(row.top_p)) * (1 - slack) * mass.sum())))
    if row.min_p > 0:
        bound = np.log(np.float64(np.float32(row.min_p)))
        keep = min(keep, int(np.sum(scaled >= bound - slack * max(1.0, -bound) * (row.min_p < 1))))
    return order[:keep]


def probabilities(logits, row):
    """The exact distribution [V] that a row draws from."""
    logits = np.asarray(logits, dtype=np.float64)
    if row.temperature == 0:
        kept = np.array([int(np.argmax(logits))])
        return np.where(np.arange(len(logits)) == kept[0], 1.0, 0.0)
    kept = kept_tokens(logits, row, slack=4e-7)
    mass = np.exp((logits[kept] - logits.max()) / row.temperature)
    result = np.zeros(len(logits))
    result[kept] = mass / mass.sum()
    return result


def expected_draw(logits, row):
    """(token, gap): the fp64 argmax over the noise, and by how much it wins; gap 0 where truncation itself is a matter of 1e-6."""
    logits = np.asarray(logits, dtype=np.float64)
    if row.temperature == 0:
        best = int(np.argmax(logits))
        others = np.delete(logits, best)
        return best, float(logits[best] - others.max()) if len(others) else np.inf
    order = ordered(logits)
    kept = kept_tokens(logits, row, 0.0, order)
    if any(len(kept) != len(kept_tokens(logits, row, slack, order)) for slack in (1e-6, -1e-6)):
        return int(kept[0]), 0.0
    scaled = (logits[kept] - logits[kept[0]]) / np.float64(np.float32(row.temperature))
    noisy = scaled + gumbel_noise(row.seed, row.position, len(logits))[kept]
    ranked = np.sort(noisy)
    return int(kept[np.argmax(noisy)]), float(ranked[-1] - ranked[-2]) if len(ranked) > 1 else np.inf


def chi_square_p(counts, expected):
    """Probability of counts as far from `expected` (same total) by chance; cells that expect fewer than 5 are pooled."""
    counts, expected = np.asarray(counts, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    possible = expected > 0
    assert counts[~possible].sum() == 0, f"{int(counts[~possible].sum())} draws of impossible tokens"
    counts, expected = counts[possible], expected[possible]
    small = expected < 5
    if small.any():
        counts = np.append(counts[~small], counts[small].sum())
        expected = np.append(expected[~small], expected[small].sum())
    if len(counts) == 1:
        return 1.0
    statistic = float(((counts - expected) ** 2 / expected).sum())
    half = torch.tensor([(len(counts) - 1) / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def counts_of(logits, row, num_draws, backend="cpu", **more):
    """How often each token is drawn at the positions 0 .. num_draws - 1 of one seed."""
    counts = np.zeros(len(logits), dtype=np.int64)
    step = 1 << 16
    for first in range(0, num_draws, step):
        count = min(step, num_draws - first)
        keywords = repeated(row, count, position=torch.arange(first, first + count))
        counts += np.bincount(draw_from(logits, keywords, backend, **more).token.numpy(), minlength=len(logits))
    return counts


def goodness(logits, row, num_draws, drawn_as=None, backend="cpu", **more):
    """The chi-square p-value of draws with the parameters `drawn_as` against the exact distribution of `row`."""
    counts = counts_of(logits, drawn_as or row, num_draws, backend, **more)
    return chi_square_p(counts, probabilities(np.asarray(logits, dtype=np.float32), row) * num_draws)


def zipf_logits(vocabulary, exponent=1.0, shuffle_seed=5):
    """fp32 logits of a Zipf distribution over shuffled ids."""
    ranks = np.random.default_rng(shuffle_seed).permutation(vocabulary) + 1.0
    return (-exponent * np.log(ranks)).astype(np.float32)


def changed(row, **fields):
    return replace(row, **fields)

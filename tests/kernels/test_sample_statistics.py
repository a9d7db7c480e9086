"""The draws follow the exact fp64 distribution (chi-square, alpha = 1e-6), and samples are independent of each other."""

import math

import numpy as np
import pytest
import torch
from sampling_oracle import (
    ALPHA,
    Row,
    changed,
    chi_square_p,
    counts_of,
    draw_from,
    goodness,
    kept_tokens,
    lists,
    probabilities,
    repeated,
    zipf_logits,
)

NUM_DRAWS = 2_000_000
REAL_VOCABULARY = 151_936

ZIPF50, ZIPF1000 = zipf_logits(50), zipf_logits(1000)
NORMAL = (np.random.default_rng(8).normal(size=1009) * 2).astype(np.float32)
TIED = np.array([0, 1, 1, 2, 1, 0, 2, 1, 0, 1] * 5, dtype=np.float32)

CASES = {
    "plain, V=1009": (NORMAL, Row(seed=1)),
    "Zipf, top-p, V=50": (ZIPF50, Row(top_p=0.9, seed=2)),
    "Zipf, top-p, V=1000": (ZIPF1000, Row(top_p=0.9, seed=3)),
    "cold, V=50": (ZIPF50, Row(temperature=0.7, seed=4)),
    "hot, V=1000": (ZIPF1000, Row(temperature=1.4, seed=5)),
    "min-p, V=50": (ZIPF50, Row(min_p=0.05, seed=6)),
    "ties cut by top-k": (TIED, Row(top_k=13, seed=7)),
    "ties cut by top-p": (TIED, Row(top_p=0.6, seed=8)),
    "all equal, top-p": (np.zeros(50, dtype=np.float32), Row(top_p=0.3, seed=9)),
    "p -> 0": (ZIPF50, Row(top_p=1e-7, seed=10)),
    "p = 1, k = V": (ZIPF50, Row(top_p=1.0, top_k=50, seed=11)),
    "k = 1": (ZIPF50, Row(top_k=1, seed=12)),
    "top-k then top-p": (ZIPF50, Row(top_k=10, top_p=0.7, seed=13)),
    "top-k, top-p, min-p, cold": (ZIPF1000, Row(temperature=0.8, top_k=200, top_p=0.95, min_p=0.002, seed=14)),
    "negative seed": (TIED, Row(seed=-(2**63))),
}


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_distribution(case):
    logits, row = CASES[case]
    assert goodness(logits, row, NUM_DRAWS) > ALPHA


@pytest.mark.parametrize("case", [name for name in CASES if len(CASES[name][0]) <= 50])
def test_draws_of_the_reference_follow_the_distribution(case):
    logits, row = CASES[case]
    assert goodness(logits, row, 20_000, backend="reference") > ALPHA


def test_seeds_make_a_sample_as_positions_do():
    seeds = torch.arange(NUM_DRAWS // 4)
    tokens = draw_from(ZIPF50, repeated(Row(top_p=0.9, position=17), len(seeds), seed=seeds)).token.numpy()
    expected = probabilities(ZIPF50, Row(top_p=0.9)) * len(seeds)
    assert chi_square_p(np.bincount(tokens, minlength=50), expected) > ALPHA


def test_top_p_counts_what_top_k_left():
    """Top-k first: of k=10 tokens top-p 0.7 keeps fewer than it would keep of all fifty."""
    row = Row(top_k=10, top_p=0.7)
    nested, alone = kept_tokens(ZIPF50.astype(float), row), kept_tokens(ZIPF50.astype(float), Row(top_p=0.7))
    assert len(nested) < min(10, len(alone))
    assert set(np.flatnonzero(counts_of(ZIPF50, row, 100_000))) == set(nested.tolist())


@pytest.mark.parametrize("row", [Row(seed=3), Row(top_p=0.95, temperature=0.9, seed=4)], ids=["plain", "top-p"])
def test_a_real_vocabulary_in_bins(row):
    """Tokens in 200 bins of about equal probability; a bin never mixes kept and dropped tokens."""
    num_draws = 20_000
    logits = zipf_logits(REAL_VOCABULARY, exponent=1.05)
    p = probabilities(logits, row)
    order = np.argsort(-p, kind="stable")
    bin_of = np.empty(REAL_VOCABULARY, dtype=np.int64)
    bin_of[order] = np.minimum((np.cumsum(p[order]) * 200).astype(np.int64), 199)
    bin_of[p == 0] = 200
    counts = np.zeros(201)
    for first in range(0, num_draws, 1000):
        tokens = draw_from(logits, repeated(row, 1000, position=torch.arange(first, first + 1000))).token.numpy()
        counts += np.bincount(bin_of[tokens], minlength=201)
    expected = np.bincount(bin_of, weights=p, minlength=201) * num_draws
    assert chi_square_p(counts, expected) > ALPHA


# ---- What the tests above must be able to see ----


def test_an_off_by_one_nucleus_fails():
    for logits, num_draws in ((ZIPF50, 200_000), (ZIPF1000, NUM_DRAWS)):
        row = Row(top_p=0.9, seed=21)
        num_kept = len(kept_tokens(logits.astype(float), row))
        lost = changed(row, top_p=1.0, top_k=num_kept - 1)
        assert goodness(logits, row, num_draws, drawn_as=lost) < ALPHA  # the crossing token dropped
        more = changed(row, top_p=1.0, top_k=num_kept + 1)
        with pytest.raises(AssertionError, match="impossible"):
            goodness(logits, row, num_draws // 10, drawn_as=more)


def test_a_temperature_wrong_by_two_percent_fails():
    for logits in (ZIPF50, ZIPF1000):
        row = Row(temperature=0.7, seed=22)
        assert goodness(logits, row, NUM_DRAWS // 4, drawn_as=changed(row, temperature=0.7 * 1.02)) < ALPHA


def test_a_uniform_leak_fails():
    """One draw in a hundred from the uniform distribution, as a sampler with a broken mask would give."""
    row = Row(seed=23)
    counts = counts_of(ZIPF50, row, NUM_DRAWS * 99 // 100)
    counts += np.random.default_rng(1).multinomial(NUM_DRAWS - counts.sum(), np.full(50, 1 / 50))
    assert chi_square_p(counts, probabilities(ZIPF50, row) * NUM_DRAWS) < ALPHA


def test_top_p_before_top_k_fails():
    row = Row(top_k=10, top_p=0.7)
    other_order = Row(top_k=min(10, len(kept_tokens(ZIPF50.astype(float), Row(top_p=0.7)))))
    with pytest.raises(AssertionError, match="impossible"):
        goodness(ZIPF50, row, 100_000, drawn_as=other_order)


def test_the_chi_square_accepts_the_truth():
    """Over 200 multinomial samples the p-values are uniform enough: none below 1e-4, about half below one half."""
    rng = np.random.default_rng(4)
    p = probabilities(ZIPF1000, Row())
    values = np.array([chi_square_p(rng.multinomial(20_000, p), p * 20_000) for _ in range(200)])
    assert values.min() > 1e-4
    assert 60 < np.sum(values < 0.5) < 140


# ---- Independence ----

EIGHT = np.log(np.array([0.3, 0.2, 0.15, 0.1, 0.1, 0.06, 0.05, 0.04])).astype(np.float32)
NUM_PAIRS = 1 << 20


def hashed(number):
    """Seeds as an engine makes them: a 64-bit mix of the sample's index."""
    x = (number + 1) * 0x9E3779B97F4A7C15 & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return (x ^ (x >> 31)) - 2**63


def stream(seed, first=0):
    return draw_from(EIGHT, repeated(Row(seed=seed), NUM_PAIRS, position=torch.arange(first, first + NUM_PAIRS))).token.numpy()


PAIRS = {
    "two samples": (lambda: (stream(hashed(0)), stream(hashed(1)))),
    "next step": (lambda: (stream(5), stream(5, first=1))),
    "four steps on": (lambda: (stream(5), stream(5, first=4))),
    "2^32 steps on": (lambda: (stream(5), stream(5, first=2**32))),
    "next seed": (lambda: (stream(5), stream(6))),
    "next seed, next step": (lambda: (stream(5), stream(6, first=1))),
    "seed and its upper half": (lambda: (stream(5), stream(5 + 2**32))),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs_of_draws_are_independent(case):
    first, second = PAIRS[case]()
    p = probabilities(EIGHT, Row())
    joint = np.bincount(first * 8 + second, minlength=64)
    assert chi_square_p(joint, np.outer(p, p).reshape(-1) * NUM_PAIRS) > ALPHA
    match_rate, expected = np.mean(first == second), float(np.sum(p * p))
    assert abs(match_rate - expected) < 5 * math.sqrt(expected * (1 - expected) / NUM_PAIRS)


def test_duplicated_draws_fail():
    """Half a percent of the pairs being one draw twice."""
    first, second = stream(hashed(0)), stream(hashed(1)).copy()
    second[::200] = first[::200]
    p = probabilities(EIGHT, Row())
    assert chi_square_p(np.bincount(first * 8 + second, minlength=64), np.outer(p, p).reshape(-1) * NUM_PAIRS) < ALPHA


def test_neighbouring_ids_have_independent_noise():
    """With equal logits, whole orders of the four ids that share a counter are equally likely."""
    kept = []
    for banned in ([], [0], [1], [2], [3]):
        more = {"banned": lists([banned] * 100_000)} if banned else {}
        kept.append(draw_from(np.zeros(4), repeated(Row(), 100_000, position=torch.arange(100_000)), **more).token.numpy())
    first = kept[0]
    second = np.choose(first, kept[1:])  # the runner-up: the winner once the first is banned
    pairs = np.bincount(first * 4 + second, minlength=16)
    expected = np.where(np.arange(16) % 5 == 0, 0.0, 100_000 / 12)
    assert chi_square_p(pairs, expected) > ALPHA

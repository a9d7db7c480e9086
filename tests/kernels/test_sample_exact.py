"""Every backend returns exactly the token of the fp64 argmax over the same noise."""

import functools

import numpy as np
import pytest
import torch
from sampling_oracle import (
    BACKENDS,
    Row,
    backend_at_level,
    changed,
    draw_from,
    expected_draw,
    kept_tokens,
    ordered,
    parameters,
    repeated,
)

from spct_kernels import fused_sample, pack
from spct_kernels.philox import gumbel
from spct_kernels.sample_cpu import random_bits_cpu

GAP = 1e-4
VOCABULARIES = [1, 2, 5, 50, 1000, 1009, 4096, 151_936]


def random_rows(rng, vocabulary, count):
    """Rows with every parameter on or off, at random."""
    rows = []
    for _ in range(count):
        on = rng.random(5) < [0.9, 0.5, 0.5, 0.4, 0.5]
        rows.append(
            Row(
                temperature=float(rng.choice([0.3, 0.7, 1.0, 1.0, 1.7])) if on[0] else 0.0,
                top_k=int(rng.integers(1, vocabulary + 2)) if on[1] else 0,
                top_p=float(rng.choice([0.05, 0.5, 0.9, 0.95, 0.999, rng.random()])) if on[2] else 1.0,
                min_p=float(rng.choice([0.001, 0.02, 0.3, 1.0])) if on[3] else 0.0,
                seed=int(rng.integers(-(2**63), 2**63)),
                position=int(rng.integers(0, 100_000)),
            )
        )
    return rows


def shapes_of_logits(rng, vocabulary):
    """Flat, peaked, heavy-tailed, tied and huge logits; and two whose every few runs of 16 differ from all others, as no sample should."""
    yield rng.normal(size=vocabulary) * 0.1
    yield rng.normal(size=vocabulary) * 3
    yield -1.1 * np.log(rng.permutation(vocabulary) + 1.0)
    yield rng.integers(-3, 4, size=vocabulary).astype(np.float64)
    yield np.where(rng.random(vocabulary) < 0.5, -np.inf, rng.normal(size=vocabulary) * 40 + 1000)
    sampled = np.arange(vocabulary) // 16 % max(2, vocabulary // 4096) == 0  # see csrc/sample/truncate.cpp
    yield rng.normal(size=vocabulary) + np.where(sampled, 3.0, 0.0)
    yield rng.normal(size=vocabulary) + np.where(sampled, -3.0, 0.0)


@functools.cache
def oracle_cases(vocabulary):
    """(logits, rows, [(token, gap)]), computed once for all backends."""
    rng = np.random.default_rng(vocabulary)
    cases = []
    for shape in shapes_of_logits(rng, vocabulary):
        logits = shape.astype(np.float32)
        logits[rng.integers(vocabulary)] = 1.0  # never nothing but -inf
        rows = random_rows(rng, vocabulary, 40 if vocabulary < 10_000 else 4)
        cases.append((logits, rows, [expected_draw(logits, row) for row in rows]))
    return cases


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_equals_the_fp64_argmax(name, vocabulary):
    checked = 0
    for logits, rows, expectations in oracle_cases(vocabulary):
        with backend_at_level(name) as backend:
            tokens = draw_from(logits, parameters(rows), backend).token.tolist()
        for row, token, (expected, gap) in zip(rows, tokens, expectations, strict=True):
            if gap > GAP or row.temperature == 0:
                checked += 1
                assert token == expected, (row, gap)
    assert checked > (150 if vocabulary < 10_000 else 15)


@pytest.mark.parametrize("packed", [None, "fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", BACKENDS)
def test_equals_the_fp64_argmax_of_a_model(name, packed):
    """Norm, head and soft cap in front of the draw: the oracle computes them in fp64 too."""
    rng = np.random.default_rng(3)
    for width, vocabulary, softcap in [(1, 7, None), (17, 50, None), (64, 1009, 5.0), (129, 1009, None)]:
        hidden, norm_weight = rng.normal(size=(60, width)) * 3, rng.random(width) + 0.5
        hidden = torch.tensor(hidden, dtype=torch.float32)
        norm_weight = torch.tensor(norm_weight, dtype=torch.float32)
        head = torch.tensor(rng.normal(size=(vocabulary, width)) * 2 / width**0.5, dtype=torch.float32)
        lm_head = head if packed is None else pack(head, packed)
        rounded = head if packed is None else lm_head.unpack()
        rows = random_rows(rng, vocabulary, 60)
        with backend_at_level(name) as backend:
            out = fused_sample(hidden, norm_weight, lm_head, norm_eps=1e-5, softcap=softcap, backend=backend, **parameters(rows))
        x = hidden.double().numpy()
        normed = x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * norm_weight.double().numpy()
        logits = normed @ rounded.double().numpy().T
        if softcap:
            logits = np.tanh(logits / softcap) * softcap
        logprobs = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
        for i, row in enumerate(rows):
            expected, gap = expected_draw(logits[i], row)
            token = int(out.token[i])
            if gap > GAP:
                assert token == expected, (row, gap)
            assert float(out.logprob[i]) == pytest.approx(logprobs[i, token], abs=5e-6)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("vocabulary", [5, 64, 1009, 20_000])
def test_the_kept_set_is_exact(name, vocabulary):
    """At a high temperature the kept tokens are about equally likely: all of the kept set is seen, and nothing else."""
    rng = np.random.default_rng(vocabulary)
    logits = (rng.integers(-40, 1, size=vocabulary) * 0.25).astype(np.float32)  # exact and full of ties
    num_draws = 3_000_000 // (vocabulary + 1000) if name != "reference" else 300_000 // (vocabulary + 1000)
    for row in [
        Row(top_k=3),
        Row(top_k=vocabulary),
        Row(top_k=vocabulary // 2 + 1, temperature=50.0),
        Row(top_p=0.3, temperature=50.0),
        Row(top_p=1e-9, temperature=50.0),
        Row(min_p=0.97, temperature=50.0),
        Row(top_k=vocabulary // 2, top_p=0.5, temperature=50.0),
        Row(top_k=vocabulary // 2, top_p=0.9, min_p=0.9, temperature=50.0),
    ]:
        kept = kept_tokens(logits.astype(np.float64), row, slack=4e-7)
        with backend_at_level(name) as backend:
            drawn = draw_from(logits, repeated(row, num_draws, seed=torch.arange(num_draws)), backend).token
        seen = set(drawn.tolist())
        assert seen <= set(kept.tolist()), (row, sorted(seen - set(kept.tolist())))
        if row.temperature > 1.0 and len(kept) * 12 < num_draws:
            assert seen == set(kept.tolist()), row


@functools.cache
def noise_of_seeds(num_seeds, vocabulary):
    """Gumbel noise [num_seeds, vocabulary] at position 0, from bits that test_sample_noise.py checks."""
    seeds = torch.arange(num_seeds)
    return gumbel(random_bits_cpu(seeds, torch.zeros_like(seeds), vocabulary)).numpy()


@functools.cache
def boundary_seeds(row):
    """Nearly flat logits, and the seeds whose noise makes the last kept or the first dropped token the best of all."""
    logits = (np.random.default_rng(11).normal(size=1000) * 0.3).astype(np.float32)
    order = ordered(logits.astype(np.float64))
    kept = kept_tokens(logits.astype(np.float64), row)
    assert all(len(kept) == len(kept_tokens(logits.astype(np.float64), row, slack)) for slack in (1e-6, -1e-6))
    noise = noise_of_seeds(10_000, 1000)
    noisy = logits.astype(np.float64) / np.float64(np.float32(row.temperature)) + noise
    near = order[len(kept) - 1 : len(kept) + 1]
    chosen = np.flatnonzero(np.isin(order[: len(kept) + 1][np.argmax(noisy[:, order[: len(kept) + 1]], axis=1)], near))
    return logits, torch.from_numpy(chosen), kept[np.argmax(noisy[chosen][:, kept], axis=1)]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(
    "row",
    [
        Row(top_p=0.9),
        Row(top_p=0.5, temperature=0.8),
        Row(top_p=0.999),
        Row(top_k=500),
        Row(min_p=0.4, temperature=1.3),
        Row(top_k=700, top_p=0.8),
        Row(top_k=300, top_p=0.95, min_p=0.1, temperature=0.6),
    ],
    ids=str,
)
def test_the_boundary_is_exact_to_a_token(name, row):
    """One token in a thousand more or less shows: a mass wrong by 0.1% fails here."""
    logits, seeds, expected = boundary_seeds(row)
    assert len(seeds) >= 5
    with backend_at_level(name) as backend:
        tokens = draw_from(logits, repeated(row, len(seeds), seed=seeds), backend).token
    assert np.array_equal(tokens.numpy(), expected)


@pytest.mark.parametrize("name", BACKENDS)
def test_ties_go_to_the_lower_id(name):
    logits = np.array([0.0, 2.0, -0.0, 2.0, 2.0, 1.0, 0.0], dtype=np.float32)
    rows = [Row(temperature=0.0, seed=s) for s in range(50)] + [Row(top_k=1, seed=s) for s in range(50)]
    rows += [Row(min_p=1.0, top_k=1, seed=1), Row(top_p=0.0, seed=3), Row(top_p=1e-7, seed=3)]
    with backend_at_level(name) as backend:
        assert set(draw_from(logits, parameters(rows), backend).token.tolist()) == {1}
        two = draw_from(logits, repeated(Row(top_k=2), 200, seed=torch.arange(200)), backend).token
        zeros = draw_from(logits, repeated(Row(top_k=5, temperature=9.0), 400, seed=torch.arange(400)), backend).token
        many = np.where(np.arange(200) % 2, np.float32(-0.0), np.float32(0.0))
        first = draw_from(many, repeated(Row(top_k=101), 3000, seed=torch.arange(3000)), backend).token
    assert set(first.tolist()) == set(range(101))  # both zeros are one number
    assert set(two.tolist()) == {1, 3}
    assert set(zeros.tolist()) == {0, 1, 3, 4, 5}  # of 0.0 (id 0), -0.0 (id 2) and 0.0 (id 6) the first one


@pytest.mark.parametrize("name", BACKENDS)
def test_a_probability_in_decimals_means_what_it_says(name):
    """0.3 is no fp32 number; of ten equal tokens it is three all the same."""
    for top_p, expected in [(0.3, 3), (0.1, 1), (0.7, 7), (0.9, 9), (0.95, 10), (1.0, 10)]:
        with backend_at_level(name) as backend:
            tokens = draw_from(np.zeros(10), repeated(Row(top_p=top_p), 500, seed=torch.arange(500)), backend).token
        assert set(tokens.tolist()) == set(range(expected))
    logits = np.log(np.array([0.5, 0.05, 0.2, 0.25])).astype(np.float32)
    with backend_at_level(name) as backend:
        tokens = draw_from(logits, repeated(Row(min_p=0.1, temperature=1.0), 500, seed=torch.arange(500)), backend).token
    assert set(tokens.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("temperature", [1e-38, 1e-6, 1e-3, 1e4])
def test_extreme_temperatures(name, temperature):
    rng = np.random.default_rng(1)
    logits = rng.normal(size=1009).astype(np.float32)
    rows = [Row(temperature=temperature, seed=s, top_p=p, min_p=m) for s in range(10) for p in (1.0, 0.5) for m in (0.0, 0.5)]
    with backend_at_level(name) as backend:
        tokens = draw_from(logits, parameters(rows), backend).token.tolist()
    for row, token in zip(rows, tokens, strict=True):
        expected, gap = expected_draw(logits, row)
        assert token == expected or gap < GAP, row


PARAMETERS = [
    {"temperature": 0.5},
    {"temperature": 0.0},
    {"top_k": 5},
    {"top_p": 0.3},
    {"min_p": 0.4},
    {"seed": 2},
    {"seed": 1 + 2**32},
    {"position": 1},
    {"position": 2**32},
]


@pytest.mark.parametrize("fields", PARAMETERS, ids=str)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_every_parameter_changes_something(backend, fields):
    logits = np.random.default_rng(2).normal(size=100).astype(np.float32)
    base = Row(seed=1, position=0)
    moved = {name: tensor for name, tensor in parameters([changed(base, **fields)] * 200).items()}
    offset = torch.arange(200) * 2**33
    plain = draw_from(logits, repeated(base, 200, position=offset), backend).token
    other = draw_from(logits, moved | {"position": moved["position"] + offset}, backend).token
    assert not torch.equal(plain, other)

"""Random configurations of the C++ kernels against the fp64 oracle: shapes, dtypes, strides and options drawn from a seed.

A configuration runs at one CPU level, the levels take turns. `RANDOM_CONFIGS=1000` (as `make check` sets it) tries more. A message names
the configuration: `CONFIGS[name](numpy.random.default_rng([crc32(name), number]))` makes it again.
"""

import zlib

import numpy as np
import pytest
import torch
from sampling_oracle import Row, backend_at_level, expected_draw, lists, parameters
from tolerance import NUM_CONFIGS, assert_within_rule

from spct_kernels import fused_sample, pack, registry, token_logits
from spct_kernels.dispatch import cpu_levels

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
AWKWARD = (1, 2, 3, 5, 7, 8, 11, 13, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 257)
GAP = 1e-3


def size(rng, most):
    """A length from 1: awkward more often than not."""
    drawn = int(rng.choice(AWKWARD))
    return drawn if rng.random() < 0.7 and drawn <= most else int(rng.integers(1, most + 1))


def dtype(rng):
    return DTYPES[rng.integers(len(DTYPES))]


def normal(rng, *shape, scale=1.0, dtype=torch.float32):
    return torch.from_numpy(rng.standard_normal(shape) * scale).to(dtype)


def strided(rng, *shape, scale=1.0, dtype=torch.float32):
    """The same, now and then as a view with gaps between its rows."""
    if rng.random() < 0.7:
        return normal(rng, *shape, scale=scale, dtype=dtype)
    whole = torch.full((*shape[:-1], shape[-1] + 5), torch.nan, dtype=dtype)
    whole[..., : shape[-1]] = normal(rng, *shape, scale=scale, dtype=dtype)
    return whole[..., : shape[-1]]


def rms_norm(rng):
    rows, width, kind = int(rng.integers(0, 40)), size(rng, 600), dtype(rng)
    x = strided(rng, rows, width, scale=float(rng.choice([1e-3, 1.0, 30.0])), dtype=kind)
    return {"x": x, "weight": normal(rng, width, dtype=dtype(rng)), "eps": float(rng.choice([0.0, 1e-6, 1e-2]))}


def add_rms_norm(rng):
    inputs = rms_norm(rng)
    return {**inputs, "residual": normal(rng, *inputs["x"].shape, dtype=inputs["x"].dtype)}


def gated_activation(rng):
    rows, width = int(rng.integers(0, 40)), size(rng, 600)
    gate_up = strided(rng, rows, 2 * width, scale=float(rng.choice([1e-3, 1.0, 6.0])), dtype=dtype(rng))
    return {"gate_up": gate_up, "kind": str(rng.choice(["silu", "gelu_tanh", "gelu"]))}


def rope_append(rng):
    kv_heads, dim, rows, kind, stored = (
        int(rng.integers(1, 4)),
        16 * int(rng.integers(1, 9)),
        int(rng.integers(0, 20)),
        dtype(rng),
        dtype(rng),
    )
    heads = kv_heads * int(rng.integers(1, 5))
    pairs = dim // 2 if rng.random() < 0.7 else int(rng.integers(1, dim // 2 + 1))
    angle = normal(rng, rows, pairs, scale=3.0)
    slots = torch.from_numpy(rng.permutation(rows + 5)[:rows]).int()
    both = torch.full((rows + 5, 2, kv_heads, dim + int(rng.choice([0, 16]))), torch.nan, dtype=stored)
    norms = (normal(rng, dim), normal(rng, dim)) if rng.random() < 0.5 else (None, None)
    shape = {"num_heads": heads, "num_kv_heads": kv_heads, "head_dim": dim}
    return {
        "qkv": normal(rng, rows, (heads + 2 * kv_heads) * dim, dtype=kind), "cos": angle.cos(), "sin": angle.sin(), "slots": slots,
        "k_cache": both[:, 0, :, :dim], "v_cache": both[:, 1, :, :dim], **shape, "q_norm": norms[0], "k_norm": norms[1], "norm_eps": 1e-6,
    }  # fmt: skip


def linear(rng):
    rows, inputs, outputs = int(rng.integers(0, 70)), size(rng, 400), size(rng, 400)
    weight = pack(normal(rng, outputs, inputs, scale=float(rng.choice([0.02, 1.0]))), str(rng.choice(["fp32", "bf16", "fp16"])))
    bias = normal(rng, outputs) if rng.random() < 0.5 else None
    return {"x": strided(rng, rows, inputs, dtype=dtype(rng)), "weight": weight, "bias": bias}


CONFIGS = {make.__name__: make for make in (rms_norm, add_rms_norm, gated_activation, rope_append, linear)}


def generators(name):
    """(number, level, generator) of every configuration of a kernel."""
    levels = cpu_levels()
    for number in range(NUM_CONFIGS):
        yield number, levels[number % len(levels)], np.random.default_rng([zlib.crc32(name.encode()), number])


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_the_fp64_oracle(name):
    op = {op.name: op for op in registry.ops()}[name]
    for number, level, rng in generators(name):
        state = rng.bit_generator.state
        inputs = CONFIGS[name](rng)
        exact_inputs = registry.widened(op, inputs)
        exact = op.outputs(exact_inputs, op.reference(**exact_inputs))
        rng.bit_generator.state = state
        same_inputs = CONFIGS[name](rng)
        same = op.outputs(same_inputs, op.reference(**same_inputs))
        with backend_at_level(f"cpu-{level}") as backend:
            actual = op.outputs(inputs, op.run(**inputs, backend=backend))
        assert len(actual) == len(exact)
        for got, rounded, truth in zip(actual, same, exact, strict=True):
            assert_within_rule(got, rounded, truth, f"{name} {number} at {level}")


def random_row(rng, vocabulary):
    on = rng.random(5) < [0.85, 0.5, 0.5, 0.4, 0.5]
    return Row(
        temperature=float(rng.choice([0.05, 0.3, 0.7, 1.0, 1.0, 1.7])) if on[0] else 0.0,
        top_k=int(rng.integers(1, vocabulary + 2)) if on[1] else 0,
        top_p=float(rng.choice([0.05, 0.5, 0.9, 0.95, 0.999, rng.random()])) if on[2] else 1.0,
        min_p=float(rng.choice([0.001, 0.02, 0.3, 1.0])) if on[3] else 0.0,
        seed=int(rng.integers(-(2**63), 2**63)),
        position=int(rng.integers(0, 1 << int(rng.integers(1, 40)))),
    )


def random_lists(rng, rows, vocabulary, density):
    """Per row a list of ids, or None where no row has one."""
    if rng.random() < 0.6:
        return None
    return [np.nonzero(rng.random(vocabulary) < density)[0].tolist() if rng.random() < 0.7 else [] for _ in range(rows)]


def exact_logits(hidden, norm_weight, head, eps, softcap):
    """The head in fp64, with its weight as it is stored."""
    x = hidden.double()
    normed = x / (x.square().mean(1, keepdim=True) + eps).sqrt() * norm_weight.double()
    logits = normed @ head.double().T
    return (logits if softcap is None else softcap * torch.tanh(logits / softcap)).numpy()


def torch_logits(hidden, norm_weight, head, eps, softcap):
    """The head as torch computes it in fp32: the yardstick of the error."""
    logits = torch.nn.functional.rms_norm(hidden, norm_weight.shape, norm_weight, eps) @ head.float().T
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def random_head(rng):
    """(arguments of the head, its logits in fp64, and as torch computes them in fp32)."""
    rows, width, vocabulary = int(rng.integers(1, 14)), size(rng, 150), size(rng, 300 if rng.random() < 0.9 else 3000)
    hidden, norm_weight = normal(rng, rows, width, scale=3.0), torch.from_numpy(rng.random(width) + 0.5).float()
    weight = normal(rng, vocabulary, width, scale=float(rng.choice([0.3, 2.0])) / width**0.5, dtype=dtype(rng))
    scheme = rng.choice(["plain", "fp32", "bf16", "fp16"])
    lm_head = weight if scheme == "plain" else pack(weight, str(scheme))
    softcap = None if rng.random() < 0.7 else float(rng.choice([2.0, 30.0]))
    stored = weight if scheme == "plain" else lm_head.unpack()
    arguments = (hidden, norm_weight, lm_head), {"norm_eps": 1e-5, "softcap": softcap}
    plain = (hidden, norm_weight, stored, 1e-5, softcap)
    return arguments, exact_logits(*plain), torch_logits(*plain)


def test_draws_are_those_of_the_fp64_oracle():
    checked = 0
    for number, level, rng in generators("fused_sample"):
        (tensors, options), logits, _ = random_head(rng)
        rows, vocabulary = logits.shape
        drawn_as = [random_row(rng, vocabulary) for _ in range(rows)]
        allowed, banned = random_lists(rng, rows, vocabulary, 0.3), random_lists(rng, rows, vocabulary, 0.2)
        keywords = {**options, **parameters(drawn_as)}
        keywords |= {name: lists(found) for name, found in (("allowed", allowed), ("banned", banned)) if found is not None}
        with backend_at_level(f"cpu-{level}") as backend:
            out = fused_sample(*tensors, backend=backend, **keywords)
        for i, row in enumerate(drawn_as):
            what = f"fused_sample {number} at {level}, row {i}: {row}"
            within = np.ones(vocabulary, bool)
            if allowed is not None and allowed[i]:
                within = np.isin(np.arange(vocabulary), allowed[i])
            pool = within if banned is None else within & ~np.isin(np.arange(vocabulary), banned[i])
            token = int(out.token[i])
            if not pool.any():
                assert token == -1 and out.logprob[i].isnan(), what
                continue
            expected, gap = expected_draw(np.where(pool, logits[i], -np.inf), row)
            assert 0 <= token < vocabulary and pool[token], what
            # What the arithmetic can't tell apart is left out: logits in fp32 are good to about 1e-5, noisy ones to that / temperature.
            if gap > GAP / min(1.0, row.temperature or 1.0):
                checked += 1
                assert token == expected, (what, gap)
            normaliser = np.log(np.exp(logits[i][within] - logits[i].max()).sum()) + logits[i].max()
            assert float(out.logprob[i]) == pytest.approx(logits[i, token] - normaliser, abs=2e-5), what
    assert checked > 3 * NUM_CONFIGS


def test_token_logits_are_those_of_the_fp64_oracle():
    for number, level, rng in generators("token_logits"):
        (tensors, options), logits, rounded = random_head(rng)
        rows, vocabulary = logits.shape
        wanted = [rng.integers(0, vocabulary, size=int(rng.integers(0, 40))).tolist() for _ in range(rows)]
        with backend_at_level(f"cpu-{level}") as backend:
            got = token_logits(*tensors, *lists(wanted), backend=backend, **options)
        same = torch.cat([rounded[i, ids] for i, ids in enumerate(wanted)])
        exact = torch.from_numpy(np.concatenate([logits[i, ids] for i, ids in enumerate(wanted)]))
        assert_within_rule(got, same, exact, f"token_logits {number} at {level}")

"""Planted bugs: each is caught by its one case, which the unchanged kernels pass. A bug that no case catches is a hole in the tests."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path

import pytest
import torch

PACKAGE = Path(__file__).parents[2] / "kernels" / "spct_kernels"
numbers = itertools.count()


class Copy:
    """The package under another name, from sources with one text replaced; `copy.linear` is its module `linear`."""

    def __init__(self, folder, file="", old="", new=""):
        self.name = f"spct_mutant_{next(numbers)}"
        self.folder = folder
        target = folder / self.name
        target.mkdir()
        (target / "__init__.py").write_text('"""A copy."""\n')
        for path in PACKAGE.glob("*.py"):
            text = path.read_text()
            if path.stem == file:
                assert text.count(old) == 1, f"{file}: {old!r} stands there {text.count(old)} times"
                text = text.replace(old, new)
            if path.stem not in ("__init__", "custom_ops", "fakes"):
                (target / path.name).write_text(text.replace("spct_kernels", self.name))

    def __getattr__(self, module):
        sys.path.insert(0, str(self.folder))
        try:
            return importlib.import_module(f"{self.name}.{module}")
        finally:
            sys.path.remove(str(self.folder))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def attention(copy, tree, heads=(4, 2, 16, 16), change=None, **options):
    """(result, reference) of a tree in fp32."""
    inputs = copy.attention_cases.make_inputs(tree(copy.attention_cases), heads, torch.float32, generator(), **options)
    expected = copy.attention.shared_prefix_attention(**inputs, backend="reference")
    if change is not None:
        change(inputs)
    return copy.attention.shared_prefix_attention(**inputs, backend="triton"), expected


def long_decode(cases):
    return cases.decode_tree(520, (3, 40))


def prefill(cases):
    return cases.prefill_tree(40)


def nan_beside(copy):
    """A NaN among the values of the later rows of a prefill leaves the earlier ones alone."""

    def poison(inputs):
        inputs["v_cache"][int(inputs["plan"].node_slots[30])] = torch.nan

    out, expected = attention(copy, prefill, change=poison)
    assert out[30:].isnan().all()
    return out[:30], expected[:30]


def sample(copy, rows=16, vocabulary=300, redo=False, seed=0, **options):
    """(tokens and log-probabilities, those of the reference) of a model's head; rows have parameters of their own."""
    cases, params = copy.sample_cases, copy.sample_cases.make_params(rows, vocabulary, generator(seed))
    inputs = cases.make_head(rows, 24, vocabulary, False, torch.float32, generator(seed)) | params
    inputs |= {name: torch.full_like(params[name], value) if name in params else value for name, value in options.items()}
    expected = copy.sample.fused_sample(**inputs, backend="reference")
    if redo:
        run = copy.triton_sample.fused_sample_triton
        copy.triton_sample.fused_sample_triton = lambda *arguments: run(*arguments, redo_all=True)
    result = copy.sample.fused_sample(**inputs, backend="triton")
    return torch.stack((result.token.double(), result.logprob.double())), torch.stack((expected.token.double(), expected.logprob.double()))


PLAIN = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def last_id(copy):
    """The last id of the vocabulary is the best of some row."""
    hidden = torch.eye(4, 8)
    head = torch.cat((torch.zeros(125, 8), torch.eye(8)[:4] * 5))
    more = {
        "norm_weight": torch.ones(8),
        "norm_eps": 1e-5,
        **copy.sample_cases.make_params(4, 129, generator()),
        "temperature": torch.zeros(4),
    }
    return copy.sample.fused_sample(hidden, lm_head=head, **more, backend="triton").token, torch.arange(125, 129)


def broken_row(copy):
    """A row with a NaN among its logits has no token: here every row, by a NaN in the head."""
    inputs = copy.sample_cases.make_head(3, 8, 40, False, torch.float32, generator()) | copy.sample_cases.make_params(3, 40, generator())
    inputs["lm_head"][5, 2] = torch.nan
    return copy.sample.fused_sample(**inputs, backend="triton").token, copy.sample.fused_sample(**inputs, backend="reference").token


def matrix(copy, scheme="fp32", inputs=1100):
    weight = copy.linear.pack(torch.randn((20, inputs), generator=generator()), scheme)
    x, bias = torch.randn((3, inputs), generator=generator(1)), torch.randn(20, generator=generator(2))
    return copy.linear.linear(x, weight, bias, backend="triton"), copy.linear.linear(x, weight, bias, backend="reference")


def norm(copy):
    arguments = (torch.randn((3, 20), generator=generator()) * 1e-3, torch.rand(20, generator=generator()), 1e-5)
    return copy.elementwise.rms_norm(*arguments, backend="triton"), copy.elementwise.rms_norm(*arguments, backend="reference")


def rope(copy):
    angles = torch.rand((3, 8), generator=generator())
    results = []
    for backend in ("triton", "reference"):
        caches = torch.zeros(5, 2, 16), torch.zeros(5, 2, 16)
        qkv = torch.randn((3, 8 * 16), generator=generator(1))
        slots = torch.tensor([4, 0, 2], dtype=torch.int32)
        shape = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
        q = copy.elementwise.rope_append(qkv, angles.cos(), angles.sin(), slots, *caches, **shape, backend=backend)
        results.append(torch.cat([part.flatten() for part in (q, *caches)]))
    return results[0], results[1]


CASES = {
    "decode over several splits": lambda copy: attention(copy, long_decode),
    "decode, rows of one program": lambda copy: attention(copy, lambda cases: cases.decode_tree(100, (3, 20, 7))),
    "prefill": lambda copy: attention(copy, prefill),
    "prefill over several splits": lambda copy: attention(copy, lambda cases: cases.prefill_tree(40, 500), heads=(2, 2, 16, 16)),
    "window": lambda copy: attention(copy, prefill, window=7),
    "soft cap": lambda copy: attention(copy, prefill, softcap=1.0),
    "NaN beside": nan_beside,
    "draw": lambda copy: sample(copy, **PLAIN),
    "draw at other temperatures": lambda copy: sample(copy, **PLAIN | {"temperature": 6.0}),
    "draw under top-p": lambda copy: sample(copy, rows=24, **PLAIN | {"top_p": 0.6}),
    "draw under top-k": lambda copy: sample(copy, rows=32, **PLAIN | {"top_k": 3}),
    "draw, redone": lambda copy: sample(copy, rows=8, redo=True, **PLAIN | {"top_k": 2}),
    "last id": last_id,
    "broken row": broken_row,
    "matrix in segments": matrix,
    "matrix in int8": lambda copy: matrix(copy, "int8", 30),
    "small norm": norm,
    "rope": rope,
}

BUGS = [
    (
        "wrong scale",
        "decode over several splits",
        "triton_attention_kernel",
        "        scores *= scale\n",
        "        scores *= scale * 1.01\n",
    ),
    ("last tile skipped", "prefill", "triton_attention_kernel", "highest + BLOCK_N - start_position", "highest - start_position"),
    (
        "own key unseen",
        "prefill",
        "triton_attention_kernel",
        "position[None, :] <= positions[:, None]",
        "position[None, :] < positions[:, None]",
    ),
    ("window one too wide", "window", "triton_attention_kernel", "position[None, :] < window", "position[None, :] <= window"),
    (
        "rows of a cut tile mixed",
        "decode, rows of one program",
        "triton_attention_kernel",
        "    if GUARD:\n",
        "    if GUARD and SCALED > 2:\n",
    ),
    ("no soft cap", "soft cap", "triton_attention_kernel", "tanh(scores * scale) * softcap", "scores * scale * softcap"),
    ("NaN not isolated", "NaN beside", "triton_attention_kernel", "        v = tl.where(finite, v, 0.0)\n", ""),
    ("KV heads mixed", "prefill", "triton_attention_kernel", "k_ptr += head.to(tl.int64)", "k_ptr += 0 * head.to(tl.int64)"),
    (
        "fold without rescaling",
        "prefill over several splits",
        "triton_attention_kernel",
        "tl.load(fresh_ptr + at) * second[:, None]",
        "tl.load(fresh_ptr + at)",
    ),
    ("split in another's place", "decode over several splits", "triton_attention_kernel", "position // 512 + 1", "position // 512"),
    ("last split lost", "decode over several splits", "triton_attention_merge", "while number < count:", "while number < count - 1:"),
    (
        "merge without rescaling",
        "decode over several splits",
        "triton_attention_merge",
        "tl.exp2(after[0] - base)",
        "tl.exp2(after[0] * 0)",
    ),
    (
        "noise keyed on the row",
        "draw",
        "triton_sample_head",
        "seed[:, None], position[:, None])",
        "seed[:, None] + rows[:, None], position[:, None])",
    ),
    ("noise of another word", "draw", "triton_philox", "tl.where(word < 2,", "tl.where(word < 1,"),
    (
        "temperature ignored",
        "draw at other temperatures",
        "triton_sample_head",
        "(logit - best[:, None]) * cooling[:, None]",
        "(logit - best[:, None])",
    ),
    ("tiles' sums unscaled", "draw", "triton_sample_draw", "tl.sum(sums * share, axis=1)", "tl.sum(sums, axis=1)"),
    ("top-k one too many", "draw under top-k", "triton_sample_draw", "kept = place <= limit", "kept = place <= limit + 1"),
    ("nucleus too large", "draw under top-p", "triton_sample_draw", "fraction = top_p * (1.0 - _TOP_P_SLACK)", "fraction = top_p * 1.2"),
    ("certificate of hidden tokens", "draw under top-k", "triton_sample_draw", '& ((worst < winning) | (worst == float("-inf")))', ""),
    ("redone top-k too small", "draw, redone", "triton_sample_redo", "(place < equals)", "(place < equals - 1)"),
    ("last id masked", "last id", "triton_sample_head", "    id_mask = ids < vocabulary\n", "    id_mask = ids < vocabulary - 1\n"),
    (
        "NaN unnoticed",
        "broken row",
        "triton_sample_head",
        'tl.where(tl.max(failed.to(tl.int32), axis=1) > 0, float("nan"), total)',
        "total",
    ),
    ("last segment lost", "matrix in segments", "triton_linear", "tl.static_range(SEGMENTS)", "tl.static_range(SEGMENTS - 1)"),
    (
        "int8 unscaled",
        "matrix in int8",
        "triton_linear",
        "            total *= tl.load(scale_ptr + outputs, mask=output_inside, other=0.0)[:, None]\n",
        "            total *= 1.0\n",
    ),
    (
        "epsilon outside the root",
        "small norm",
        "triton_common",
        "tl.sqrt_rn(tl.div_rn(square_sum, width) + eps)",
        "tl.sqrt_rn(tl.div_rn(square_sum, width)) + eps",
    ),
    ("rotation the other way", "rope", "triton_rope_append", "x2 * cos + x1 * sin", "x2 * cos - x1 * sin"),
    ("values turned", "rope", "triton_rope_append", "first = tl.where(is_v, x1, x1 * cos - x2 * sin)", "first = x1 * cos - x2 * sin"),
]


def agrees(case, copy):
    actual, expected = CASES[case](copy)
    return torch.allclose(actual.double(), expected.double(), rtol=2e-5, atol=2e-5, equal_nan=True)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("unchanged"))


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_pass_the_case(case, unchanged, monkeypatch):
    monkeypatch.setattr(unchanged.triton_sample, "fused_sample_triton", unchanged.triton_sample.fused_sample_triton)
    assert agrees(case, unchanged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("case", "file", "old", "new"), [bug[1:] for bug in BUGS], ids=[bug[0] for bug in BUGS])
def test_its_case_catches_the_bug(case, file, old, new, tmp_path):
    copy = Copy(tmp_path, file, old, new)
    try:
        caught = not agrees(case, copy)
    except AssertionError:
        caught = True
    assert caught

"""A row's result is its own: batch, neighbours, threads and failures; lists of ids, meta logits, errors."""

import numpy as np
import pytest
import torch
from sampling_oracle import BACKENDS, Row, backend_at_level, draw_from, lists, parameters, probabilities, repeated

from spct_kernels import InputError, fused_sample, pack, token_logits
from spct_kernels.dispatch import cpu_ops
from spct_kernels.sample_cases import make_head, make_lists, make_params

NAN, INF = float("nan"), float("inf")


def make_batch(rows, width, vocabulary, packed=True, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = make_head(rows, width, vocabulary, packed, dtype, generator) | make_params(rows, vocabulary, generator)
    batch["allowed"] = make_lists(rows, vocabulary, 4, generator)
    batch["banned"] = make_lists(rows, vocabulary, 4, generator)
    batch["meta_weight"] = torch.randn(width, generator=generator)
    return batch


def take_rows(batch, chosen):
    """The same rows, in this order."""
    rows = batch["hidden"].shape[0]
    taken = {}
    for name, value in batch.items():
        if name in ("allowed", "banned"):
            offsets, ids = value
            taken[name] = lists([ids[offsets[i] : offsets[i + 1]].tolist() for i in chosen])
        elif isinstance(value, torch.Tensor) and value.shape[:1] == (rows,) and name not in ("norm_weight", "meta_weight", "lm_head"):
            taken[name] = value[torch.tensor(chosen)]
        else:
            taken[name] = value
    return taken


def same_bits(a, b):
    return all(torch.equal(x.nan_to_num(1e9), y.nan_to_num(1e9)) for x, y in zip(a, b, strict=True))


def check_rows_are_their_own(sample, batch, sizes):
    """Any group of rows, in any order, gives the bits that the whole batch gives."""
    whole = sample(**batch)
    rows = batch["hidden"].shape[0]
    rng = np.random.default_rng(1)
    for size in sizes:
        chosen = rng.permutation(rows)[:size].tolist()
        part = sample(**take_rows(batch, chosen))
        assert same_bits(part, [tensor[torch.tensor(chosen)] for tensor in whole]), f"{size} rows"


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize(("width", "vocabulary", "packed"), [(33, 257, True), (64, 1009, False), (300, 6007, True)])
def test_a_row_does_not_depend_on_the_batch(name, width, vocabulary, packed):
    rows = 300 if vocabulary < 2000 and name != "reference" else 40
    batch = make_batch(rows, width, vocabulary, packed)
    with backend_at_level(name) as backend:
        check_rows_are_their_own(lambda **k: fused_sample(**k, backend=backend), batch, [1, 2, 3, 7, 8, 9, 11, 12, 13, 25, rows])


def test_noise_keyed_on_the_row_fails_the_test_above():
    def keyed_on_the_row(**arguments):
        return fused_sample(**arguments | {"seed": arguments["seed"] + torch.arange(len(arguments["seed"]))})

    with pytest.raises(AssertionError, match="rows"):
        check_rows_are_their_own(keyed_on_the_row, make_batch(300, 33, 257), [3, 7, 100])


@pytest.mark.parametrize(("rows", "vocabulary"), [(100, 1009), (5, 6007), (1, 6007)])
def test_a_row_does_not_depend_on_the_threads(rows, vocabulary):
    batch = make_batch(rows, 48, vocabulary)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(fused_sample(**batch))
    finally:
        torch.set_num_threads(before)
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_packed_and_plain_heads_give_the_same_bits():
    batch = make_batch(70, 48, 1009, packed=False)
    assert same_bits(fused_sample(**batch), fused_sample(**batch | {"lm_head": pack(batch["lm_head"], "fp32")}))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("row", [0, 18, 36])
@pytest.mark.parametrize("poison", ["nan hidden", "inf hidden", "zero hidden", "+inf logit", "all logits -inf"])
def test_a_broken_row_fails_alone(name, row, poison):
    rows, vocabulary = 37, 131
    generator = torch.Generator().manual_seed(4)
    hidden = torch.eye(rows)  # row i draws from column i of the head, times sqrt(37)
    head, norm_weight = torch.randn((vocabulary, rows), generator=generator), torch.ones(rows)
    common = make_params(rows, vocabulary, generator) | {"meta_weight": torch.randn(rows, generator=generator)}
    with backend_at_level(name) as backend:
        clean = fused_sample(hidden, norm_weight, head, norm_eps=0.0, backend=backend, **common)
        hidden, head = hidden.clone(), head.clone()
        if poison.endswith("hidden"):
            hidden[row] = 0.0
            hidden[row, 3] = {"nan": NAN, "inf": INF, "zero": 0.0}[poison.split()[0]]
        elif poison == "+inf logit":
            head[row, row] = 3e38
        else:
            head[:, row] = -3e38
        out = fused_sample(hidden, norm_weight, head, norm_eps=0.0, backend=backend, **common)
    assert int(out.token[row]) == -1
    assert bool(out.logprob[row].isnan())
    assert bool(out.meta[row].isnan()) == poison.endswith("hidden")  # the meta logit is what was computed
    others = [i for i in range(rows) if i != row]
    assert same_bits([part[others] for part in out], [part[others] for part in clean])
    assert bool((clean.token >= 0).all())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("token", [0, 1, 63, 64, 500, 1007, 1008])
def test_a_broken_logit_fails_the_row_whatever_the_parameters(name, value, token):
    logits = np.linspace(-3, 3, 1009).astype(np.float32)
    rows = [Row(), Row(temperature=0.0), Row(top_k=1), Row(top_p=0.1), Row(min_p=0.9), Row(top_k=5, top_p=0.5, temperature=0.2)]
    logits[token] = value
    with backend_at_level(name) as backend:
        for more in ({}, {"softcap": 5.0}, {"banned": lists([[token]] * len(rows))}):
            out = draw_from(logits, parameters(rows), backend, **more)
            assert out.token.tolist() == [-1] * len(rows)
            assert bool(out.logprob.isnan().all())
        out = draw_from(logits, parameters(rows), backend, allowed=lists([[(token + 1) % 1009]] * len(rows)))
        assert out.token.tolist() == [(token + 1) % 1009] * len(rows)  # logits that nobody asked for don't matter


@pytest.mark.parametrize("name", BACKENDS)
def test_nothing_to_draw_from(name):
    rows = [Row(), Row(temperature=0.0), Row(top_k=3)]
    with backend_at_level(name) as backend:
        out = draw_from(np.full(70, -INF), parameters(rows), backend)
        assert out.token.tolist() == [-1] * 3
        assert bool(out.logprob.isnan().all())
        everything = lists([list(range(70))] * 3)
        assert draw_from(np.zeros(70), parameters(rows), backend, banned=everything).token.tolist() == [-1] * 3
        only = draw_from(np.zeros(70), parameters(rows), backend, allowed=lists([[7]] * 3), banned=lists([[7]] * 3))
        assert only.token.tolist() == [-1] * 3


@pytest.mark.parametrize("name", BACKENDS)
def test_impossible_tokens_are_never_drawn(name):
    logits = np.where(np.arange(200) % 3 == 0, np.float32(-INF), np.float32(0.0))
    with backend_at_level(name) as backend:
        tokens = draw_from(logits, repeated(Row(temperature=5.0), 3000, seed=torch.arange(3000)), backend).token
    assert bool((tokens % 3 != 0).all())
    assert len(set(tokens.tolist())) == 133


@pytest.mark.parametrize("name", BACKENDS)
def test_allowed_and_banned_ids(name):
    logits = np.random.default_rng(1).normal(size=300).astype(np.float32)
    row, count = Row(top_p=0.9, seed=5), 4000 if name != "reference" else 400
    ids = [250, 3, 17, 3, 100, 299, 3]  # unsorted, repeated
    keywords = repeated(row, count, position=torch.arange(count))
    with backend_at_level(name) as backend:
        plain = draw_from(logits, keywords, backend)
        only = draw_from(logits, keywords, backend, allowed=lists([ids] * count))
        none = draw_from(logits, keywords, backend, allowed=lists([[]] * count), banned=lists([[]] * count))
        ban = draw_from(logits, keywords, backend, banned=lists([ids] * count))
        both = draw_from(logits, keywords, backend, allowed=lists([ids] * count), banned=lists([[3, 0, 299]] * count))
    masked = np.full(300, -INF)
    masked[ids] = logits[ids]
    p = probabilities(masked, row)
    assert set(only.token.tolist()) == set(np.flatnonzero(p).tolist())
    listed = np.log(np.exp(logits[sorted(set(ids))].astype(float)).sum())
    assert np.allclose(only.logprob.numpy(), logits[only.token.numpy()] - listed, atol=2e-6)  # over the list, untruncated
    assert same_bits(plain[:2], none[:2])
    assert not set(ban.token.tolist()) & set(ids)
    whole = np.log(np.exp(logits.astype(float)).sum())
    assert np.allclose(ban.logprob.numpy(), logits[ban.token.numpy()] - whole, atol=2e-6)  # over everything, the banned ids too
    assert set(both.token.tolist()) <= {250, 17, 100}


@pytest.mark.parametrize("name", BACKENDS)
def test_banning_what_was_not_drawn_changes_nothing(name):
    """The noise belongs to the ids: without truncation, only a row whose winner is banned draws another token."""
    logits = np.random.default_rng(2).normal(size=97).astype(np.float32)
    keywords = repeated(Row(), 500, seed=torch.arange(500))
    with backend_at_level(name) as backend:
        plain = draw_from(logits, keywords, backend)
        ban = draw_from(logits, keywords, backend, banned=lists([[11, 40]] * 500))
    hit = (plain.token == 11) | (plain.token == 40)
    assert bool(hit.any())
    assert same_bits([part[~hit] for part in plain[:2]], [part[~hit] for part in ban[:2]])


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("softcap", [None, 4.0])
@pytest.mark.parametrize("packed", [False, True])
def test_token_logits_are_the_logits_of_the_draw(name, softcap, packed):
    generator = torch.Generator().manual_seed(1)
    head = make_head(9, 70, 257, packed, torch.float32, generator)
    offsets, ids = lists([[], [0], [256, 0, 256, 3], list(range(40)), [], [5], [1, 2], [9], [255]])
    with backend_at_level(name) as backend:
        values = token_logits(**head, offsets=offsets, token_ids=ids, softcap=softcap, backend=backend)
        for row in (1, 3, 8):
            # A list of two ids gives both logits' difference as that of their log-probabilities.
            listed = ids[offsets[row] : offsets[row + 1]].tolist()
            one = take_rows(head | make_params(9, 257, generator), [row])
            chosen = fused_sample(**one, softcap=softcap, allowed=lists([listed]), backend=backend)
            mine = values[offsets[row] : offsets[row + 1]]
            expected = mine[listed.index(int(chosen.token))] - torch.logsumexp(mine.double(), 0)
            assert float(chosen.logprob) == pytest.approx(float(expected), abs=2e-6)
    assert values.dtype == torch.float32
    assert values.shape == ids.shape


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_and_layouts(backend, dtype):
    batch = make_batch(20, 40, 333, packed=False, dtype=dtype)
    out = fused_sample(**batch, backend=backend)
    assert (out.token.dtype, out.logprob.dtype, out.meta.dtype) == (torch.int64, torch.float32, torch.float32)
    spaced = {name: batch[name] for name in batch}
    for name in ("hidden", "lm_head"):
        spaced[name] = torch.stack((batch[name], batch[name] * NAN), dim=-1)[..., 0]
        assert not spaced[name].is_contiguous()
    for name in ("temperature", "top_p", "min_p", "top_k", "seed", "position"):
        spaced[name] = batch[name].repeat_interleave(2)[::2]
    assert same_bits(out, fused_sample(**spaced, backend=backend))
    assert fused_sample(**batch | {"meta_weight": None}, backend=backend).meta is None


@pytest.mark.parametrize("name", BACKENDS)
def test_meta_ignores_cap_lists_and_parameters(name):
    batch = make_batch(15, 64, 99)
    x = batch["hidden"].double()
    normed = x / torch.sqrt(x.square().mean(1, keepdim=True) + batch["norm_eps"]) * batch["norm_weight"].double()
    expected = normed @ batch["meta_weight"].double() - 1.5
    with backend_at_level(name) as backend:
        for softcap in (None, 2.0):
            out = fused_sample(**batch, softcap=softcap, meta_bias=-1.5, backend=backend)
            assert torch.allclose(out.meta.double(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": torch.full((4,), -0.1)}, r"temperature\[0\]: expected a finite number >= 0"),
        ({"temperature": torch.tensor([1.0, 1.0, NAN, 1.0])}, r"temperature\[2\]"),
        ({"temperature": torch.full((4,), INF)}, "temperature"),
        ({"temperature": torch.ones(3)}, "temperature: expected shape"),
        ({"temperature": torch.ones(4, dtype=torch.int64)}, "temperature: expected dtype"),
        ({"top_k": torch.full((4,), -1, dtype=torch.int32)}, "top_k"),
        ({"top_k": torch.ones(4)}, "top_k: expected dtype"),
        ({"top_p": torch.full((4,), 1.5)}, "top_p"),
        ({"min_p": torch.full((4,), NAN)}, "min_p"),
        ({"seed": torch.zeros(4)}, "seed: expected dtype"),
        ({"norm_weight": torch.ones(7)}, "norm_weight: expected shape"),
        ({"lm_head": torch.ones(10, 7)}, "lm_head: expected shape"),
        ({"lm_head": pack(torch.ones(10, 7), "fp32")}, "lm_head: expected shape"),
        ({"lm_head": torch.ones(0, 8)}, "lm_head: expected a vocabulary"),
        ({"meta_weight": torch.ones(9)}, "meta_weight: expected shape"),
        ({"norm_eps": -1e-6}, "norm_eps"),
        ({"softcap": 0.0}, "softcap"),
        ({"allowed": lists([[0], [1], [2], [10]])}, r"allowed ids: expected 0 <= id < 10, got 0 … 10"),
        ({"banned": lists([[0], [1], [-1], [3]])}, "banned ids"),
        ({"banned": lists([[0], [1], [2]])}, "banned offsets: expected shape"),
        ({"banned": (torch.tensor([0, 2, 1, 3, 4]), torch.zeros(4, dtype=torch.int32))}, "ascending"),
        ({"banned": (torch.tensor([0, 1, 1, 1, 2]), torch.zeros(4, dtype=torch.int32))}, "from 0 to 4"),
        ({"backend": "abacus"}, "backend: expected one of"),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_wrong_arguments_are_named(backend, change, message):
    good = {"hidden": torch.ones(4, 8), "norm_weight": torch.ones(8), "lm_head": torch.ones(10, 8), "norm_eps": 1e-6, "backend": backend}
    good |= parameters([Row()] * 4)
    with pytest.raises(InputError, match=message):
        fused_sample(**good | change)


def test_torch_accepts_the_ops():
    rows, width, vocabulary = 5, 16, 50
    generator = torch.Generator().manual_seed(0)
    head = make_head(rows, width, vocabulary, False, torch.float32, generator)
    params = make_params(rows, vocabulary, generator)
    fields = [params[name].contiguous() for name in ("temperature", "top_k", "top_p", "min_p", "seed", "position")]
    fixed = (head["hidden"], head["norm_weight"], 1e-5, head["lm_head"], vocabulary, 0.0)
    offsets, ids = make_lists(rows, vocabulary, 3, generator)
    ops = cpu_ops()
    torch.library.opcheck(ops.fused_sample.default, (*fixed, *fields, torch.ones(width), 0.5, offsets, ids, None, None))
    torch.library.opcheck(ops.fused_sample.default, (*fixed, *fields, None, 0.0, None, None, offsets, ids))
    torch.library.opcheck(ops.token_logits.default, (*fixed, offsets, ids))
    torch.library.opcheck(ops.random_bits.default, (params["seed"], params["position"], vocabulary))

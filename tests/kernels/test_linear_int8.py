"""Linear layers in int8: weights alone, and with quantised rows ("w8a8"), whose integer sums leave every level the same bits."""

from __future__ import annotations

import contextlib
import random as pyrandom

import pytest
import torch
import torch.nn.functional as F

from spct_kernels import BackendError, InputError, PackedLinear, dispatch, fused_sample, linear, pack, rms_norm, token_logits
from spct_kernels.linear import linear_reference
from spct_kernels.packed import MAX_W8A8_INPUTS, packed_bytes, quantise_rows

LEVELS = dispatch.cpu_levels()
CPU = torch.device("cpu")
TINY = 127 * 2.0**-126


@pytest.fixture
def level():
    before = dispatch.cpu_level()
    yield dispatch.set_cpu_level
    dispatch.set_cpu_level(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    """Bitwise equal, NaN beside NaN."""
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.isnan(), b.isnan())
        and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
    )


@pytest.mark.parametrize("scheme", ["int8", "w8a8"])
def test_a_packed_weight_errs_by_half_a_step_of_its_row(scheme):
    weight = random(33, 43)
    weight[7], weight[8] = 0.0, TINY / 2
    packed = pack(weight, scheme, shard_axis="row")
    assert (packed.panels.dtype, packed.shape, packed.shard_axis, packed.dtype) == (torch.int8, (33, 43), "row", torch.float32)
    assert packed.panels.abs().max() == 127
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((packed.unpack() - weight).abs() <= 0.5001 * step + TINY).all()
    ids = torch.tensor([5, 32, 7, 5])
    assert torch.equal(packed.rows(ids), packed.unpack()[ids])
    assert packed.nbytes == packed_bytes((33, 43), scheme, CPU) == (48 * 43 + 33 * 4 if scheme == "int8" else 48 * 44 + 33 * 4 + 48 * 4)
    address = packed.panels.data_ptr()
    packed.replace(2 * weight)
    assert packed.panels.data_ptr() == address
    again = pack(2 * weight, scheme)
    assert torch.equal(packed.unpack(), again.unpack()) and same(linear(random(3, 43), packed), linear(random(3, 43), again))


@pytest.mark.parametrize("scheme", ["fp32", "int8", "w8a8"])
def test_a_layer_without_inputs_gives_its_bias(scheme):
    weight, bias = pack(torch.empty(19, 0), scheme), random(19)
    assert weight.unpack().shape == (19, 0) and weight.rows(torch.tensor([3, 18])).shape == (2, 0)
    assert torch.equal(linear(torch.empty(3, 0), weight, bias), bias.expand(3, 19))
    assert pack(torch.empty(0, 5), scheme).unpack().shape == (0, 5)


@pytest.mark.parametrize("scheme", ["bf16", "int8", "w8a8"])
def test_written_in_parts_a_weight_is_the_same_as_whole(scheme):
    weight, whole = random(53, 30), pack(random(53, 30), scheme)
    parts = PackedLinear.empty((53, 30), scheme, CPU)
    for first, last in ((32, 48), (0, 32), (48, 53)):
        parts.write(first, weight[first:last])
    for name in ("panels", "scale", "sums"):
        one, other = getattr(parts, name), getattr(whole, name)
        assert (one is None and other is None) or torch.equal(one, other)
    for first, rows in ((8, weight[:8]), (0, weight[:20]), (48, weight[:16]), (-16, weight[:16])):
        with pytest.raises(InputError, match="whole panels of 16"):
            parts.write(first, rows)


def test_rows_are_quantised_each_by_itself():
    x = torch.tensor(
        [[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [1.0, torch.nan, 0.0, 0.0], [-torch.inf, 1.0, 0.0, 0.0], [TINY / 2] * 4]
    )
    quantised, scale = quantise_rows(x)
    assert quantised.tolist() == [[127, 0, 2, -2], [0] * 4, [0] * 4, [0] * 4, [0] * 4]
    assert scale[[0, 1, 4]].tolist() == [1.0, 0.0, 0.0] and scale[2:4].isnan().all()


def configurations(count):
    rng = pyrandom.Random(7)
    for seed in range(count):
        rows = rng.choice([1, 2, 3, 5, 8, 12, 13, 25, rng.randint(1, 90)])
        yield seed, rows, rng.randint(1, 90), rng.choice([1, 2, 3, 4, 15, 16, 17, rng.randint(1, 400)]), rng.choice([1, 1, 2, 3])


def test_random_configurations_equal_the_reference_bit_for_bit_at_every_level(level):
    for seed, rows, outputs, inputs, stride in configurations(200):
        dtype = (torch.float32, torch.bfloat16, torch.float16)[seed % 3]
        x = (random(rows, inputs * stride, seed=seed) * 10.0 ** (seed % 5 - 2)).to(dtype)[:, ::stride]
        if seed % 4 == 0:
            x = x.t().contiguous().t()  # columns are contiguous
        weight, bias = pack(random(outputs, inputs, seed=seed + 1), "w8a8"), random(outputs, seed=seed + 2) if seed % 2 else None
        expected = linear_reference(x, weight, bias)
        for name in LEVELS:
            level(name)
            assert same(linear(x, weight, bias, backend="cpu"), expected), (name, seed, rows, outputs, inputs, stride, dtype)


def test_no_row_count_and_no_thread_changes_a_row(level, threads):
    weight, bias, x = pack(random(150, 131), "w8a8"), random(150, seed=1), random(300, 131, seed=2)
    expected = linear_reference(x, weight, bias)
    some = (1, 2, 4, 5, 6, 7, 11, 12, 13, 16, 17, 31, 32, 33, 64, 193, 300)
    for name in LEVELS:
        level(name)
        for count in (1, 2):
            threads(count)
            for rows in range(1, 301) if (name, count) == (LEVELS[-1], 1) else some:
                assert same(linear(x[300 - rows :], weight, bias), expected[300 - rows :]), (name, rows, count)


@pytest.mark.parametrize("inputs", [1, 60, 63, 64, 65, 100, 124, 128, 132, 191])
def test_depths_around_a_block_of_64_at_every_level(inputs, level):
    """AMX takes 64 inputs at a time, or all of them where there are fewer; the last 64 overlap with those before them."""
    weight, x = pack(random(70, inputs), "w8a8"), random(39, inputs, seed=1)
    for rows in (1, 4, 5, 16, 17, 32, 39):
        expected = linear_reference(x[:rows], weight, None)
        for name in LEVELS:
            level(name)
            assert same(linear(x[:rows], weight), expected), (name, rows)


@pytest.mark.parametrize("name", LEVELS)
def test_sums_are_exact_at_their_largest(name, level):
    level(name)
    inputs = MAX_W8A8_INPUTS
    weight = torch.ones(3, inputs)
    weight[1, ::2] = -1.0
    weight[2] = -1.0
    x = torch.ones(2, inputs)
    x[1, ::2] = -1.0
    packed = pack(weight * 127, "w8a8")
    ours = linear(x * 127, packed)
    exact = (x.double() * 127) @ (weight.double() * 127).T
    assert exact.abs().max() > 2**31 - 127**2 - 1
    assert torch.equal(ours, exact.float())
    with pytest.raises(InputError, match=f"at most {inputs} inputs"):
        pack(torch.ones(1, inputs + 1), "w8a8")


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_that_is_not_finite_gives_nan_and_leaves_its_neighbours(name, bad, dtype, level):
    level(name)
    weight, bias, x = pack(random(37, 50), "w8a8"), random(37, seed=1), random(16, 50, seed=2).to(dtype)
    before = linear(x, weight, bias)
    x[3, 49], x[15, 0], x[5] = bad, bad, 0.0
    after = linear(x, weight, bias)
    assert after[[3, 15]].isnan().all()
    others = [row for row in range(16) if row not in (3, 5, 15)]
    assert torch.equal(after[others], before[others])
    assert torch.equal(after[5], bias.to(dtype)), "a row of zeros"


def fbgemm(weight, x):
    """torch's dynamic int8 layer: weights per output, activations per tensor."""
    scale = weight.abs().amax(dim=1).double() / 127
    with contextlib.suppress(RuntimeError):
        torch.backends.quantized.engine = "x86"
    quantised = torch.quantize_per_channel(weight, scale, torch.zeros(len(weight), dtype=torch.long), 0, torch.qint8)
    return torch.ops.quantized.linear_dynamic(x, torch.ops.quantized.linear_prepack(quantised, None))


@pytest.mark.filterwarnings("ignore:torch.quantize_per")
@pytest.mark.parametrize("kind", ["gaussian", "rows of many sizes", "outliers"])
def test_rows_by_themselves_err_no_more_than_torchs_dynamic_int8(kind):
    weight, x = random(256, 576), random(64, 576, seed=1)
    if kind == "rows of many sizes":
        x *= torch.logspace(-2, 1, 64)[:, None]
    elif kind == "outliers":
        x[::7, 5] *= 60.0  # in some rows, as a few channels of a decoder have them
    exact = F.linear(x.double(), weight.double())

    def error(out):
        return ((out - exact).norm(dim=1) / exact.norm(dim=1)).median().item()

    ours, theirs = error(linear(x, pack(weight, "w8a8"))), error(fbgemm(weight, x))
    assert ours < 0.012
    assert ours <= theirs * (1.0 if kind == "gaussian" else 0.5), (ours, theirs)


@pytest.mark.parametrize("name", LEVELS)
def test_weights_alone_in_int8_multiply_in_floats(name, level):
    level(name)
    weight, bias, x = pack(random(37, 300), "int8"), random(37, seed=1), random(40, 300, seed=2)
    out = linear(x, weight, bias, backend="cpu")
    exact = F.linear(x.double(), weight.unpack().double(), bias.double())
    assert (out - exact).abs().max() <= 2 * (linear_reference(x, weight, bias) - exact).abs().max() + 1e-6 * exact.abs().max()
    for rows in (1, 2, 11, 12, 13, 39):
        assert torch.equal(linear(x[:rows], weight, bias), out[:rows])


def test_what_cannot_be_held_or_computed_is_refused():
    weight = random(4, 5)
    with pytest.raises(BackendError, match="no kernel for scheme 'w8a8'"):
        linear(random(2, 5), pack(weight, "w8a8"), backend="triton")
    with pytest.raises(InputError, match="scheme 'w8a8': expected a weight on the CPU"):
        pack(weight.to("meta"), "w8a8")
    for scheme in ("int8", "w8a8"):
        broken = weight.clone()
        broken[2, 3] = torch.inf
        with pytest.raises(InputError, match="row 2"):
            pack(broken, scheme)


OPCHECKS = {
    "linear_int8": lambda weight: (random(3, 17), pack(weight, "int8").panels, pack(weight, "int8").scale, random(20)),
    "linear_w8a8": lambda weight: (random(3, 17), *parts(pack(weight, "w8a8")), random(20)),
    "token_logits": lambda weight: (
        random(3, 17), torch.ones(17), 1e-6, pack(weight, "w8a8").panels, 20, 0.0,
        torch.tensor([0, 1, 1, 2]), torch.tensor([4, 5]).int(), *parts(pack(weight, "w8a8"))[1:],
    ),
}  # fmt: skip


def parts(packed):
    return packed.panels, packed.scale, packed.sums


@pytest.mark.parametrize("name", OPCHECKS)
def test_torch_accepts_the_op(name):
    torch.library.opcheck(getattr(torch.ops.spct, name).default, OPCHECKS[name](random(20, 17)))


def test_wrong_tensors_for_the_raw_ops_are_refused():
    ops, x, (panels, scale, sums) = torch.ops.spct, random(2, 17), parts(pack(random(20, 17), "w8a8"))
    for arguments, message in (
        ((x[:, :16].contiguous(), panels, scale, sums, None), r"weight: expected \[2, 4, 16, 4\], got \[2, 5, 16, 4\]"),
        ((x, panels, scale[:15].contiguous(), sums, None), r"weight: expected \[1, 5, 16, 4\]"),
        ((x, panels, scale, sums[:1].contiguous(), None), r"sums: expected \[2, 16\]"),
        ((x, panels.float(), scale, sums, None), "expected int8"),
        ((x, panels, scale, sums, scale[:3].contiguous()), "bias: expected 20 elements, got 3"),
    ):
        with pytest.raises(RuntimeError, match=message):
            ops.linear_w8a8(*arguments)
    with pytest.raises(RuntimeError, match="weight: expected int8"):
        ops.linear_int8(x, pack(random(20, 17), "fp32").panels, scale, None)
    with pytest.raises(RuntimeError, match="expected a scale and sums, or neither"):
        ops.token_logits(x, torch.ones(17), 0.0, panels, 20, 0.0, torch.tensor([0, 0, 1]), torch.tensor([3]).int(), scale)


# ---- The output head ----


def head_call(hidden, head, temperature=0.0, **options):
    rows = len(hidden)
    return fused_sample(
        hidden,
        torch.ones(hidden.shape[1]),
        head,
        temperature=torch.full((rows,), temperature),
        top_k=torch.zeros(rows, dtype=torch.int32),
        top_p=torch.ones(rows),
        min_p=torch.zeros(rows),
        seed=torch.arange(rows),
        position=torch.arange(rows),
        norm_eps=1e-5,
        **options,
    )


def every_logit(hidden, head, softcap=None):
    rows, vocabulary = len(hidden), head.shape[0]
    offsets = torch.arange(rows + 1) * vocabulary
    ids = torch.arange(vocabulary).repeat(rows)
    return token_logits(hidden, torch.ones(hidden.shape[1]), head, offsets, ids, norm_eps=1e-5, softcap=softcap).view(rows, vocabulary)


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize(("rows", "vocabulary"), [(5, 333), (70, 333), (3, 50_000)])
def test_the_head_draws_from_the_logits_that_token_logits_gives(name, rows, vocabulary, level):
    level(name)
    weight = random(vocabulary, 40) / 6
    half = vocabulary // 2
    weight[half : 2 * half] = weight[:half].clone()  # every logit stands there twice, in other panels: ties
    head, hidden = pack(weight, "w8a8"), random(rows, 40, seed=1)
    normed = rms_norm(hidden, torch.ones(40), 1e-5)
    assert torch.equal(every_logit(hidden, head), linear(normed, head))
    logits = every_logit(hidden, head, softcap=4.0)
    out = head_call(hidden, head, softcap=4.0)
    assert torch.equal(out.token, logits.argmax(dim=1)) and bool((out.token % (vocabulary - 1) < half).all())
    expected = logits.double().max(dim=1).values - logits.double().logsumexp(dim=1)
    torch.testing.assert_close(out.logprob.double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("name", LEVELS)
def test_a_row_of_the_head_keeps_its_bits_and_its_nan(name, level):
    level(name)
    head, hidden, meta = pack(random(1009, 48) / 5, "w8a8"), random(61, 48, seed=1), random(48, seed=2)
    together = head_call(hidden, head, 0.8, meta_weight=meta, meta_bias=0.5)
    for rows in (1, 7, 13, 40):
        some = head_call(hidden[:rows], head, 0.8, meta_weight=meta, meta_bias=0.5)
        assert all(torch.equal(one, other[:rows]) for one, other in zip(some, together, strict=True))
    exact = rms_norm(hidden.double(), torch.ones(48).double(), 1e-5) @ meta.double() + 0.5
    torch.testing.assert_close(together.meta.double(), exact, atol=1e-5, rtol=1e-5)  # the meta row is not quantised
    hidden[4, 3] = torch.nan
    broken = head_call(hidden, head, 0.8, meta_weight=meta, meta_bias=0.5)
    others = [row for row in range(61) if row != 4]
    assert broken.token[4] == -1 and broken.logprob[4].isnan()
    assert torch.equal(broken.token[others], together.token[others]) and torch.equal(broken.logprob[others], together.logprob[others])


def test_heads_without_a_kernel_are_refused():
    hidden, weight = random(2, 8), random(20, 8)
    with pytest.raises(InputError, match="got 'int8'; pack it as one of these"):
        head_call(hidden, pack(weight, "int8"))
    with pytest.raises(BackendError, match="no kernel for a head packed as 'w8a8'"):
        head_call(hidden, pack(weight, "w8a8"), backend="triton")

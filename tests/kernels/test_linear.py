"""Packed linear layers: packing, bitwise invariance of a row, replacement in place, refusals; int8 is in test_linear_int8."""

from __future__ import annotations

import pytest
import torch

from spct_kernels import InputError, PackedLinear, linear, pack

SCHEMES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 1), (16, 3), (17, 5), (31, 64), (48, 7), (0, 4)])
def test_packing_keeps_the_rounded_weight(scheme, shape):
    weight = random(*shape)
    packed = pack(weight, scheme, shard_axis="column")
    stored = weight.to(SCHEMES[scheme])
    assert torch.equal(packed.unpack(), stored.float())
    assert (packed.scheme, packed.shape, packed.shard_axis) == (scheme, shape, "column")
    assert packed.nbytes == -(-shape[0] // 16) * 16 * shape[1] * stored.element_size()
    if shape[0]:
        ids = torch.tensor([shape[0] - 1, 0, shape[0] // 2])
        assert torch.equal(packed.rows(ids), stored[ids])


@pytest.mark.parametrize(("scheme", "dtype"), [*((scheme, torch.float32) for scheme in SCHEMES), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("shape", [(1, 1), (37, 131)])
def test_a_row_has_the_same_bits_whatever_is_beside_it(scheme, dtype, shape, threads):
    outputs, inputs = shape
    weight, bias, x = pack(random(outputs, inputs), scheme), random(outputs, seed=1), random(300, inputs, seed=2).to(dtype)
    threads(1)
    alone = torch.cat([linear(x[row : row + 1], weight, bias) for row in range(300)])
    some = (1, 2, 11, 12, 13, 24, 25, 31, 47, 64, 97, 192, 193, 299, 300)
    for count in (1, 2):
        threads(count)
        for rows in range(1, 301) if scheme == "fp32" else some:
            assert torch.equal(linear(x[300 - rows :], weight, bias), alone[300 - rows :]), (rows, count)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("rows", [1, 32, 257])
def test_many_panels_and_threads_give_the_same_bits(scheme, rows, threads):
    weight, x = pack(random(576, 192), scheme), random(rows, 192, seed=2)
    threads(1)
    expected = linear(x, weight)
    for count in (2, 3, 7):
        threads(count)
        assert torch.equal(linear(x, weight), expected)


def test_16_bit_activations_come_back_in_their_dtype():
    weight = pack(random(33, 40), "fp32")
    for dtype in SCHEMES.values():
        x = random(5, 40, seed=3).to(dtype)
        assert torch.equal(linear(x, weight), linear(x.float(), weight).to(dtype))


def test_replace_writes_into_the_same_memory():
    packed, other = pack(random(19, 8), "bf16"), random(19, 8, seed=9)
    address = packed.panels.data_ptr()
    packed.replace(other)
    assert packed.panels.data_ptr() == address
    assert torch.equal(packed.unpack(), other.bfloat16().float())
    with pytest.raises(InputError, match=r"weight: expected shape \(19, 8\)"):
        packed.replace(other[:4])


def test_nan_and_inf_reach_only_their_row_and_output():
    weight, x = random(20, 6), random(4, 6, seed=1)
    x[1, 3] = torch.nan
    out = linear(x, pack(weight, "fp32"))
    assert out[1].isnan().all()
    assert not out[[0, 2, 3]].isnan().any()
    weight[7, 0] = torch.inf
    assert linear(x, pack(weight, "fp32"))[0].isinf().nonzero().flatten().tolist() == [7]


def test_packed_weights_are_frozen():
    packed = pack(random(2, 2), "fp32")
    with pytest.raises(AttributeError):
        packed.scheme = "bf16"
    assert isinstance(packed, PackedLinear)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pack(random(3, 4), "int3"), "scheme: expected one of fp32, bf16, fp16"),
        (lambda: pack(random(3, 4), "fp32", shard_axis="diagonal"), "shard_axis: expected one of column"),
        (lambda: pack(random(3), "fp32"), r"weight: expected shape \(O, I\)"),
        (lambda: pack(torch.zeros(3, 4, dtype=torch.int64), "fp32"), "weight: expected dtype"),
        (lambda: linear(random(2, 5), pack(random(3, 4), "fp32")), r"x: expected shape \(T, I=4\), got \(2, 5\)"),
        (lambda: linear(random(2, 4), pack(random(3, 4), "fp32"), random(4)), r"bias: expected shape \(O=3,\)"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()

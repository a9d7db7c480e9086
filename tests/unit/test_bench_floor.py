"""The floor is the one that the project's bars are measured by, and it moves the way that bytes and operations do."""

import dataclasses

import pytest

from spct.benchmark.floor import Peaks, Shape, floor_of, linear_weights
from spct.layers.spec import KVLayout, LayerSpec, MLPSpec, RopeSpec
from spct.models.spec import ModelSpec


def spec(*, hidden, layers, heads, kv_heads, inner, vocabulary, dim=64, window=None):
    layer = LayerSpec(KVLayout(kv_heads, dim, dim, window), MLPSpec(inner))
    return ModelSpec("llama", vocabulary, hidden, heads, dim, (layer,) * layers, (RopeSpec(dim),), 8192, 1e-6, dim**-0.5)


SMOLLM2 = spec(hidden=576, layers=30, heads=9, kv_heads=3, inner=1536, vocabulary=49_152)
LLAMA_25M = spec(hidden=512, layers=8, heads=8, kv_heads=4, inner=1408, vocabulary=32_000)
# Two machines that the bars were written on: operations per second, bytes per second.
AVX512 = Peaks(read=33.8e9, fp32=151e9, bf16=409e9, int8=870e9)
AVX2 = Peaks(read=29.9e9, fp32=137.5e9, bf16=18.8e9, int8=221.7e9)


@pytest.mark.parametrize(("samples", "seconds"), [(8, 0.7), (32, 1.3)])
def test_the_floor_of_smollm2_is_that_of_the_bars(samples, seconds):
    floor = floor_of(SMOLLM2, Shape(1024, samples, 64), AVX512, scheme="int8", kv_dtype="bfloat16")
    assert floor.total_s == pytest.approx(seconds, abs=0.05)


def test_a_prefill_is_its_operations():
    layers, head = linear_weights(LLAMA_25M)
    assert (layers, head) == (8 * (512 * (512 + 2 * 256) + 512 * 512 + 3 * 512 * 1408), 512 * 32_000)
    attention = 8 * 4 * 512 * 1024 * 1025 / 2
    floor = floor_of(LLAMA_25M, Shape(1024, 8, 64), AVX2, scheme="fp32", kv_dtype="float32")
    assert floor.prefill_s == pytest.approx((2 * 1024 * layers + 2 * head + attention) / AVX2.fp32)


def test_one_row_reads_the_weights_and_many_compute():
    layers, head = linear_weights(LLAMA_25M)
    one = floor_of(LLAMA_25M, Shape(1, 1, 2), AVX2, scheme="fp32", kv_dtype="float32")
    assert one.decode_s == pytest.approx(4 * (layers + head) / AVX2.read, rel=1e-2)
    many = floor_of(LLAMA_25M, Shape(1, 512, 2), AVX2, scheme="fp32", kv_dtype="float32")
    assert many.decode_s == pytest.approx(2 * 512 * (layers + head) / AVX2.fp32, rel=1e-2)


def test_the_shared_prefix_is_read_once():
    """Where reading is all that costs, k samples pay for the prefix once and for their own tokens k times."""
    reads_only = dataclasses.replace(AVX2, fp32=1e30, bf16=1e30, int8=1e30)
    token = 8 * 4 * 2 * 64 * 4

    def decode(prefix, samples):
        return floor_of(LLAMA_25M, Shape(prefix, samples, 2), reads_only, scheme="fp32", kv_dtype="float32").decode_s

    assert decode(5000, 8) - decode(0, 8) == pytest.approx(5000 * token / AVX2.read)
    assert decode(5000, 8) - decode(5000, 1) == pytest.approx(7 * token / AVX2.read)


def test_a_window_caps_what_is_read():
    reads_only = dataclasses.replace(AVX2, fp32=1e30, bf16=1e30, int8=1e30)
    windowed = spec(hidden=512, layers=8, heads=8, kv_heads=4, inner=1408, vocabulary=32_000, window=100)
    near, far = (floor_of(windowed, Shape(n, 4, 3), reads_only, scheme="fp32", kv_dtype="float32").decode_s for n in (100, 5000))
    assert near == pytest.approx(far)


def test_formats_choose_the_fastest_arithmetic_that_they_permit():
    assert AVX512.gemm("int8") == AVX512.gemm("w8a8") == AVX512.int8 and AVX512.gemm("fp32") == AVX512.fp32
    assert AVX512.gemm("bf16") == AVX512.attention("bfloat16") == AVX512.bf16
    # Emulated bf16 is slower than fp32: nobody has to use it.
    assert AVX2.gemm("bf16") == AVX2.attention("bfloat16") == AVX2.fp32

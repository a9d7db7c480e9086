"""The time that no engine can beat on a machine: arithmetic at its measured peak, bytes at its measured bandwidth.

A step computes its matrix products and reads the weights, whichever takes longer; its attention computes scores and sums and reads
keys and values, whichever takes longer: the shared prefix once, each sample's own tokens once. Sampling, norms and all else cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from spct.models.spec import ModelSpec

_WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "w8a8": 1}
_KV_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True)
class Peaks:
    """What a machine was measured to do with the threads in use.

    read         bytes per second, from memory
    fp32, bf16   floating-point operations per second in large matrix products
    int8         integer operations per second in the same
    """

    read: float
    fp32: float
    bf16: float
    int8: float

    def gemm(self, scheme: str) -> float:
        """Operations per second for weights stored under a `pack` scheme: the fastest arithmetic that the format permits."""
        if _WEIGHT_BYTES[scheme] == 1:
            return max(self.fp32, self.int8)
        return max(self.fp32, self.bf16) if scheme == "bf16" else self.fp32

    def attention(self, kv_dtype: str) -> float:
        """Operations per second for keys and values of a dtype."""
        return max(self.fp32, self.bf16) if kv_dtype == "bfloat16" else self.fp32


@dataclass(frozen=True, slots=True)
class Shape:
    """One prompt of `prompt_len` tokens and `samples` continuations of `max_tokens` each."""

    prompt_len: int
    samples: int
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Floor:
    """Seconds until the first token of all samples, and from there to the last."""

    prefill_s: float
    decode_s: float

    @property
    def total_s(self) -> float:
        """Seconds for the whole."""
        return self.prefill_s + self.decode_s


def floor_of(spec: ModelSpec, shape: Shape, peaks: Peaks, *, scheme: str, kv_dtype: str) -> Floor:
    """The floor of one prompt with its samples.

    scheme    storage of the linear layers: "fp32", "bf16", "fp16", "int8" or "w8a8"
    kv_dtype  "float32", "bfloat16" or "float16"
    """
    layers, head = linear_weights(spec)
    rate, attention_rate = peaks.gemm(scheme), peaks.attention(kv_dtype)
    weight_bytes = _WEIGHT_BYTES[scheme] * (layers + head)
    length, rows = shape.prompt_len, shape.samples
    products = 2 * (length * layers + head) / rate
    prefill = max(products, weight_bytes / peaks.read) + _attention_flops(spec, 0, length, 1) / attention_rate
    step = max(2 * rows * (layers + head) / rate, weight_bytes / peaks.read)
    decode = 0.0
    # The last token that is drawn is never fed: T samples take T - 1 steps after the prefill's own draw.
    for own in range(1, shape.max_tokens):
        reads = _KV_BYTES[kv_dtype] * sum(
            layer.kv.elements_per_token * (_seen(length, own, layer.kv.window) + rows * min(own, layer.kv.window or own))
            for layer in spec.layers
        )
        decode += step + max(_attention_flops(spec, length + own - 1, 1, rows) / attention_rate, reads / peaks.read)
    return Floor(prefill, decode)


def linear_weights(spec: ModelSpec) -> tuple[int, int]:
    """Numbers in the matrices of all layers, and in the LM head."""
    layers = 0
    for layer in spec.layers:
        query = spec.num_heads * spec.head_dim
        layers += (query + layer.kv.elements_per_token) * spec.hidden_dim
        layers += spec.hidden_dim * spec.num_heads * layer.kv.value_dim
        layers += 3 * spec.hidden_dim * layer.mlp.intermediate_dim
    return layers, spec.vocab_size * spec.hidden_dim


def _seen(length: int, own: int, window: int | None) -> int:
    """Tokens of the shared prefix that a row sees which has `own` tokens of its own."""
    return length if window is None else max(0, min(length, window - own))


def _attention_flops(spec: ModelSpec, before: int, count: int, rows: int) -> float:
    """Scores and weighted sums of `count` tokens after `before` others, in each of `rows` sequences."""
    total = 0.0
    for layer in spec.layers:
        window = layer.kv.window or before + count
        keys = sum(min(before + i + 1, window) for i in range(count))
        total += 2 * spec.num_heads * (layer.kv.key_dim + layer.kv.value_dim) * keys * rows
    return total

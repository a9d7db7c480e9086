"""Every parameter of a decoder: where it lives, its shape, and the checkpoint's tensors that fill it.

The one place where a family's table of tensor names meets the decoder; loading, live replacement and adapters all walk this
list. Query, key and value are one matrix, gate and up another: their rows come from several tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from spct.models.families import Family, family_named
from spct.models.spec import ModelSpec

Kind = Literal["embedding", "linear", "vector"]
Shard = Literal["vocabulary", "column", "row", "replicated"]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of the checkpoint, filling the rows from `start` on of a parameter."""

    name: str
    shape: tuple[int, ...]
    start: int = 0


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tensor of the decoder.

    layer    index of the layer, None for the model's own
    key      attribute of the layer's or the model's weights
    kind     "embedding" (a table of rows), "linear" (goes through `pack`), "vector" (kept in fp32)
    shard    the axis along which tensor parallelism would cut it
    offset   added to the stored numbers
    """

    layer: int | None
    key: str
    shape: tuple[int, ...]
    kind: Kind
    shard: Shard
    pieces: tuple[Piece, ...]
    offset: float = 0.0


def parameters(spec: ModelSpec) -> list[Parameter]:
    """The parameters of a decoder in the order in which they are loaded."""
    family = family_named(spec.family)
    e = spec.hidden_dim
    tensors = family.tensors
    table: list[tuple[str, tuple[int, ...]]] = [(tensors["embedding"], (spec.vocab_size, e))]
    # Tied, the packed LM head is the embedding table too.
    if spec.tied_embeddings:
        result = [_parameter(None, "lm_head", "linear", "vocabulary", table)]
    else:
        result = [_parameter(None, "embedding", "embedding", "vocabulary", table)]
    for i in range(spec.num_layers):
        result.extend(_layer(spec, family, i))
    norm: list[tuple[str, tuple[int, ...]]] = [(tensors["final_norm"], (e,))]
    result.append(_parameter(None, "final_norm", "vector", "replicated", norm, spec.norm_offset))
    if not spec.tied_embeddings:
        table = [(tensors["lm_head"], (spec.vocab_size, e))]
        result.append(_parameter(None, "lm_head", "linear", "vocabulary", table))
    return result


def _layer(spec: ModelSpec, family: Family, i: int) -> Iterator[Parameter]:
    layer, e, h = spec.layers[i], spec.hidden_dim, spec.num_heads
    q, k, v = h * layer.kv.key_dim, layer.kv.num_kv_heads * layer.kv.key_dim, layer.kv.num_kv_heads * layer.kv.value_dim
    inter, offset = layer.mlp.intermediate_dim, spec.norm_offset

    def named(role: str, *shape: int) -> tuple[str, tuple[int, ...]]:
        return family.tensors[role].format(i=i), shape

    def vector(key: str, shard: Shard, *pieces: tuple[str, tuple[int, ...]], offset: float = 0.0) -> Parameter:
        return _parameter(i, key, "vector", shard, list(pieces), offset)

    yield vector("attention_norm", "replicated", named("attention_norm", e), offset=offset)
    yield _parameter(i, "qkv", "linear", "column", [named("query", q, e), named("key", k, e), named("value", v, e)])
    if spec.qkv_bias:
        yield vector("qkv_bias", "column", named("query_bias", q), named("key_bias", k), named("value_bias", v))
    if spec.qk_norm:
        yield vector("query_norm", "replicated", named("query_norm", layer.kv.key_dim), offset=offset)
        yield vector("key_norm", "replicated", named("key_norm", layer.kv.key_dim), offset=offset)
    yield _parameter(i, "output", "linear", "row", [named("output", e, h * layer.kv.value_dim)])
    if spec.output_bias:
        yield vector("output_bias", "replicated", named("output_bias", e))
    if spec.post_norms:
        yield vector("post_attention_norm", "replicated", named("post_attention_norm", e), offset=offset)
    yield vector("mlp_norm", "replicated", named("mlp_norm", e), offset=offset)
    yield _parameter(i, "gate_up", "linear", "column", [named("gate", inter, e), named("up", inter, e)])
    yield _parameter(i, "down", "linear", "row", [named("down", e, inter)])
    if layer.mlp.bias:
        yield vector("gate_up_bias", "column", named("gate_bias", inter), named("up_bias", inter))
        yield vector("down_bias", "replicated", named("down_bias", e))
    if spec.post_norms:
        yield vector("post_mlp_norm", "replicated", named("post_mlp_norm", e), offset=offset)


def _parameter(
    layer: int | None, key: str, kind: Kind, shard: Shard, tensors: list[tuple[str, tuple[int, ...]]], offset: float = 0.0
) -> Parameter:
    pieces, start = [], 0
    for name, shape in tensors:
        pieces.append(Piece(name, shape, start))
        start += shape[0]
    return Parameter(layer, key, (start, *pieces[0].shape[1:]), kind, shard, tuple(pieces), offset)

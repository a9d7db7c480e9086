"""The decoder: one forward pass for every family, driven by a `ModelSpec`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spct.layers.decoder_layer import DecoderLayer, LayerInputs, LayerWeights
from spct.layers.rope import inverse_frequencies, rotation
from spct.models.head import OutputHead
from spct.models.kv import KVCache
from spct.models.spec import ModelSpec
from spct_kernels import AttentionPlan, PackedLinear


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """The rows of one forward pass: new tokens of any number of sequences, in the plan's order.

    token_ids   [T] int64
    positions   [T] int64, from 0 along the path from the root
    slots       [T] int32, where each row's keys and values are written
    plan        which slots each row reads; those of this batch's own rows are among them
    kv          the caches, written at `slots` before they are read
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    plan: AttentionPlan
    kv: KVCache


@dataclass(slots=True)
class DecoderWeights:
    """A decoder's parameters.

    embedding          [V, E], in the dtype that the weights are kept in; the packed LM head itself where they are tied
    layers             one `LayerWeights` each
    head               final norm and LM head
    activation_dtype   dtype of the residual stream
    """

    embedding: Tensor | PackedLinear
    layers: list[LayerWeights]
    head: OutputHead
    activation_dtype: torch.dtype = torch.float32


class Decoder:
    """A decoder-only transformer.

    complete   False after a replacement of the weights that failed midway; such a decoder must not run
    """

    def __init__(self, spec: ModelSpec, weights: DecoderWeights, backend: str = "auto", deterministic: bool = True) -> None:
        self.spec = spec
        self.weights = weights
        self.backend = backend
        self.complete = True
        device = weights.embedding.device
        self._frequencies = [inverse_frequencies(rope).to(device) for rope in spec.ropes]
        # In the dtype of the activations, as the families round it.
        self._embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=weights.activation_dtype))
        self._layers = [
            DecoderLayer(
                layer,
                weights.layers[i],
                num_heads=spec.num_heads,
                norm_eps=spec.norm_eps,
                scale=spec.attention_scale,
                softcap=spec.attention_softcap,
                backend=backend,
                deterministic=deterministic,
            )
            for i, layer in enumerate(spec.layers)
        ]

    @property
    def head(self) -> OutputHead:
        """The output head, which turns hidden states into tokens."""
        return self.weights.head

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights.embedding.device

    def forward(self, batch: ForwardBatch) -> Tensor:
        """Run all layers on T rows, writing their keys and values.

        returns   [T, E] hidden states BEFORE the final norm, which the output head applies

        Cost: every weight is read once; 2 T (parameters) FLOPs and the attention's.
        """
        ropes = [
            rotation(batch.positions, frequencies, rope.attention_factor)
            for frequencies, rope in zip(self._frequencies, self.spec.ropes, strict=True)
        ]
        residual = self._embed(batch.token_ids)
        delta: Tensor | None = None
        k, v = batch.kv.k, batch.kv.v
        for i, layer in enumerate(self._layers):
            cos, sin = ropes[layer.spec.rope]
            delta, residual = layer.forward(delta, residual, LayerInputs(cos, sin, batch.slots, batch.plan, k[i], v[i]))
        return residual if delta is None else residual + delta

    def _embed(self, token_ids: Tensor) -> Tensor:
        table = self.weights.embedding
        rows = (table.rows(token_ids) if isinstance(table, PackedLinear) else table[token_ids]).to(self.weights.activation_dtype)
        return rows * self._embedding_scale if self._embedding_scale != 1.0 else rows

"""What a decoder is, as plain frozen data: everything that the forward pass needs and nothing of how it was stored."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

from spct.layers.spec import LayerSpec, RopeSpec


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer.

    family           name of the family whose table names the tensors ("llama", "gemma2", ...)
    hidden_dim       E
    num_heads        H, query heads of every layer
    attention_scale  multiplies the scores q.k
    attention_softcap, final_softcap   cap * tanh(x / cap) over scores and over logits; None: off
    embedding_scale  multiplies the embeddings
    qk_norm          per-head RMSNorm on queries and keys, before the rotation
    qkv_bias, output_bias   biases of the attention's projections
    post_norms       RMSNorm over the outputs of attention and MLP too, before they join the residual stream
    norm_offset      added to the stored norm weights (a family that stores weight - 1)
    tied_embeddings  the LM head is the embedding table
    max_context      positions that the checkpoint was made for
    """

    family: str
    vocab_size: int
    hidden_dim: int
    num_heads: int
    head_dim: int
    layers: tuple[LayerSpec, ...]
    ropes: tuple[RopeSpec, ...]
    max_context: int
    norm_eps: float
    attention_scale: float
    attention_softcap: float | None = None
    final_softcap: float | None = None
    embedding_scale: float = 1.0
    qk_norm: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    post_norms: bool = False
    norm_offset: float = 0.0
    tied_embeddings: bool = False
    stored_dtype: str | None = field(default=None, compare=False)

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @cached_property
    def num_parameters(self) -> int:
        """Numbers in the weights, a tied LM head counted once; norms and biases included."""
        e, h, d = self.hidden_dim, self.num_heads, self.head_dim
        total = self.vocab_size * e * (1 if self.tied_embeddings else 2) + e
        for layer in self.layers:
            qkv = h * d + layer.kv.num_kv_heads * (layer.kv.key_dim + layer.kv.value_dim)
            inter = layer.mlp.intermediate_dim
            total += qkv * e + e * h * layer.kv.value_dim + 3 * e * inter
            total += qkv * self.qkv_bias + e * self.output_bias + (2 * inter + e) * layer.mlp.bias
            total += e * (4 if self.post_norms else 2) + (2 * d if self.qk_norm else 0)
        return total


def default_attention_scale(head_dim: int) -> float:
    """1 / sqrt(D), the scale of scaled dot-product attention (Vaswani et al. 2017)."""
    return 1.0 / math.sqrt(head_dim)

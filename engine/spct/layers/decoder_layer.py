"""One decoder layer: attention over the shared prefix, then the gated feed-forward, each behind its norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from spct.layers.spec import LayerSpec
from spct_kernels import (
    AttentionPlan,
    PackedLinear,
    add_rms_norm,
    gated_activation,
    linear,
    rms_norm,
    rope_append,
    shared_prefix_attention,
)
from spct_kernels.dispatch import resolve
from spct_kernels.layer import decoder_layer, has_layer_kernels, query_dtype


@dataclass(slots=True)
class LayerWeights:
    """The parameters of one layer; what a model doesn't have is None.

    attention_norm, mlp_norm, post_attention_norm, post_mlp_norm   [E] fp32
    qkv          [(H + 2K) D, E] packed: queries, keys, values
    output       [E, H Dv] packed
    gate_up      [2 I, E] packed: gates, then ups
    down         [E, I] packed
    *_bias       [rows of its matrix] fp32
    query_norm, key_norm   [D] fp32
    """

    attention_norm: Tensor
    qkv: PackedLinear
    output: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear
    qkv_bias: Tensor | None = None
    query_norm: Tensor | None = None
    key_norm: Tensor | None = None
    output_bias: Tensor | None = None
    post_attention_norm: Tensor | None = None
    post_mlp_norm: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None


class LayerInputs(NamedTuple):
    """What a layer needs of the batch besides the residual stream.

    cos, sin   [T, D / 2] fp32, of this layer's rope
    slots      [T] int32, where the rows' keys and values go
    k_cache    [num_slots, K, D], v_cache [num_slots, K, Dv]
    """

    cos: Tensor
    sin: Tensor
    slots: Tensor
    plan: AttentionPlan
    k_cache: Tensor
    v_cache: Tensor


class DecoderLayer:
    """A layer's weights and its arithmetic; holds no state of a batch."""

    __slots__ = ("backend", "deterministic", "head_dim", "norm_eps", "num_heads", "one_call", "scale", "softcap", "spec", "weights")

    def __init__(
        self,
        spec: LayerSpec,
        weights: LayerWeights,
        *,
        num_heads: int,
        norm_eps: float,
        scale: float,
        softcap: float | None,
        backend: str,
        deterministic: bool = True,
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.num_heads = num_heads
        self.head_dim = spec.kv.key_dim
        self.norm_eps = norm_eps
        self.scale = scale
        self.softcap = softcap
        self.backend = backend
        self.deterministic = deterministic
        self.one_call = has_layer_kernels(weights)

    def forward(self, delta: Tensor | None, residual: Tensor, inputs: LayerInputs) -> tuple[Tensor, Tensor]:
        """Run the layer on T rows.

        delta      [T, E]: what the layer before wants to add to the residual stream; None before the first
        residual   [T, E]
        returns    this layer's delta and the residual stream without it, so that each addition joins the norm that follows

        On the "cpu" backend all of it is one call, with the bits of the calls below.
        """
        if self.one_call and resolve(self.backend, residual.device, residual.dtype) == "cpu":
            return self._forward_cpu(delta, residual, inputs)
        w, eps, backend = self.weights, self.norm_eps, self.backend
        if delta is None:
            normed = rms_norm(residual, w.attention_norm, eps, backend=backend)
        else:
            normed, residual = add_rms_norm(delta, residual, w.attention_norm, eps, backend=backend)
        attended = self._attention(normed, inputs)
        if w.post_attention_norm is not None:
            attended = rms_norm(attended, w.post_attention_norm, eps, backend=backend)
        normed, residual = add_rms_norm(attended, residual, w.mlp_norm, eps, backend=backend)
        delta = self._mlp(normed)
        if w.post_mlp_norm is not None:
            delta = rms_norm(delta, w.post_mlp_norm, eps, backend=backend)
        return delta, residual

    def _forward_cpu(self, delta: Tensor | None, residual: Tensor, inputs: LayerInputs) -> tuple[Tensor, Tensor]:
        return decoder_layer(
            delta,
            residual,
            *inputs,
            self.weights,
            norm_eps=self.norm_eps,
            scale=self.scale,
            activation=self.spec.mlp.activation,
            softcap=self.softcap,
            window=self.spec.kv.window,
        )

    def _attention(self, normed: Tensor, inputs: LayerInputs) -> Tensor:
        w, kv, backend = self.weights, self.spec.kv, self.backend
        cos, sin, slots, plan, k_cache, v_cache = inputs
        query = rope_append(
            linear(normed, w.qkv, w.qkv_bias, self.deterministic, backend=backend),
            cos,
            sin,
            slots,
            k_cache,
            v_cache,
            num_heads=self.num_heads,
            num_kv_heads=kv.num_kv_heads,
            head_dim=self.head_dim,
            q_norm=w.query_norm,
            k_norm=w.key_norm,
            norm_eps=self.norm_eps,
            q_dtype=query_dtype(normed.dtype, k_cache),
            backend=backend,
        )
        out = shared_prefix_attention(
            query,
            k_cache,
            v_cache,
            plan,
            scale=self.scale,
            softcap=self.softcap,
            window=kv.window,
            out_dtype=normed.dtype,
            backend=backend,
        )
        return linear(out.flatten(1), w.output, w.output_bias, self.deterministic, backend=backend)

    def _mlp(self, normed: Tensor) -> Tensor:
        w, backend = self.weights, self.backend
        gate_up = linear(normed, w.gate_up, w.gate_up_bias, self.deterministic, backend=backend)
        active = gated_activation(gate_up, self.spec.mlp.activation, backend=backend)
        return linear(active, w.down, w.down_bias, self.deterministic, backend=backend)

"""A whole decoder layer as one C++ call, for the "cpu" backend: the same kernels one after the other, so the same bits as op by op."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.dispatch import cpu_ops
from spct_kernels.elementwise import ACTIVATIONS
from spct_kernels.errors import InputError
from spct_kernels.linear import PackedLinear
from spct_kernels.plan import AttentionPlan

_PANEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


class LayerParameters(Protocol):
    """The parameters of one layer; what a model doesn't have is None.

    attention_norm, mlp_norm, post_attention_norm, post_mlp_norm   [E] fp32, contiguous
    qkv                    [(H + 2K) D, E] packed on the CPU: queries, keys, values
    output                 [E, H D] packed
    gate_up                [2 I, E] packed: gates, then ups
    down                   [E, I] packed
    *_bias                 [rows of its matrix] fp32, contiguous
    query_norm, key_norm   [D] fp32, contiguous
    """

    attention_norm: Tensor
    qkv: PackedLinear
    output: PackedLinear
    mlp_norm: Tensor
    gate_up: PackedLinear
    down: PackedLinear
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output_bias: Tensor | None
    post_attention_norm: Tensor | None
    post_mlp_norm: Tensor | None
    gate_up_bias: Tensor | None
    down_bias: Tensor | None


def query_dtype(activations: torch.dtype, cache: Tensor) -> torch.dtype:
    """The dtype in which a layer's queries meet a cache: bf16 on a bf16 cache of a CPU, else that of the activations.

    The dot products of bf16 then take both as they are, see `shared_prefix_attention`.
    """
    return torch.bfloat16 if cache.dtype == torch.bfloat16 and cache.device.type == "cpu" else activations


def has_layer_kernels(weights: LayerParameters) -> bool:
    """True if `decoder_layer` can compute with these weights: on the CPU, in a dtype that its kernels read."""
    packed = (weights.qkv, weights.output, weights.gate_up, weights.down)
    return all(weight.device.type == "cpu" and weight.panels.dtype in _PANEL_DTYPES for weight in packed)


def _parts(weight: PackedLinear) -> tuple[Tensor, Tensor | None, Tensor | None]:
    return weight.panels, weight.scale, weight.sums


def decoder_layer(
    delta: Tensor | None,
    residual: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    plan: AttentionPlan,
    k_cache: Tensor,
    v_cache: Tensor,
    weights: LayerParameters,
    *,
    norm_eps: float,
    scale: float,
    activation: str,
    softcap: float | None = None,
    window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one layer on T rows, on a CPU with the C++ kernels: x = residual + delta; y = x + attention(norm(x)); (mlp(norm(y)), y).

    delta     [T, E]              residual's dtype: what the layer before adds to the residual stream; None before the first
    residual  [T, E]              fp32, bf16 or fp16
    cos, sin  [T, D_rot/2]        fp32
    slots     [T]                 int32, where the rows' keys and values go
    plan                          H, K and D as it was built
    k_cache   [num_slots, K, D]   fp32, bf16 or fp16; written at `slots`
    v_cache   [num_slots, K, D]   k_cache's dtype; written at `slots`
    weights                       see `LayerParameters`
    scale, softcap, window        as in `shared_prefix_attention`
    returns   [T, E], [T, E]      this layer's delta, and the residual stream without it

    Bits are those of rms_norm, linear, rope_append, shared_prefix_attention (queries in `query_dtype`, the result in residual's dtype),
    linear, add_rms_norm, linear, gated_activation and linear, one by one. Cost: theirs, less about 10 us of Python each; activations
    stay in scratch memory that is kept for the next call. Invariant: a row's bits depend on its own path and values only.
    Raises: InputError if shapes, dtypes or the activation disagree; BackendError without the C++ kernels; RuntimeError, naming the
    tensor, for weights that are not packed for this layer on a CPU.
    """
    dims = {"T": plan.num_rows, "K": plan.num_kv_heads, "D": plan.head_dim}
    bind(
        dims,
        residual=(residual, "T E"),
        cos=(cos, "T pairs"),
        sin=(sin, "T pairs"),
        slots=(slots, "T"),
        k_cache=(k_cache, "num_slots K D"),
        v_cache=(v_cache, "num_slots K D"),
    )
    if delta is not None:
        bind(dims, delta=(delta, "T E"))
        check_dtype("delta", delta, (residual.dtype,))
    check_dtype("residual", residual, FLOAT_DTYPES[:3])
    if plan.num_slots > dims["num_slots"]:
        raise InputError(f"plan: expected slots below num_slots={dims['num_slots']} of the caches, got {plan.num_slots - 1}")
    if activation not in ACTIVATIONS:
        raise InputError(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return cpu_ops().decoder_layer(  # type: ignore[no-any-return] # torch.ops is untyped
        None if delta is None else delta.contiguous(),
        residual.contiguous(),
        cos,
        sin,
        slots,
        k_cache,
        v_cache,
        plan.nodes,
        plan.node_slots,
        plan.rows,
        plan.num_nodes,
        weights.attention_norm,
        *_parts(weights.qkv),
        weights.qkv_bias,
        weights.query_norm,
        weights.key_norm,
        *_parts(weights.output),
        weights.output_bias,
        weights.post_attention_norm,
        weights.mlp_norm,
        *_parts(weights.gate_up),
        weights.gate_up_bias,
        *_parts(weights.down),
        weights.down_bias,
        weights.post_mlp_norm,
        plan.num_heads,
        plan.num_kv_heads,
        plan.head_dim,
        weights.down.shape[1],
        norm_eps,
        scale,
        softcap or 0.0,
        window or 0,
        ACTIVATIONS.index(activation),
        query_dtype(residual.dtype, k_cache),
    )

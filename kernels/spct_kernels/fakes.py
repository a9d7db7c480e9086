"""Fake (meta) implementations of the C++ ops, so that `torch.compile` and exporters can trace them: shapes only, no values."""

from __future__ import annotations

import torch
from torch import Tensor

from spct_kernels.dispatch import has_cpu_kernels


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def _add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


def _gated_activation(gate_up: Tensor, kind: int) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


def _rope_append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    norm_eps: float,
    q_dtype: torch.dtype | None = None,
) -> Tensor:
    return qkv.new_empty((qkv.shape[0], num_heads, head_dim), dtype=q_dtype or qkv.dtype)


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None, outputs: int) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


def _shared_prefix_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    nodes: Tensor,
    node_slots: Tensor,
    rows: Tensor,
    num_nodes: int,
    scale: float,
    softcap: float,
    window: int,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    out = q.new_empty((q.shape[0], q.shape[1], v_cache.shape[2]), dtype=out_dtype or q.dtype)
    return out, q.new_empty((q.shape[0], q.shape[1]), dtype=torch.float32)


def _decoder_layer(delta: Tensor | None, residual: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return torch.empty_like(residual), torch.empty_like(residual)


if has_cpu_kernels():
    for _name, _fake in (
        ("rms_norm", _rms_norm),
        ("add_rms_norm", _add_rms_norm),
        ("gated_activation", _gated_activation),
        ("rope_append", _rope_append),
        ("linear", _linear),
        ("shared_prefix_attention", _shared_prefix_attention),
        ("decoder_layer", _decoder_layer),
    ):
        torch.library.register_fake(f"spct::{_name}", _fake)

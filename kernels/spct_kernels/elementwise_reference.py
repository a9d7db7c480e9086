"""The `reference` backend of the small ops: plain torch on any device; fp32 arithmetic, or fp64 where the inputs are fp64."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def _wide(x: Tensor) -> Tensor:
    """fp32, or fp64 as it is."""
    return x if x.dtype == torch.float64 else x.float()


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last dimension, in x's (wide) dtype."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019); see `rms_norm`."""
    return _normalised(_wide(x), weight, eps).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(norm of x + residual, x + residual); see `add_rms_norm`."""
    total = (_wide(x) + _wide(residual)).to(x.dtype)
    return rms_norm_reference(total, weight, eps), total


def gated_activation_reference(gate_up: Tensor, kind: str) -> Tensor:
    """act(gate) * up; see `gated_activation`."""
    gate, up = _wide(gate_up).chunk(2, dim=-1)
    if kind == "silu":
        active = F.silu(gate)
    elif kind == "gelu_tanh":
        active = F.gelu(gate, approximate="tanh")
    else:
        active = 0.5 * gate * torch.special.erfc(-gate * math.sqrt(0.5))  # F.gelu's 1 + erf cancels in the lower tail
    return (active * up).to(gate_up.dtype)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation (`rotate_half`) of the first 2 * cos.shape[-1] dimensions of [T, heads, D]."""
    pairs = cos.shape[-1]
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    c, s = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    return torch.cat((first * c - second * s, second * c + first * s, rest), dim=-1)


def rope_append_reference(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    norm_eps: float,
    q_dtype: torch.dtype | None = None,
) -> Tensor:
    """Splits, norms, rotates, writes k and v into the caches; see `rope_append`."""
    heads = _wide(qkv).view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = torch.split(heads, [num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_norm is not None and k_norm is not None:
        q, k = _normalised(q, q_norm, norm_eps), _normalised(k, k_norm, norm_eps)
    where = slots.long()
    k_cache[where] = _rotated(k, cos, sin).to(k_cache.dtype)
    v_cache[where] = v.to(v_cache.dtype)
    return _rotated(q, cos, sin).to(q_dtype or qkv.dtype)

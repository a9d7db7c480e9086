"""Rotary position embedding: frequencies of each scaling rule, and the cos/sin rows of a batch.

The rules and their fp32 order of operations follow Hugging Face transformers, so that positions far beyond the
trained context round the same way: RoPE (Su et al. 2021), linear position interpolation (Chen et al. 2023), YaRN (Peng et
al. 2023) and the wavelength-dependent rule of Llama 3.1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from spct.layers.spec import RopeSpec


def inverse_frequencies(spec: RopeSpec) -> Tensor:
    """Angle per position of each rotated pair.

    returns   [rotary_dim / 2] fp32, radians per token
    """
    dim = spec.rotary_dim
    plain = 1.0 / (spec.theta ** (torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim))
    if spec.kind == "linear":
        return plain / spec.factor
    if spec.kind == "llama3":
        return _llama3(spec, plain)
    if spec.kind == "yarn":
        return _yarn(spec)
    return plain


def _llama3(spec: RopeSpec, plain: Tensor) -> Tensor:
    """Long wavelengths are interpolated, short ones kept, those between blended linearly in 1 / wavelength."""
    long_wave = spec.original_context / spec.low_freq_factor
    short_wave = spec.original_context / spec.high_freq_factor
    wave = 2 * math.pi / plain
    scaled = torch.where(wave > long_wave, plain / spec.factor, plain)
    blend = (spec.original_context / wave - spec.low_freq_factor) / (spec.high_freq_factor - spec.low_freq_factor)
    blended = (1 - blend) * scaled / spec.factor + blend * scaled
    between = ~(wave < short_wave) & ~(wave > long_wave)
    return torch.where(between, blended, scaled)


def _yarn(spec: RopeSpec) -> Tensor:
    """Dimensions that turn often within the original context keep their frequency, slow ones are interpolated."""
    dim = spec.rotary_dim

    def dimension_of(rotations: float) -> float:
        return (dim * math.log(spec.original_context / (rotations * 2 * math.pi))) / (2 * math.log(spec.theta))

    low, high = dimension_of(spec.beta_fast), dimension_of(spec.beta_slow)
    if spec.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # the ramp's width is a divisor
    ramp = torch.clamp((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low), 0, 1)
    keep = 1 - ramp
    waves = spec.theta ** (torch.arange(0, dim, 2).to(torch.float32) / dim)
    return (1.0 / (spec.factor * waves)) * (1 - keep) + (1.0 / waves) * keep


def yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    """The temperature of YaRN, 0.1 ln(factor) + 1, or a ratio of two such where both `mscale` values are given."""

    def scale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if mscale and mscale_all_dim:
        return scale(mscale) / scale(mscale_all_dim)
    return scale(1.0)


def rotation(positions: Tensor, frequencies: Tensor, attention_factor: float) -> tuple[Tensor, Tensor]:
    """The cos and sin rows of a batch, computed once and used by every layer of one rope.

    positions     [T] int64, counted from 0 along the path from the root
    frequencies   [rotary_dim / 2] fp32
    returns       cos, sin: [T, rotary_dim / 2] fp32, multiplied by `attention_factor`
    """
    angles = positions[:, None].to(torch.float32) * frequencies
    cos, sin = angles.cos(), angles.sin()
    if attention_factor != 1.0:
        cos, sin = cos * attention_factor, sin * attention_factor
    return cos, sin

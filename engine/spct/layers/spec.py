"""The parts of a decoder layer as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu", "gelu_tanh"]
RopeKind = Literal["default", "linear", "llama3", "yarn"]


@dataclass(frozen=True)
class RopeSpec:
    """Rotary embedding of one layer type: half-split pairs (i, i + rotary_dim / 2) over the first `rotary_dim` dimensions.

    theta             base of the wavelengths
    factor            context extension ("linear", "llama3", "yarn")
    original_context  context before the extension ("llama3", "yarn")
    low_freq_factor, high_freq_factor   "llama3": wavelengths between original_context / high and / low are blended
    beta_fast, beta_slow, truncate      "yarn": the ramp between extrapolated and interpolated dimensions
    attention_factor  multiplies cos and sin, so that it enters the scores squared ("yarn"; 1.0 elsewhere)
    """

    rotary_dim: int
    theta: float = 10000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


@dataclass(frozen=True)
class KVLayout:
    """What one layer keeps of a token, and how far back its queries look.

    window   a query at position p sees the positions above p - window; None: all of them
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def elements_per_token(self) -> int:
        """Numbers stored for one token: keys and values of every KV head."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True)
class MLPSpec:
    """A gated feed-forward: down(activation(gate(x)) * up(x))."""

    intermediate_dim: int
    activation: Activation = "silu"
    bias: bool = False


@dataclass(frozen=True)
class LayerSpec:
    """One decoder layer.

    rope   index into `ModelSpec.ropes`
    """

    kv: KVLayout
    mlp: MLPSpec
    rope: int = 0

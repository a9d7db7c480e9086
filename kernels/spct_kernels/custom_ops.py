"""The Triton backend as torch custom ops `torch.ops.spct_triton.*`: tensors and numbers only, each op one node of a graph.

Two ways to them. Under `torch.compile` (fullgraph, too) the public functions become them by themselves: compile what calls
`spct_kernels.linear` or `fused_sample`, nothing else is to be done; a plan has to have run once before, since its work list is made on
the host. Serving layers that register ops of their own call them directly, with what the public functions hand to the backend after
their checks: contiguous tensors, and the parts of a plan or of a packed weight. Called eagerly the public functions go round torch's
dispatcher. Triton is imported when an op first runs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spct_kernels.dispatch import triton_kernels
from spct_kernels.linear import PackedLinear
from spct_kernels.sample_reference import Draw

_SCHEMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int8: "int8", torch.float8_e4m3fn: "fp8"}


@torch.library.custom_op("spct_triton::rms_norm", mutates_args=())
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `spct_kernels.rms_norm`: x [T, E], weight [E]."""
    return triton_kernels("elementwise").rms_norm(x, weight, eps)  # type: ignore[no-any-return] # imported by name, here and below


@rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("spct_triton::add_rms_norm", mutates_args=())
def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `spct_kernels.add_rms_norm`: x and residual [T, E], weight [E]."""
    return triton_kernels("elementwise").add_rms_norm(x, residual, weight, eps)  # type: ignore[no-any-return]


@add_rms_norm.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@torch.library.custom_op("spct_triton::gated_activation", mutates_args=())
def gated_activation(gate_up: Tensor, kind: str) -> Tensor:
    """As `spct_kernels.gated_activation`: gate_up [T, 2I]."""
    return triton_kernels("elementwise").gated_activation(gate_up, kind)  # type: ignore[no-any-return]


@gated_activation.register_fake
def _(gate_up: Tensor, kind: str) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


@torch.library.custom_op("spct_triton::rope_append", mutates_args=("k_cache", "v_cache"))
def rope_append(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    """As `spct_kernels.rope_append`: qkv [T, (H+2K)*D], cos and sin [T, D/2], slots [T]; writes k_cache and v_cache; q_norm, k_norm [D]."""
    return triton_kernels("rope_append").rope_append(  # type: ignore[no-any-return]
        qkv, cos, sin, slots, k_cache, v_cache, num_heads, num_kv_heads, head_dim, q_norm, k_norm, norm_eps
    )


@rope_append.register_fake
def _(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
) -> Tensor:
    return qkv.new_empty((qkv.shape[0], num_heads, head_dim))


@torch.library.custom_op("spct_triton::linear", mutates_args=())
def linear(x: Tensor, panels: Tensor, outputs: int, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """As `spct_kernels.linear`: x [T, I]; panels and scale are those of a `PackedLinear`; bias [O] fp32."""
    weight = PackedLinear(panels, _SCHEMES[panels.dtype], (outputs, panels.shape[1]), scale=scale)
    return triton_kernels("linear").linear(x, weight, bias)  # type: ignore[no-any-return]


@linear.register_fake
def _(x: Tensor, panels: Tensor, outputs: int, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    return x.new_empty((x.shape[0], outputs))


@dataclass(frozen=True, slots=True)
class _GivenWork:
    """A work list from an op's arguments."""

    items: Tensor
    segments: Tensor
    steps: Tensor
    tile_slots: Tensor
    row_splits: Tensor
    rows_per_tile: int
    num_items: int
    num_partials: int
    folds: bool
    guards: bool
    merges: bool

    @property
    def block_keys(self) -> int:
        return self.tile_slots.shape[1]


@torch.library.custom_op("spct_triton::shared_prefix_attention", mutates_args=())
def shared_prefix_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    items: Tensor,
    segments: Tensor,
    steps: Tensor,
    tile_slots: Tensor,
    row_splits: Tensor,
    row_position: Tensor,
    rows_per_tile: int,
    num_items: int,
    num_partials: int,
    folds: bool,
    guards: bool,
    merges: bool,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `spct_kernels.shared_prefix_attention` with return_lse: q [T, H, D], k_cache and v_cache [num_slots, K, D], k_scale, v_scale.

    items, segments, steps, tile_slots, row_splits and the numbers behind them are the attributes of `triton_attention.work_of(q, k_cache,
    v_cache, plan)`; row_position is `plan.rows[1]`.
    """
    work = _GivenWork(items, segments, steps, tile_slots, row_splits, rows_per_tile, num_items, num_partials, folds, guards, merges)
    return triton_kernels("attention").attend(  # type: ignore[no-any-return]
        q, k_cache, v_cache, work, row_position, scale=scale, softcap=softcap, window=window, k_scale=k_scale, v_scale=v_scale
    )


@shared_prefix_attention.register_fake
def _(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    items: Tensor,
    segments: Tensor,
    steps: Tensor,
    tile_slots: Tensor,
    row_splits: Tensor,
    row_position: Tensor,
    rows_per_tile: int,
    num_items: int,
    num_partials: int,
    folds: bool,
    guards: bool,
    merges: bool,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    return q.new_empty((q.shape[0], q.shape[1], v_cache.shape[2])), q.new_empty(q.shape[:2], dtype=torch.float32)


def _head_of(lm_head: Tensor, vocabulary: int) -> Tensor | PackedLinear:
    """A matrix [V, E] as it is, panels [ceil(V/P), E, P] as what they are the parts of."""
    if lm_head.dim() == 2:
        return lm_head
    return PackedLinear(lm_head, _SCHEMES[lm_head.dtype], (vocabulary, lm_head.shape[1]))


@torch.library.custom_op("spct_triton::fused_sample", mutates_args=())
def fused_sample(
    hidden: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    lm_head: Tensor,
    vocabulary: int,
    softcap: float | None,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    meta_weight: Tensor | None = None,
    meta_bias: float = 0.0,
    allowed_offsets: Tensor | None = None,
    allowed_ids: Tensor | None = None,
    banned_offsets: Tensor | None = None,
    banned_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `spct_kernels.fused_sample`: (token, logprob, meta), meta empty without meta_weight.

    hidden [T, E], norm_weight [E], lm_head [V, E] or the panels of a `PackedLinear`, vocabulary V; temperature, top_p, min_p [T] fp32,
    top_k [T] int32, seed and position [T] int64; meta_weight [E]; allowed_offsets, banned_offsets [T+1] int64; allowed_ids, banned_ids
    int32
    """
    draw = Draw(temperature, top_k, top_p, min_p, seed, position)
    allowed = None if allowed_offsets is None or allowed_ids is None else (allowed_offsets, allowed_ids)
    banned = None if banned_offsets is None or banned_ids is None else (banned_offsets, banned_ids)
    head = (hidden, norm_weight, norm_eps, _head_of(lm_head, vocabulary), softcap)
    token, logprob, meta = triton_kernels("sample").fused_sample_triton(head, draw, meta_weight, meta_bias, allowed, banned)
    return token, logprob, logprob.new_empty(0) if meta is None else meta


@fused_sample.register_fake
def _(
    hidden: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    lm_head: Tensor,
    vocabulary: int,
    softcap: float | None,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    meta_weight: Tensor | None = None,
    meta_bias: float = 0.0,
    allowed_offsets: Tensor | None = None,
    allowed_ids: Tensor | None = None,
    banned_offsets: Tensor | None = None,
    banned_ids: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = hidden.shape[0]
    logprob = hidden.new_empty(rows, dtype=torch.float32)
    return hidden.new_empty(rows, dtype=torch.int64), logprob, logprob.new_empty(0 if meta_weight is None else rows)


@torch.library.custom_op("spct_triton::token_logits", mutates_args=())
def token_logits(
    hidden: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    lm_head: Tensor,
    vocabulary: int,
    softcap: float | None,
    offsets: Tensor,
    token_ids: Tensor,
) -> Tensor:
    """As `spct_kernels.token_logits`: hidden [T, E], norm_weight [E], lm_head and vocabulary as in `fused_sample`.

    offsets [T+1] int64, token_ids [N] int32
    """
    head = (hidden, norm_weight, norm_eps, _head_of(lm_head, vocabulary), softcap)
    return triton_kernels("sample").token_logits_triton(head, (offsets, token_ids))  # type: ignore[no-any-return]


@token_logits.register_fake
def _(
    hidden: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    lm_head: Tensor,
    vocabulary: int,
    softcap: float | None,
    offsets: Tensor,
    token_ids: Tensor,
) -> Tensor:
    return hidden.new_empty(token_ids.shape[0], dtype=torch.float32)

"""Shared-prefix attention: every node's keys and values are read once for all the rows below it."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from spct_kernels.attention_reference import shared_prefix_attention_reference
from spct_kernels.checks import FLOAT_DTYPES, bind, check_dtype
from spct_kernels.dispatch import cpu_ops, resolve, triton_kernels
from spct_kernels.errors import InputError
from spct_kernels.plan import AttentionPlan

_CACHE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.float64)


@overload
def shared_prefix_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None = ...,
    window: int | None = ...,
    k_scale: Tensor | None = ...,
    v_scale: Tensor | None = ...,
    return_lse: Literal[False] = ...,
    out_dtype: torch.dtype | None = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def shared_prefix_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None = ...,
    window: int | None = ...,
    k_scale: Tensor | None = ...,
    v_scale: Tensor | None = ...,
    return_lse: Literal[True],
    out_dtype: torch.dtype | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
def shared_prefix_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    return_lse: bool = False,
    out_dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every row over its path in the plan's tree: one rule for decode, extend and prefill.

    q        [T, H, D]           fp32, bf16 or fp16; D a multiple of 16 from 16 to 256
    k_cache  [num_slots, K, D]   fp32, bf16, fp16 or int8
    v_cache  [num_slots, K, Dv]  k_cache's dtype; Dv a multiple of 16
    plan                         the tree and each row's node and position; H, K and D as it was built
    scale                        of the scores q.k
    softcap                      scores become softcap * tanh(scores / softcap); None: as they are
    window                       a row sees positions p with row_position - p < window; None: all up to its own
    k_scale  [K] or [num_slots, K] fp32, or None   what stored keys are multiplied by; needed for int8
    v_scale  the same for values
    out_dtype                    of the result; None: q's
    returns  [T, H, Dv] in out_dtype, or (that, lse [T, H] fp32: natural log of the sum of e^score, -inf where nothing is seen)

    A row that sees nothing gives zeros. Slots that no row sees may hold anything, NaN included. Arithmetic is fp32; where q and
    the caches are bf16, products may take bf16 operands (q, k, v and the rounded e^(score - max)) with fp32 sums: the C++ kernels
    do so at the CPU levels avx512bf16 and amx.
    Cost: each node's keys and values read once for all rows below it; 2*H*(D+Dv) FLOPs per row and key seen. Invariant: a row's
    bits depend on its own path, position and values, and on the layer's shape; not on the other rows, the threads, how the path
    is cut into nodes, or in how many calls a prefill came.
    Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867).
    Raises: InputError if shapes, dtypes, devices or the plan disagree; BackendError if the backend is missing.
    """
    dims = {"T": plan.num_rows, "H": plan.num_heads, "K": plan.num_kv_heads, "D": plan.head_dim}
    bind(dims, q=(q, "T H D"), k_cache=(k_cache, "num_slots K D"), v_cache=(v_cache, "num_slots K Dv"))
    _check(q, k_cache, v_cache, plan, dims, window, softcap, (k_scale, v_scale))
    if out_dtype is not None and out_dtype not in FLOAT_DTYPES:
        raise InputError(f"out_dtype: expected a floating-point dtype or None, got {out_dtype}")
    out_dtype = q.dtype if out_dtype is None else out_dtype
    chosen = resolve(backend, q.device, q.dtype)
    if chosen == "reference":
        # Queries as wide as the result, so that it is rounded once; the arithmetic is fp32 or fp64 either way.
        wide = q.to(torch.promote_types(q.dtype, out_dtype))
        out, lse = shared_prefix_attention_reference(
            wide, k_cache, v_cache, plan, scale=scale, softcap=softcap, window=window, k_scale=k_scale, v_scale=v_scale
        )
    elif chosen == "triton":
        out, lse = triton_kernels("attention").shared_prefix_attention(
            q.contiguous(), k_cache, v_cache, plan, scale=scale, softcap=softcap, window=window, k_scale=k_scale, v_scale=v_scale
        )
    else:
        out, lse = cpu_ops().shared_prefix_attention(
            q.contiguous(),
            k_cache,
            v_cache,
            plan.nodes,
            plan.node_slots,
            plan.rows,
            plan.num_nodes,
            scale,
            softcap or 0.0,
            window or 0,
            None if k_scale is None else k_scale.float().contiguous(),
            None if v_scale is None else v_scale.float().contiguous(),
            out_dtype,
        )
    out = out.to(out_dtype)
    return (out, lse) if return_lse else out


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    dims: dict[str, int],
    window: int | None,
    softcap: float | None,
    scales: tuple[Tensor | None, Tensor | None],
) -> None:
    """What `bind` can't say: dtypes, dims, the plan's slots, options."""
    check_dtype("q", q, FLOAT_DTYPES)
    check_dtype("k_cache", k_cache, _CACHE_DTYPES)
    check_dtype("v_cache", v_cache, (k_cache.dtype,))
    if dims["Dv"] % 16 or not 16 <= dims["Dv"] <= 256:
        raise InputError(f"v_cache: expected a value dim that is a multiple of 16 from 16 to 256, got {dims['Dv']}")
    if plan.num_slots > dims["num_slots"]:
        raise InputError(f"plan: expected slots below num_slots={dims['num_slots']} of the caches, got {plan.num_slots - 1}")
    if plan.device != q.device:
        raise InputError(f"plan: expected on q's device {q.device}, got {plan.device}; build it with device=q.device")
    if k_cache.stride(2) != 1 or v_cache.stride(2) != 1:
        raise InputError(f"k_cache, v_cache: expected unit stride in the last dimension, got {k_cache.stride(2)}, {v_cache.stride(2)}")
    if window is not None and window < 1:
        raise InputError(f"window: expected at least 1, or None for no window, got {window}")
    if softcap is not None and not softcap > 0:
        raise InputError(f"softcap: expected a positive number, or None for no cap, got {softcap}")
    for name, scale in zip(("k_scale", "v_scale"), scales, strict=True):
        if scale is not None:
            bind(dims, **{name: (scale, "K" if scale.dim() == 1 else "num_slots K")})
        elif k_cache.dtype == torch.int8:
            raise InputError(f"{name}: expected a scale [K] or [num_slots, K] for an int8 cache, got None")

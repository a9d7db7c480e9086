"""The `triton` backend of shared-prefix attention: a program for each item of the plan's work list and KV head, then a small merge.

Maths (Milakov and Gimelshein 2018, arXiv 1805.02867; Dao 2023, arXiv 2307.08691), in base 2: with scores s, a state (m, l, a) =
(max s, sum 2^(s-m), sum 2^(s-m) v) takes the next tile's or split's state by rescaling both to the larger m; the output is a / l and
the natural log-sum-exp is (m + log2 l) ln 2. Which states are folded in which order: `triton_attention_plan`. The reference is in
`attention_reference`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spct_kernels.plan import AttentionPlan
from spct_kernels.triton_attention_kernel import attention_kernel
from spct_kernels.triton_attention_merge import merge_kernel
from spct_kernels.triton_attention_options import Shape, compile_options, options_of_work, tile_options
from spct_kernels.triton_attention_plan import Work
from spct_kernels.triton_common import COMPILE, check_runnable, next_power_of_2, target

_LOG2_E = 1.4426950408889634


def shared_prefix_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: AttentionPlan,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) of `spct_kernels.shared_prefix_attention`, of contiguous q."""
    work = work_of(q, k_cache, v_cache, plan) if plan.num_rows else None
    return attend(
        q, k_cache, v_cache, work, plan.rows[1], scale=scale, softcap=softcap, window=window, k_scale=k_scale, v_scale=v_scale
    )  # fmt: skip


def work_of(q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan) -> Work:
    """The plan's work list for the tiles of these tensors."""
    shape = _shape_of(q, k_cache, v_cache)
    options = tile_options(shape, q.device, plan.num_rows, plan.deterministic)
    return plan.work(options.block_n, options.rows_per_tile(shape.group), options.fold)


def _shape_of(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Shape:
    return Shape(q.shape[1] // k_cache.shape[1], q.shape[2], v_cache.shape[2], q.dtype, k_cache.dtype)


def attend(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    work: Work | None,
    row_position: Tensor,
    *,
    scale: float,
    softcap: float | None,
    window: int | None,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """(out, lse) from a work list that `work_of` gave for tensors of these shapes; None where there is no row."""
    if torch.compiler.is_compiling() and work is not None:
        return torch.ops.spct_triton.shared_prefix_attention(  # type: ignore[no-any-return] # torch.ops is untyped
            q, k_cache, v_cache, work.items, work.segments, work.steps, work.tile_slots, work.row_splits, row_position,
            work.rows_per_tile, work.num_items, work.num_partials, work.folds, work.guards, work.merges,
            scale, softcap, window, k_scale, v_scale,
        )  # fmt: skip
    check_runnable(q, attention_kernel)
    num_rows, num_heads, key_dim = q.shape
    num_kv_heads, value_dim = v_cache.shape[1:]
    out = torch.empty((num_rows, num_heads, value_dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((num_rows, num_heads), dtype=torch.float32, device=q.device)
    if num_rows == 0 or work is None:
        return out, lse
    shape = _shape_of(q, k_cache, v_cache)
    options = options_of_work(shape, q.device, work.block_keys, work.rows_per_tile)
    partial = torch.empty((work.num_partials if work.merges else 0, num_heads, value_dim), dtype=torch.float32, device=q.device)
    partial_state = torch.empty((*partial.shape[:2], 2), dtype=torch.float32, device=q.device)
    layout: dict[str, Any] = {"VALUE_DIM": value_dim, "BLOCK_DV": next_power_of_2(value_dim)}
    if work.num_items:
        heads = min(shape.group, options.block_m)
        grid = (work.num_items, num_kv_heads * -(-shape.group // heads))
        kept_size = 2 * options.block_m * layout["BLOCK_DV"] if work.folds else 0
        kept = torch.empty((grid[0] * grid[1], kept_size), dtype=torch.float32, device=q.device)
        scales, scaled = _scales(k_scale, v_scale, k_cache)
        attention_kernel[grid](
            q,
            k_cache,
            v_cache,
            *scales,
            work.items,
            work.segments,
            work.steps,
            work.tile_slots,
            row_position,
            work.row_splits[0],
            work.row_splits[1],
            out,
            lse,
            partial,
            partial_state,
            kept,
            *k_cache.stride()[:2],
            *v_cache.stride()[:2],
            scale / softcap if softcap else scale * _LOG2_E,
            (softcap or 0.0) * _LOG2_E,
            window or 0,
            NUM_KV_HEADS=num_kv_heads,
            GROUP=shape.group,
            HEADS=heads,
            KEY_DIM=key_dim,
            SOFTCAP=softcap is not None,
            WINDOW=window is not None,
            SCALED=scaled,
            FOLD=work.folds,
            GUARD=work.guards,
            WIDE=shape.wide,
            BLOCK_M=options.block_m,
            BLOCK_N=options.block_n,
            BLOCK_D=next_power_of_2(key_dim),
            num_warps=options.num_warps,
            num_stages=options.stages(work.folds),
            **compile_options(shape, target(q.device)),
            **layout,
            **COMPILE,
        )
    if work.merges:
        merge_kernel[(num_rows, num_heads)](
            work.row_splits[0], work.row_splits[1], partial, partial_state, out, lse, num_heads, **layout, num_warps=1, **COMPILE
        )
    return out, lse


def _scales(k_scale: Tensor | None, v_scale: Tensor | None, cache: Tensor) -> tuple[tuple[Tensor, Tensor], int]:
    """Both scales in one form, and which: 0 none, 1 [K], 2 [num_slots, K]. A missing one beside the other is ones."""
    if k_scale is None and v_scale is None:
        return (cache, cache), 0
    per_slot = any(scale is not None and scale.dim() == 2 for scale in (k_scale, v_scale))
    shape = cache.shape[:2] if per_slot else cache.shape[1:2]
    given = [torch.ones(1, device=cache.device) if scale is None else scale.float() for scale in (k_scale, v_scale)]
    both = [scale.expand(shape).contiguous() for scale in given]
    return (both[0], both[1]), 2 if per_slot else 1

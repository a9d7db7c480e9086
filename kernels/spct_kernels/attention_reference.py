"""The `reference` backend of shared-prefix attention: per node, gather the path and attend densely; fp32, or fp64 for fp64 queries."""

from __future__ import annotations

import torch
from torch import Tensor

from spct_kernels.plan import AttentionPlan


def _paths(plan: AttentionPlan) -> list[Tensor]:
    """For each node, the slots from its root down to it."""
    offset, parent = plan.nodes[0].tolist(), plan.nodes[1].tolist()
    paths: list[Tensor] = []
    for node in range(plan.num_nodes):
        own = plan.node_slots[offset[node] : offset[node + 1]].long()
        paths.append(own if parent[node] < 0 else torch.cat((paths[parent[node]], own)))
    return paths


def _gather(cache: Tensor, slots: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Entries [S, K, dim] of a cache in the wide dtype, scaled per head [K] or per slot and head [num_slots, K]."""
    values = cache[slots].to(dtype)
    if scale is None:
        return values
    return values * (scale if scale.dim() == 1 else scale[slots]).to(dtype)[..., None]


def _attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Dense attention of rows [T, K, G, D] over keys [S, K, D]; seen [T, S]. Gives ([T, K, G, Dv], [T, K, G])."""
    scores = torch.einsum("tkgd,skd->tkgs", q, k) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = scores.masked_fill(~seen[:, None, None, :], -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None])
    return torch.einsum("tkgs,skd->tkgd", weights, v), lse


def shared_prefix_attention_reference(
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
) -> tuple[Tensor, Tensor]:
    """(out [T, H, Dv] in q's dtype, lse [T, H]); see `shared_prefix_attention`."""
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads, value_dim = v_cache.shape[1:]
    dtype = q.dtype if q.dtype == torch.float64 else torch.float32
    queries = q.to(dtype).view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    out = torch.zeros((*queries.shape[:3], value_dim), dtype=dtype, device=q.device)
    lse = torch.full(queries.shape[:3], -torch.inf, dtype=dtype, device=q.device)
    row_node, row_position = plan.rows[0, :num_rows], plan.rows[1, :num_rows].long()
    for node, slots in enumerate(_paths(plan)):
        rows = torch.nonzero(row_node == node).flatten()
        if len(rows) == 0 or len(slots) == 0:
            continue
        distance = row_position[rows, None] - torch.arange(len(slots), device=q.device)
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        unseen = ~seen.any(0)
        k = _gather(k_cache, slots, k_scale, dtype).masked_fill_(unseen[:, None, None], 0.0)
        v = _gather(v_cache, slots, v_scale, dtype).masked_fill_(unseen[:, None, None], 0.0)
        # A value that one row sees and another does not may be NaN or Inf: then 0 * v would reach the other, so one row at a time.
        groups = [slice(None)] if bool(v.isfinite().all()) else [slice(row, row + 1) for row in range(len(rows))]
        for group in groups:
            visible = torch.nonzero(seen[group].any(0)).flatten()
            result = _attend(queries[rows[group]], k[visible], v[visible], seen[group][:, visible], scale, softcap)
            out[rows[group]], lse[rows[group]] = result
    return out.reshape(num_rows, num_heads, value_dim).to(q.dtype), lse.reshape(num_rows, num_heads)

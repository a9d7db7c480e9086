"""The differentiable model: a transformers decoder whose attention follows the packed layout.

The prompt attends to itself causally; every demonstration attends to its prompt and, causally, to itself. So no score is computed
between siblings, and a prompt is computed once for all of its demonstrations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from spct.training.packing import IGNORED, Packed

ATTENTION = "spct_packed"
# Scores of a layer (16 MB in fp32) up to which they are written down.
_MAX_SCORES = 4 * 1024 * 1024


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_prompt_len: int = 0,
    packed_group: int = 1,
    packed_mask: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend within the packed layout.

    query         [B, H, L, D], L = P + G*C
    key, value    [B, K, L, D]
    packed_mask   [B*G, 1, C, P + C] bool, what each token of a demonstration sees
    returns       [B, L, H, D]
    """
    rows, heads, length, dim = query.shape
    own_len = (length - packed_prompt_len) // packed_group
    scale = dim**-0.5 if scaling is None else scaling
    layout = _Layout(rows, heads // key.shape[1], key.shape[1], packed_prompt_len, packed_group, own_len, dim)
    num_scores = rows * heads * packed_group * own_len * (packed_prompt_len + own_len)
    attend = _attend_explicitly if num_scores <= _MAX_SCORES else _attend_fused
    return attend(layout, query, key, value, packed_mask, scale).transpose(1, 2).contiguous(), None


class _Layout(NamedTuple):
    """Sizes of a packed batch: B rows, H = K * heads_per_kv query heads, P prompt tokens, G demonstrations of C tokens, head dim D."""

    rows: int
    heads_per_kv: int
    kv_heads: int
    prompt_len: int
    group: int
    own_len: int
    dim: int


def _attend_explicitly(at: _Layout, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Small batches: plain matrix products, the prompt's keys and values never repeated; [B, H, L, D].

    On a CPU the fused attention's backward pass took a third of a training step: 1.27 times this one's step time (docs/LOG.md).
    """
    b, r, k, p, g, c, d = at.rows, at.heads_per_kv, at.kv_heads, at.prompt_len, at.group, at.own_len, at.dim
    query = (query * scale).view(b, k, r, p + g * c, d)
    key_prompt, value_prompt = key[:, :, :p], value[:, :, :p]
    future = torch.full((p, p), float("-inf"), device=query.device).triu(1)
    scores = (query[:, :, :, :p].reshape(b, k, r * p, d) @ key_prompt.mT).view(b, k, r, p, p)
    weights = torch.softmax(scores.float() + future, -1).to(value.dtype)
    prompt = (weights.view(b, k, r * p, p) @ value_prompt).view(b, k, r, p, d)

    own_query = query[:, :, :, p:].reshape(b, k, r, g, c, d)
    own_key, own_value = (x[:, :, p:].reshape(b, k, 1, g, c, d) for x in (key, value))
    on_prompt = (own_query.reshape(b, k, r * g * c, d) @ key_prompt.mT).view(b, k, r, g, c, p)
    scores = torch.cat([on_prompt, own_query @ own_key.mT], -1).float()
    if mask is not None:
        scores = scores.masked_fill(~mask.view(b, 1, 1, g, c, p + c), float("-inf"))
    weights = torch.softmax(scores, -1).to(value.dtype)
    own = (weights[..., :p].reshape(b, k, r * g * c, p) @ value_prompt).view(b, k, r, g, c, d) + weights[..., p:] @ own_value
    return torch.cat([prompt, own.view(b, k, r, g * c, d)], 3).view(b, k * r, p + g * c, d)


def _attend_fused(at: _Layout, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Large batches: torch's fused attention, which keeps no scores; [B, H, L, D]."""
    p, g, c = at.prompt_len, at.group, at.own_len
    key, value = key.repeat_interleave(at.heads_per_kv, 1), value.repeat_interleave(at.heads_per_kv, 1)
    prompt = F.scaled_dot_product_attention(query[:, :, :p], key[:, :, :p], value[:, :, :p], is_causal=True, scale=scale)

    def demonstrations(x: Tensor) -> Tensor:
        return x[:, :, p:].reshape(at.rows, -1, g, c, at.dim).transpose(1, 2)

    def with_prompt(x: Tensor) -> Tensor:
        shared = x[:, None, :, :p].expand(-1, g, -1, -1, -1)
        return torch.cat([shared, demonstrations(x)], 3).flatten(0, 1)

    own = F.scaled_dot_product_attention(
        demonstrations(query).flatten(0, 1), with_prompt(key), with_prompt(value), attn_mask=mask, scale=scale
    )
    own = own.reshape(at.rows, g, -1, c, at.dim).transpose(1, 2).reshape(at.rows, -1, g * c, at.dim)
    return torch.cat([prompt, own], 2)


AttentionInterface.register(ATTENTION, packed_attention)


def packed_loss(model: Any, batch: Packed, prompt_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss to minimise summed over tokens, summed loss of the demonstrations, number of their tokens).

    The first token of a demonstration is predicted by the last token of its prompt, once for every demonstration.
    """
    head_len, group = batch.prompt_len, batch.group
    rows = batch.token_ids.shape[0]
    length = (batch.token_ids.shape[1] - head_len) // group
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.cat([batch.prompt_mask[:, None, :].expand(-1, length, -1), causal.expand(rows, -1, -1)], 2)
    hidden = model.model(
        input_ids=batch.token_ids,
        position_ids=batch.positions,
        use_cache=False,
        packed_prompt_len=head_len,
        packed_group=group,
        packed_mask=mask.repeat_interleave(group, 0)[:, None],
    ).last_hidden_state
    last = batch.prompt_mask.sum(1) - 1
    first_targets = batch.token_ids[:, head_len::length] if length else batch.token_ids[:, :0]
    first_hidden = hidden[torch.arange(rows), last][:, None].expand(-1, group, -1)
    own_targets = batch.targets[:, head_len:]
    shown = own_targets != IGNORED
    own_hidden = torch.cat([hidden[:, head_len:][shown], first_hidden.flatten(0, 1)])
    own_wanted = torch.cat([own_targets[shown], first_targets.flatten()])
    own = F.cross_entropy(model.lm_head(own_hidden).float(), own_wanted, reduction="sum")
    loss = own
    if prompt_weight:
        targets = batch.targets[:, :head_len]
        seen = targets != IGNORED
        loss = own + prompt_weight * F.cross_entropy(model.lm_head(hidden[:, :head_len][seen]).float(), targets[seen], reduction="sum")
    return loss, own.detach(), torch.tensor(own_wanted.numel())

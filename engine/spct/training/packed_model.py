"""The differentiable model: a transformers decoder whose attention follows the packed layout.

The prompt attends to itself causally; every demonstration attends to its prompt and, causally, to itself. So no score is computed
between siblings, and a prompt is computed once for all of its demonstrations.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from spct.training.packing import IGNORED, Packed

ATTENTION = "spct_packed"


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
    rows, heads, dim = query.shape[0], query.shape[1], query.shape[3]
    repeat = heads // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    prompt_len = packed_prompt_len
    prompt = F.scaled_dot_product_attention(
        query[:, :, :prompt_len], key[:, :, :prompt_len], value[:, :, :prompt_len], is_causal=True, scale=scaling
    )

    def demonstrations(x: Tensor) -> Tensor:
        own = x[:, :, prompt_len:]
        return own.reshape(rows, heads, packed_group, own.shape[2] // packed_group, dim).transpose(1, 2)

    def with_prompt(x: Tensor) -> Tensor:
        shared = x[:, None, :, :prompt_len].expand(-1, packed_group, -1, -1, -1)
        return torch.cat([shared, demonstrations(x)], 3).flatten(0, 1)

    own = F.scaled_dot_product_attention(
        demonstrations(query).flatten(0, 1), with_prompt(key), with_prompt(value), attn_mask=packed_mask, scale=scaling
    )
    own = own.reshape(rows, packed_group, heads, own.shape[2], dim).transpose(1, 2).reshape(rows, heads, packed_group * own.shape[2], dim)
    return torch.cat([prompt, own], 2).transpose(1, 2).contiguous(), None


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

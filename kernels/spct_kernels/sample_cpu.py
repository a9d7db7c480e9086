"""The `cpu` backend of the output head, in C++ (csrc/sample)."""

from __future__ import annotations

import torch
from torch import Tensor

from spct_kernels.dispatch import cpu_ops
from spct_kernels.sample_reference import Draw, Head, TokenLists, final_norm_reference


def fused_sample_cpu(
    head: Head, draw: Draw, meta_weight: Tensor | None, meta_bias: float, allowed: TokenLists | None, banned: TokenLists | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, log-probabilities and meta logits; see `fused_sample`."""
    hidden, norm_weight, norm_eps, lm_head, softcap = head
    normed = final_norm_reference(hidden.float(), norm_weight, norm_eps)
    logits = normed @ lm_head.float().T
    token, logprob = cpu_ops().sample_logits(
        logits,
        draw.temperature,
        draw.top_k,
        draw.top_p,
        draw.min_p,
        draw.seed,
        draw.position,
        softcap or 0.0,
        *(allowed or (None, None)),
        *(banned or (None, None)),
    )
    meta = None if meta_weight is None else normed @ meta_weight.float() + meta_bias
    return token, logprob, meta


def token_logits_cpu(head: Head, lists: TokenLists) -> Tensor:
    """Logits of the listed ids; see `token_logits`."""
    hidden, norm_weight, norm_eps, lm_head, softcap = head
    offsets, ids = lists
    normed = final_norm_reference(hidden.float(), norm_weight, norm_eps)
    rows = torch.repeat_interleave(torch.arange(hidden.shape[0]), offsets[1:] - offsets[:-1])
    logits = (normed[rows] * lm_head[ids.long()].float()).sum(dim=1)
    return logits if softcap is None else torch.tanh(logits / softcap) * softcap

"""The `reference` backend of the output head: final norm, logits, truncation and the keyed draw in plain torch, on any device.

What it computes, row by row, is the meaning of `fused_sample`; the other backends are compared with it. Sums and the noise run in
fp64 and are rounded where the contract names fp32 (normed hidden state, logits), so that it errs less than what it checks. With a
hidden state in fp64 nothing is rounded: that is the oracle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spct_kernels.linear import w8a8_reference
from spct_kernels.packed import PackedLinear
from spct_kernels.philox import gumbel, random_bits

TOP_P_SLACK = 4e-7
"""top_p comes in fp32; it is honoured to this relative slack, so that 0.3 of ten equal tokens is three of them, not four."""

MIN_P_SLACK = 4e-7
"""The same for min_p, relative to max(1, -log(min_p)) nats; none at min_p = 1."""

_ROW_CHUNK_ELEMENTS = 1 << 21
_WEIGHT_CHUNK_ELEMENTS = 1 << 22

TokenLists = tuple[Tensor, Tensor]
"""Offsets [T+1] and token ids: row i owns ids[offsets[i]:offsets[i+1]]."""


@dataclass(frozen=True, slots=True)
class Draw:
    """How each row is drawn: one tensor [T] per parameter, as in `fused_sample`."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    position: Tensor

    def rows(self, chosen: Tensor | slice) -> Draw:
        """The same parameters for some of the rows only."""
        fields = (self.temperature, self.top_k, self.top_p, self.min_p, self.seed, self.position)
        return Draw(*(field[chosen] for field in fields))


Head = tuple[Tensor, Tensor, float, Tensor | PackedLinear, float | None]
"""hidden [T, E], norm_weight [E], norm_eps, lm_head [V, E], softcap."""


def fused_sample_reference(
    head: Head, draw: Draw, meta_weight: Tensor | None, meta_bias: float, allowed: TokenLists | None, banned: TokenLists | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, log-probabilities and meta logits; see `fused_sample`."""
    hidden, norm_weight, norm_eps, lm_head, softcap = head
    normed = final_norm_reference(hidden, norm_weight, norm_eps)
    meta = None
    if meta_weight is not None:
        meta = ((normed.double() * meta_weight.double()).sum(dim=1) + meta_bias).to(normed.dtype)
    token, logprob = draw_reference(head_logits_reference(normed, lm_head), draw, softcap, allowed, banned)
    return token, logprob, meta


def token_logits_reference(head: Head, lists: TokenLists) -> Tensor:
    """Logits of the listed ids; see `token_logits`."""
    hidden, norm_weight, norm_eps, lm_head, softcap = head
    offsets, ids = lists
    normed = final_norm_reference(hidden, norm_weight, norm_eps)
    owner = torch.repeat_interleave(torch.arange(normed.shape[0], device=ids.device), offsets[1:] - offsets[:-1])
    if isinstance(lm_head, PackedLinear) and lm_head.scheme == "w8a8":
        every = [w8a8_reference(normed[row : row + 1], lm_head, ids[owner == row])[0] for row in range(normed.shape[0])]
        raw = torch.cat(every) if every else normed.new_empty(0)
    else:
        raw = (normed.double()[owner] * _head_rows(lm_head, ids)).sum(dim=1)
    return soft_cap_reference(raw.to(normed.dtype), softcap)


def result_dtype(x: Tensor) -> torch.dtype:
    """What the arithmetic on `x` is rounded to: fp32, or fp64 in the oracle."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def final_norm_reference(hidden: Tensor, norm_weight: Tensor, norm_eps: float) -> Tensor:
    """Hidden / sqrt(mean(hidden^2) + eps) * weight, [T, E] fp32 (fp64 where hidden is)."""
    x = hidden.double()
    scale = torch.sqrt(x.square().mean(dim=-1, keepdim=True) + norm_eps)
    return (x / scale * norm_weight.double()).to(result_dtype(hidden))


def head_logits_reference(normed: Tensor, lm_head: Tensor | PackedLinear) -> Tensor:
    """Normed [T, E] times lm_head [V, E], [T, V] of normed's dtype; summed in fp64 and in blocks, since a head in fp64 may not fit.

    A head packed as "w8a8" multiplies the rows as `linear_reference` does: quantised.
    """
    vocabulary, width = lm_head.shape
    chunk = max(1, _WEIGHT_CHUNK_ELEMENTS // max(1, width))
    x = normed.double()
    parts = []
    for first in range(0, vocabulary, chunk):
        ids = torch.arange(first, min(first + chunk, vocabulary), device=x.device)
        if isinstance(lm_head, PackedLinear) and lm_head.scheme == "w8a8":
            parts.append(w8a8_reference(normed, lm_head, ids))
        else:
            parts.append((x @ _head_rows(lm_head, ids).T).to(normed.dtype))
    return torch.cat(parts, dim=1)


def soft_cap_reference(logits: Tensor, softcap: float | None) -> Tensor:
    """Softcap * tanh(logits / softcap) in fp64, rounded to the logits' dtype."""
    if softcap is None:
        return logits
    return (torch.tanh(logits.double() / softcap) * softcap).to(logits.dtype)


def draw_reference(
    raw: Tensor, draw: Draw, softcap: float | None, allowed: TokenLists | None, banned: TokenLists | None
) -> tuple[Tensor, Tensor]:
    """Tokens [T] int64 and log-probabilities [T] of rows whose logits, before the soft cap, are `raw` [T, V] (fp32, or fp64)."""
    num_rows, vocabulary = raw.shape
    tokens = torch.empty(num_rows, dtype=torch.int64, device=raw.device)
    logprobs = torch.empty(num_rows, dtype=raw.dtype, device=raw.device)
    step = max(1, _ROW_CHUNK_ELEMENTS // max(1, vocabulary))
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        within = _members(allowed, rows, vocabulary)
        without = _members(banned, rows, vocabulary)
        if within is not None:
            within |= ~within.any(dim=1, keepdim=True)
        tokens[rows], logprobs[rows] = _draw_rows(raw[rows], draw.rows(rows), softcap, within, without)
    return tokens, logprobs


def keep_mask_reference(scaled: Tensor, draw: Draw) -> Tensor:
    """Which tokens truncation leaves, [T, V] bool.

    scaled  [T, V] fp64, (logit - largest logit) / temperature; -inf has no mass

    Top-k keeps exactly k in the order (logit down, id up); top-p keeps the shortest beginning of these that holds top_p of their
    mass; min-p keeps what has at least min_p of the best token's mass. Every step leaves a beginning of the same order.
    """
    ordered, order = torch.sort(scaled, dim=1, descending=True, stable=True)
    vocabulary = scaled.shape[1]
    rank = torch.arange(vocabulary, device=scaled.device)[None, :]
    limit = torch.where(draw.top_k > 0, draw.top_k, vocabulary)[:, None]
    mass = ordered.exp().masked_fill(rank >= limit, 0.0)
    before = mass.cumsum(dim=1).roll(1, dims=1)
    before[:, :1] = 0.0
    top_p = draw.top_p.double()[:, None]
    nucleus = (before < mass.sum(dim=1, keepdim=True) * top_p * (1.0 - TOP_P_SLACK)) | (top_p >= 1.0) | (rank == 0)
    floor = draw.min_p.double().log()[:, None]
    slack = MIN_P_SLACK * (-floor).clamp(min=1.0)
    kept = (rank < limit) & nucleus & ((ordered >= floor - torch.where(floor < 0.0, slack, 0.0)) | (draw.min_p <= 0.0)[:, None])
    return torch.zeros_like(kept).scatter_(1, order, kept)


def _head_rows(lm_head: Tensor | PackedLinear, ids: Tensor) -> Tensor:
    """Some rows of the head in fp64."""
    return (lm_head.rows(ids) if isinstance(lm_head, PackedLinear) else lm_head[ids.long()]).double()


def _draw_rows(raw: Tensor, draw: Draw, softcap: float | None, within: Tensor | None, without: Tensor | None) -> tuple[Tensor, Tensor]:
    """One chunk of rows; `within` and `without` are [T, V] bool."""
    failed = torch.isnan(raw) | (raw == math.inf)
    logits = soft_cap_reference(raw, softcap).double()
    if within is not None:
        failed &= within
        logits = logits.masked_fill(~within, -math.inf)
    normaliser = torch.logsumexp(logits, dim=1)
    pool = logits if without is None else logits.masked_fill(without, -math.inf)
    best = pool.amax(dim=1, keepdim=True)
    valid = ~(failed.any(dim=1) | (best[:, 0] == -math.inf))
    tokens = torch.argmax((pool == best).to(torch.uint8), dim=1)
    random = torch.nonzero(valid & (draw.temperature > 0.0))[:, 0]
    if random.numel():
        tokens[random] = _draw_random(pool[random], best[random], draw.rows(random))
    logprobs = torch.gather(logits, 1, tokens[:, None])[:, 0] - normaliser
    return torch.where(valid, tokens, -1), torch.where(valid, logprobs, math.nan).to(raw.dtype)


def _draw_random(pool: Tensor, best: Tensor, draw: Draw) -> Tensor:
    """The argmax of tempered logit + Gumbel over what truncation leaves."""
    scaled = (pool - best) / draw.temperature.double()[:, None]
    scaled = torch.where(pool == -math.inf, -math.inf, scaled)
    truncated = torch.nonzero((draw.top_k > 0) | (draw.top_p < 1.0) | (draw.min_p > 0.0))[:, 0]
    noisy = scaled + gumbel(random_bits(draw.seed, draw.position, pool.shape[1]))
    if truncated.numel():
        kept = keep_mask_reference(scaled[truncated], draw.rows(truncated))
        noisy[truncated] = noisy[truncated].masked_fill(~kept, -math.inf)
    return torch.argmax(noisy, dim=1)


def _members(lists: TokenLists | None, rows: slice, vocabulary: int) -> Tensor | None:
    """Which ids each row's list names, [T, V] bool."""
    if lists is None:
        return None
    offsets, ids = lists
    lengths = (offsets[1:] - offsets[:-1])[rows]
    owner = torch.repeat_interleave(torch.arange(lengths.numel(), device=ids.device), lengths)
    mask = torch.zeros(lengths.numel(), vocabulary, dtype=torch.bool, device=ids.device)
    mask[owner, ids[int(offsets[rows.start]) : int(offsets[rows.stop])].long()] = True
    return mask

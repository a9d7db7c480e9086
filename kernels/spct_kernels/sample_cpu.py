"""The `cpu` backend of the output head, in C++ (csrc/sample)."""

from __future__ import annotations

import torch
from torch import Tensor

from spct_kernels.dispatch import cpu_ops, has_cpu_kernels
from spct_kernels.packed import PackedLinear
from spct_kernels.sample_reference import Draw, Head, TokenLists


def fused_sample_cpu(
    head: Head, draw: Draw, meta_weight: Tensor | None, meta_bias: float, allowed: TokenLists | None, banned: TokenLists | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, log-probabilities and meta logits; see `fused_sample`."""
    token, logprob, meta = cpu_ops().fused_sample(
        *_head_arguments(head),
        draw.temperature,
        draw.top_k,
        draw.top_p,
        draw.min_p,
        draw.seed,
        draw.position,
        None if meta_weight is None else _plain(meta_weight),
        float(meta_bias),
        *(allowed or (None, None)),
        *(banned or (None, None)),
        *_int8_arguments(head),
    )
    return token, logprob, None if meta_weight is None else meta


def token_logits_cpu(head: Head, lists: TokenLists) -> Tensor:
    """Logits of the listed ids; see `token_logits`."""
    logits: Tensor = cpu_ops().token_logits(*_head_arguments(head), *lists, *_int8_arguments(head))
    return logits


def random_bits_cpu(seed: Tensor, position: Tensor, num_ids: int) -> Tensor:
    """The bits of `philox.random_bits` as the C++ sampler makes them; `seed` and `position` as there."""
    bits: Tensor = cpu_ops().random_bits(seed.contiguous(), position.contiguous(), num_ids)
    return bits


def _head_arguments(head: Head) -> tuple[Tensor, Tensor, float, Tensor, int, float]:
    """What every C++ op takes first; activations and the norm's weight become fp32, the head's weight stays as it is stored."""
    hidden, norm_weight, norm_eps, lm_head, softcap = head
    if isinstance(lm_head, PackedLinear):
        weight, vocabulary = lm_head.panels, lm_head.shape[0]
    else:
        weight, vocabulary = lm_head.detach().contiguous(), lm_head.shape[0]
        if weight.dtype == torch.float64:
            weight = weight.float()
    return _plain(hidden), _plain(norm_weight), float(norm_eps), weight, vocabulary, float(softcap or 0.0)


def _int8_arguments(head: Head) -> tuple[Tensor | None, Tensor | None]:
    """The scale and the sums of a head in int8, last of a C++ op's arguments."""
    lm_head = head[3]
    return (lm_head.scale, lm_head.sums) if isinstance(lm_head, PackedLinear) else (None, None)


def _plain(x: Tensor) -> Tensor:
    """fp32 and contiguous, as it is where it already is both."""
    return x.detach().float().contiguous()


def _fused_sample_fake(
    hidden: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    lm_head: Tensor,
    vocabulary: int,
    softcap: float,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seed: Tensor,
    position: Tensor,
    meta_weight: Tensor | None,
    meta_bias: float,
    allowed_offsets: Tensor | None,
    allowed_ids: Tensor | None,
    banned_offsets: Tensor | None,
    banned_ids: Tensor | None,
    lm_head_scale: Tensor | None = None,
    lm_head_sums: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Shapes and dtypes alone, for torch's tracing."""
    rows = hidden.shape[0]
    return seed.new_empty(rows), hidden.new_empty(rows), hidden.new_empty(0 if meta_weight is None else rows)


def _token_logits_fake(
    hidden: Tensor,
    norm_weight: Tensor,
    norm_eps: float,
    lm_head: Tensor,
    vocabulary: int,
    softcap: float,
    offsets: Tensor,
    token_ids: Tensor,
    lm_head_scale: Tensor | None = None,
    lm_head_sums: Tensor | None = None,
) -> Tensor:
    """Shapes and dtypes alone, for torch's tracing."""
    return hidden.new_empty(token_ids.shape[0])


def _random_bits_fake(seed: Tensor, position: Tensor, num_ids: int) -> Tensor:
    """Shapes and dtypes alone, for torch's tracing."""
    return seed.new_empty((seed.shape[0], num_ids))


if has_cpu_kernels():
    torch.library.register_fake("spct::fused_sample", _fused_sample_fake)
    torch.library.register_fake("spct::token_logits", _token_logits_fake)
    torch.library.register_fake("spct::random_bits", _random_bits_fake)

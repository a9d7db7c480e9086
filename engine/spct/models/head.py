"""The output head's weights: final norm, LM head, soft cap, and the meta-RM row where a checkpoint has one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from spct_kernels import PackedLinear, SampleOutput, fused_sample, linear, rms_norm

Pooling = Literal["last", "mean"]


@dataclass(slots=True)
class OutputHead:
    """What `fused_sample` takes besides hidden states and sampling parameters.

    norm_weight   [E] fp32
    lm_head       [V, E] packed; under "w8a8" it multiplies normed rows that are quantised, the meta row never does
    softcap       cap * tanh(logit / cap), before everything else; None: off
    meta_weight   [E] fp32 over the final normed hidden state; None without a meta head
    pooling       how the meta logits of one sample become its meta score
    """

    norm_weight: Tensor
    norm_eps: float
    lm_head: PackedLinear
    softcap: float | None = None
    meta_weight: Tensor | None = None
    meta_bias: float = 0.0
    pooling: Pooling = "last"

    def sample(
        self,
        hidden: Tensor,
        *,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        seed: Tensor,
        position: Tensor,
        banned: tuple[Tensor, Tensor] | None = None,
        backend: str = "auto",
    ) -> SampleOutput:
        """Draw a token for every row, with its log-probability and meta logit.

        hidden        [T, E], before the final norm
        temperature   [T] fp32, 0 is greedy
        top_k         [T] int32, 0: off
        top_p         [T] fp32
        min_p         [T] fp32
        seed          [T] int64
        position      [T] int64, of the token that is drawn
        banned        token ids and row starts, as in `fused_sample`

        Cost: the head read once.
        """
        return fused_sample(
            hidden,
            self.norm_weight,
            self.lm_head,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            position=position,
            meta_weight=self.meta_weight,
            meta_bias=self.meta_bias,
            softcap=self.softcap,
            norm_eps=self.norm_eps,
            banned=banned,
            backend=backend,
        )

    def logits(self, hidden: Tensor, backend: str = "auto") -> Tensor:
        """Logits over the whole vocabulary, for parity checks; sampling never writes them.

        hidden    [T, E], before the final norm
        returns   [T, V] fp32

        Cost: 4 T V bytes.
        """
        normed = rms_norm(hidden, self.norm_weight, self.norm_eps, backend=backend)
        result = linear(normed, self.lm_head, backend=backend).float()
        if self.softcap is not None:
            result = self.softcap * torch.tanh(result / self.softcap)
        return result

    def meta_logits(self, hidden: Tensor, backend: str = "auto") -> Tensor | None:
        """The meta-RM logit of every row, or None without a meta head.

        hidden    [T, E], before the final norm
        returns   [T] fp32
        """
        if self.meta_weight is None:
            return None
        normed = rms_norm(hidden, self.norm_weight, self.norm_eps, backend=backend)
        return normed.float() @ self.meta_weight + self.meta_bias

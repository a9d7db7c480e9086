"""The runner of a scalar model: the steps of any other, with the score of the last row in the place of a draw."""

from __future__ import annotations

import torch

from spct.models.decoder import Decoder
from spct.models.kv import KVCache
from spct.runner.runner import Drawn, ModelRunner
from spct.scheduling.scheduler import Step
from spct_kernels import linear, pack, rms_norm


class ScalarRunner(ModelRunner):
    """Runs a decoder whose output head has a meta row, and nothing over the vocabulary.

    Where a sequence would draw its first token it gets token 0 (-1 if its score is not finite) with the score as its meta logit: so
    a scheduler needs to know nothing of scalar models. A sequence is then to end after one token.
    """

    def __init__(self, decoder: Decoder, kv: KVCache, *, backend: str, deterministic: bool) -> None:
        super().__init__(decoder, kv, backend=backend, deterministic=deterministic)
        weight = decoder.head.meta_weight
        assert weight is not None, "loaded as a scalar model"
        # Through the packed kernel: its bits never depend on the other rows, those of a matrix-vector product do.
        self._score = pack(weight[None], "fp32")

    @torch.inference_mode()
    def run(self, step: Step) -> Drawn:
        """Computes a step's rows and the scores of the sequences whose last row is among them."""
        hidden = self._forward(step.layout, step.is_advance) if step.layout is not None else None
        states = self._draw_states(step, hidden)
        if not step.draws:
            return Drawn([], [], None)
        head = self.decoder.head
        normed = rms_norm(states, head.norm_weight, head.norm_eps, backend=self.backend)
        scores = linear(normed.float(), self._score, backend=self.backend)[:, 0] + head.meta_bias
        token_ids = torch.where(torch.isfinite(scores), 0, -1)
        return Drawn(token_ids.tolist(), [0.0] * len(step.draws), scores.tolist())

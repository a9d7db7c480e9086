"""Drives a Decoder without an engine: one sequence, its KV in slots scattered over a poisoned cache."""

from __future__ import annotations

import torch
from torch import Tensor

from spct.checkpoint import LoadedModel
from spct.models.decoder import ForwardBatch
from spct.models.kv import KVCache
from spct_kernels import AttentionPlan


class Sequence:
    """One sequence on a decoder; `extend` runs its next tokens in one forward."""

    def __init__(self, model: LoadedModel, capacity: int, kv_dtype: torch.dtype | None = None, seed: int = 3) -> None:
        self.model = model
        self.kv = KVCache.allocate(model.spec, 2 * capacity + 5, kv_dtype or model.dtypes.kv)
        for cache in (*self.kv.k, *self.kv.v):
            cache.fill_(float("nan"))
        order = torch.randperm(2 * capacity + 5, generator=torch.Generator().manual_seed(seed))
        self.slots = order[:capacity].to(torch.int32)
        self.length = 0

    def extend(self, token_ids: list[int]) -> Tensor:
        """Hidden states [T, E] of the new tokens."""
        spec = self.model.spec
        begin, end = self.length, self.length + len(token_ids)
        position = torch.arange(begin, end, dtype=torch.int32)
        plan = AttentionPlan.build(
            node_parent=torch.tensor([-1], dtype=torch.int32),
            node_offset=torch.tensor([0, end], dtype=torch.int32),
            node_slots=self.slots[:end],
            row_node=torch.zeros(len(token_ids), dtype=torch.int32),
            row_position=position,
            num_heads=spec.num_heads,
            num_kv_heads=spec.layers[0].kv.num_kv_heads,
            head_dim=spec.head_dim,
        )
        self.length = end
        batch = ForwardBatch(torch.tensor(token_ids), position.long(), self.slots[begin:end], plan, self.kv)
        with torch.inference_mode():
            return self.model.decoder.forward(batch)

    def logits(self, token_ids: list[int]) -> Tensor:
        """Logits [T, V] fp32 of the new tokens."""
        hidden = self.extend(token_ids)
        with torch.inference_mode():
            return self.model.decoder.head.logits(hidden, self.model.decoder.backend)


def teacher_forced(model: LoadedModel, token_ids: list[int], chunks: list[int] | None = None) -> Tensor:
    """Logits [T, V] of a whole sequence, in forwards of the given lengths (default: one)."""
    sequence = Sequence(model, len(token_ids))
    parts, begin = [], 0
    for length in [*(chunks or []), len(token_ids)]:
        part = token_ids[begin : begin + length]
        if part:
            parts.append(sequence.logits(part))
        begin += length
    return torch.cat(parts)


def greedy(model: LoadedModel, prompt: list[int], count: int) -> list[int]:
    """The greedy continuation, one token a forward."""
    sequence = Sequence(model, len(prompt) + count)
    logits = sequence.logits(prompt)[-1]
    tokens = []
    for _ in range(count):
        tokens.append(int(logits.argmax()))
        logits = sequence.logits(tokens[-1:])[-1]
    return tokens

"""From a step of the scheduler to drawn tokens: tensors, forward, fused sampling."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spct.cache.pages import IntArray
from spct.models.decoder import Decoder, ForwardBatch
from spct.models.head import OutputHead
from spct.models.kv import KVCache
from spct.scheduling.layout import Layout
from spct.scheduling.scheduler import Step
from spct.scheduling.sequence import ReadLogprobs, Sequence
from spct_kernels import AttentionPlan, token_logits


@dataclass(frozen=True, slots=True)
class Drawn:
    """One entry per draw of a step: token id (-1: numeric error), log-probability, meta logit (None without a head).

    read_logprobs  one entry per read of the step: the log-probabilities that it asked for; None: numeric error
    """

    token_ids: list[int]
    logprobs: list[float]
    meta_logits: list[float] | None
    read_logprobs: list[ReadLogprobs | None] = field(default_factory=list)


@dataclass(slots=True)
class _DrawParams:
    """Sampling parameters of a step's draws, one entry per draw, kept as long as the same sequences draw."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    position: Tensor

    @classmethod
    def of(cls, draws: list[Sequence], device: torch.device) -> _DrawParams:
        params = [s.group.sampling for s in draws]

        def tensor(values: SequenceOf[float], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return cls(
            tensor([p.temperature for p in params], torch.float32),
            tensor([p.top_k for p in params], torch.int32),
            tensor([p.top_p for p in params], torch.float32),
            tensor([p.min_p for p in params], torch.float32),
            tensor([s.noise_seed for s in draws], torch.int64),
            tensor([len(s.token_ids) for s in draws], torch.int64),
        )


class ModelRunner:
    """Owns the model, its KV cache and the attention plan; runs one step at a time.

    decoder  the model
    kv       keys and values, addressed by slot
    backend  of the kernels
    """

    def __init__(self, decoder: Decoder, kv: KVCache, *, backend: str, deterministic: bool) -> None:
        self.decoder = decoder
        self.kv = kv
        self.backend = backend
        self.deterministic = deterministic
        self.device = kv.k[0].device
        self._plan: AttentionPlan | None = None
        self._params: _DrawParams | None = None

    @torch.inference_mode()
    def run(self, step: Step) -> Drawn:
        """Computes a step's rows and draws its tokens; keeps the last hidden state of every prompt that it ends."""
        hidden = self._forward(step.layout, step.is_advance) if step.layout is not None else None
        states = self._draw_states(step, hidden)
        if step.is_advance and self._params is not None:
            self._params.position += 1
        else:
            self._params = _DrawParams.of(step.draws, self.device)
        read = self._read(step, hidden) if step.reads and hidden is not None else []
        if not step.draws:
            return Drawn([], [], None, read)
        head, params = self.decoder.head, self._params
        output = head.sample(
            states,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            min_p=params.min_p,
            seed=params.seed,
            position=params.position,
            banned=_banned(step.draws, self.device),
            backend=self.backend,
        )
        meta = None if output.meta is None else output.meta.tolist()
        return Drawn(output.token.tolist(), output.logprob.tolist(), meta, read)

    def _read(self, step: Step, hidden: Tensor) -> list[ReadLogprobs | None]:
        """The log-probabilities that the step's reads ask for, untempered and untruncated, without the [rows, V] logits.

        A greedy draw gives the log-probability of one token, and with it, since its logit is among those looked up, the normaliser.
        """
        rows: list[int] = []
        asked: list[tuple[int, ...]] = []
        for sequence, end in zip(step.reads, step.read_rows, strict=True):
            read = sequence.next_read
            assert read is not None
            for back, ids in zip(range(len(read.path), -1, -1), read.asked, strict=True):
                if ids:
                    rows.append(end - back)
                    asked.append(ids)
        lists = iter(_logprobs(self.decoder.head, hidden[torch.tensor(rows, device=self.device)], asked, self.backend))
        result: list[ReadLogprobs | None] = []
        for sequence in step.reads:
            read = sequence.next_read
            assert read is not None
            found = [next(lists) if ids else () for ids in read.asked]
            result.append(None if None in found else tuple(x for x in found if x is not None))
        return result

    @torch.inference_mode()
    def logits(self, token_ids: tuple[int, ...]) -> Tensor:
        """Teacher-forced logits [T, V] fp32 of one sequence, in KV memory of its own."""
        count = len(token_ids)
        kv = KVCache.allocate(self.decoder.spec, count, self.kv.k[0].dtype, self.device)
        position = np.arange(count, dtype=np.int32)
        zeros = np.zeros(count, np.int32)
        plan = self._build_plan(np.array([-1], np.int32), np.array([0, count], np.int32), position, zeros, position)
        hidden = self.decoder.forward(
            ForwardBatch(
                token_ids=self._tensor(np.array(token_ids, np.int64)),
                positions=self._tensor(position.astype(np.int64)),
                slots=self._tensor(position),
                plan=plan,
                kv=kv,
            )
        )
        return self.decoder.head.logits(hidden, self.backend)

    def _forward(self, layout: Layout, is_advance: bool) -> Tensor:
        if is_advance and self._plan is not None:
            self._plan.update(layout.row_position)
        else:
            self._plan = self._build_plan(layout.node_parent, layout.node_offset, layout.node_slots, layout.row_node, layout.row_position)
        batch = ForwardBatch(
            token_ids=self._tensor(layout.token_ids()),
            positions=self._tensor(layout.row_position.astype(np.int64)),
            slots=self._tensor(layout.row_slot),
            plan=self._plan,
            kv=self.kv,
        )
        return self.decoder.forward(batch)

    def _build_plan(
        self, node_parent: IntArray, node_offset: IntArray, node_slots: IntArray, row_node: IntArray, row_position: IntArray
    ) -> AttentionPlan:
        spec = self.decoder.spec
        return AttentionPlan.build(
            node_parent=node_parent,
            node_offset=node_offset,
            node_slots=node_slots,
            row_node=row_node,
            row_position=row_position,
            num_heads=spec.num_heads,
            num_kv_heads=spec.layers[0].kv.num_kv_heads,
            head_dim=spec.head_dim,
            deterministic=self.deterministic,
            device=self.device,
        )

    def _tensor(self, array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _draw_states(self, step: Step, hidden: Tensor | None) -> Tensor:
        """Hidden state of every draw, [draws, E], and a copy for each prompt that ended in this step."""
        if step.is_advance and hidden is not None:
            return hidden
        kept: dict[int, Tensor] = {}
        for sequence, row in zip(step.draws, step.draw_rows, strict=True):
            if row >= 0 and not sequence.token_ids:
                assert hidden is not None and sequence.prompt_node is not None
                if row not in kept:
                    # A copy: a view would keep the whole step's activations alive as long as the prefix is cached.
                    kept[row] = hidden[row].clone()
                sequence.prompt_node.final_hidden = kept[row]
        if not step.draws:
            return torch.empty(0, device=self.device)
        if hidden is not None and all(row >= 0 for row in step.draw_rows):
            return hidden[torch.tensor(step.draw_rows, device=self.device)]
        rows = []
        for sequence, row in zip(step.draws, step.draw_rows, strict=True):
            if row >= 0 and hidden is not None:
                rows.append(hidden[row])
            else:
                assert sequence.prompt_node is not None
                rows.append(sequence.prompt_node.final_hidden)
        return torch.stack(rows)


def _logprobs(head: OutputHead, states: Tensor, asked: list[tuple[int, ...]], backend: str) -> list[tuple[float, ...] | None]:
    """For each row of `states` [rows, E], the log-probabilities of the ids asked for; None where a logit is NaN or +Inf."""
    count, device = len(asked), states.device

    def filled(value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((count,), value, dtype=dtype, device=device)

    zeros = filled(0, torch.int64)
    best = head.sample(
        states,
        temperature=filled(0, torch.float32),
        top_k=filled(0, torch.int32),
        top_p=filled(1, torch.float32),
        min_p=filled(0, torch.float32),
        seed=zeros,
        position=zeros,
        backend=backend,
    )
    tokens, logprobs = best.token.tolist(), best.logprob.tolist()
    lists = [(*ids, max(token, 0)) for ids, token in zip(asked, tokens, strict=True)]
    offsets = torch.tensor([0, *map(len, lists)]).cumsum(0)
    ids = torch.tensor([t for x in lists for t in x], dtype=torch.int64, device=device)
    logits = token_logits(
        states, head.norm_weight, head.lm_head, offsets.to(device), ids, softcap=head.softcap, norm_eps=head.norm_eps, backend=backend
    ).tolist()
    found: list[tuple[float, ...] | None] = []
    for i, token in enumerate(tokens):
        *own, top = logits[offsets[i] : offsets[i + 1]]
        found.append(None if token < 0 else tuple(value - top + logprobs[i] for value in own))
    return found


def _banned(draws: list[Sequence], device: torch.device) -> tuple[Tensor, Tensor] | None:
    """Ends of text that a sequence may not draw before `min_tokens`, as (offsets [T + 1], token ids)."""
    if not any(len(s.token_ids) < s.group.sampling.min_tokens for s in draws):
        return None
    lists = []
    for sequence in draws:
        sampling, group = sequence.group.sampling, sequence.group
        is_early = len(sequence.token_ids) < sampling.min_tokens
        ends = set() if sampling.ignore_eos else set(group.eos_token_ids)
        lists.append(sorted(ends | set(sampling.stop_token_ids)) if is_early else [])
    offsets = torch.tensor([0, *(len(x) for x in lists)]).cumsum(0)
    return offsets.to(device), torch.tensor([t for x in lists for t in x], dtype=torch.int64, device=device)

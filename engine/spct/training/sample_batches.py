"""Batches of drawn samples for the trainer: several samples behind each prompt, every one of its tokens to be scored.

Two layouts of the same batch. Packed: a row is [prompt, padding | sample 1, padding | … | sample G, padding], so the prompt is computed
once for its samples; it needs `packed_attention`. Padded: a row is [prompt | one sample | padding], for any attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt and samples drawn behind it, each with at least one token; prompt and samples are what the engine saw and drew."""

    prompt: TokenIds
    samples: tuple[TokenIds, ...]

    @property
    def num_tokens(self) -> int:
        """Count the tokens that a packed row computes, without padding."""
        return len(self.prompt) + sum(map(len, self.samples))


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """What a forward takes and which of its hidden states predict which token.

    The N tokens are those of all samples in the order of the examples, their samples and their places.

    inputs      keyword arguments of the decoder's body: input_ids [R, L] int64, position_ids [R, L] int64, and the layout's own
    rows        [N] int64, row of the hidden state that predicts token n
    columns     [N] int64, its column
    targets     [N] int64, the token
    num_tokens  prompt and sample tokens, without padding, each prompt once
    """

    inputs: dict[str, Any]
    rows: Tensor
    columns: Tensor
    targets: Tensor
    num_tokens: int


def split_examples(examples: Sequence[Example], max_tokens: int, *, packed: bool) -> list[list[int]]:
    """Cut examples into micro-batches of at most `max_tokens` tokens, padding included; return their indices.

    Like lengths go together. An example longer than that makes a micro-batch of its own.
    """
    order = sorted(range(len(examples)), key=lambda i: (examples[i].num_tokens, i))
    cuts: list[list[int]] = []
    for i in order:
        if cuts and _padded_tokens([examples[j] for j in (*cuts[-1], i)], packed) <= max_tokens:
            cuts[-1].append(i)
        else:
            cuts.append([i])
    return cuts


def _padded_tokens(examples: Sequence[Example], packed: bool) -> int:
    group, prompt_len = max(len(e.samples) for e in examples), max(len(e.prompt) for e in examples)
    length = max(len(s) for e in examples for s in e.samples)
    return len(examples) * (prompt_len + group * length if packed else group * (prompt_len + length))


def packed_batch(examples: Sequence[Example], device: torch.device) -> TokenBatch:
    """Lay examples out for `packed_attention`; those with fewer samples than the largest are padded with empty ones."""
    count, group = len(examples), max(len(e.samples) for e in examples)
    prompt_len = max(len(e.prompt) for e in examples)
    length = max(len(s) for e in examples for s in e.samples)
    token_ids = torch.zeros(count, prompt_len + group * length, dtype=torch.long)
    positions = torch.arange(prompt_len).repeat(count, 1)
    starts = torch.tensor([len(e.prompt) for e in examples])
    own_positions = (starts[:, None] + torch.arange(length)).repeat(1, group)
    prompt_mask = torch.arange(prompt_len) < starts[:, None]
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, example in enumerate(examples):
        token_ids[row, : len(example.prompt)] = torch.tensor(example.prompt)
        for g, sample in enumerate(example.samples):
            start = prompt_len + g * length
            token_ids[row, start : start + len(sample)] = torch.tensor(sample)
            rows += [row] * len(sample)
            columns += [len(example.prompt) - 1, *range(start, start + len(sample) - 1)]
            targets += sample
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    seen = torch.cat([prompt_mask[:, None, :].expand(-1, length, -1), causal.expand(count, -1, -1)], 2)
    inputs = {
        "input_ids": token_ids.to(device),
        "position_ids": torch.cat([positions, own_positions], 1).to(device),
        "packed_prompt_len": prompt_len,
        "packed_group": group,
        "packed_mask": seen.repeat_interleave(group, 0)[:, None].to(device),
    }
    return _finish(inputs, rows, columns, targets, examples, device)


def padded_batch(examples: Sequence[Example], device: torch.device) -> TokenBatch:
    """Lay examples out as plain right-padded rows, one per sample, the prompt repeated."""
    lines = [(e.prompt, s) for e in examples for s in e.samples]
    width = max(len(p) + len(s) for p, s in lines)
    token_ids = torch.zeros(len(lines), width, dtype=torch.long)
    mask = torch.zeros(len(lines), width, dtype=torch.long)
    rows: list[int] = []
    columns: list[int] = []
    targets: list[int] = []
    for row, (prompt, sample) in enumerate(lines):
        total = len(prompt) + len(sample)
        token_ids[row, :total] = torch.tensor([*prompt, *sample])
        mask[row, :total] = 1
        rows += [row] * len(sample)
        columns += range(len(prompt) - 1, total - 1)
        targets += sample
    inputs = {
        "input_ids": token_ids.to(device),
        "position_ids": torch.arange(width).repeat(len(lines), 1).to(device),
        "attention_mask": mask.to(device),
    }
    return _finish(inputs, rows, columns, targets, examples, device)


def _finish(
    inputs: dict[str, Any],
    rows: list[int],
    columns: list[int],
    targets: list[int],
    examples: Sequence[Example],
    device: torch.device,
) -> TokenBatch:
    row, column, target = (torch.tensor(values, device=device) for values in (rows, columns, targets))
    return TokenBatch(inputs, row, column, target, sum(e.num_tokens for e in examples))

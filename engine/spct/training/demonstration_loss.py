"""The loss of a packed batch of demonstrations, for any supported family.

Where packed attention is exact the batch is computed as it stands; soft caps and windows need the family's own attention, so there every
demonstration becomes a plain row with its prompt before it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spct.training.packed_model import packed_loss
from spct.training.packing import IGNORED, Packed
from spct.training.policy import logits_of, packs
from spct.training.sample_batches import Example, padded_batch


def demonstration_loss(model: Any, batch: Packed, prompt_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss to minimise summed over tokens, summed loss of the demonstrations, number of their tokens).

    The prompt's tokens count `prompt_weight` each, once however many demonstrations stand behind it.
    """
    return (packed_loss if packs(model.config) else _plain_loss)(model, batch, prompt_weight)


def _plain_loss(model: Any, batch: Packed, prompt_weight: float) -> tuple[Tensor, Tensor, Tensor]:
    examples = _unpacked(batch)
    plain = padded_batch(examples, batch.token_ids.device)
    hidden = model.model(**plain.inputs, use_cache=False).last_hidden_state
    own = F.cross_entropy(logits_of(model, hidden[plain.rows, plain.columns]), plain.targets, reduction="sum")
    loss = own
    if prompt_weight:
        # The first row of every example; its prompt begins at column 0 in both layouts.
        first = torch.arange(len(examples), device=hidden.device) * batch.group
        targets = batch.targets[:, : batch.prompt_len]
        seen = targets != IGNORED
        rows, columns = seen.nonzero(as_tuple=True)
        loss = own + prompt_weight * F.cross_entropy(logits_of(model, hidden[first[rows], columns]), targets[seen], reduction="sum")
    return loss, own.detach(), torch.tensor(len(plain.targets))


def _unpacked(batch: Packed) -> list[Example]:
    """The prompts and demonstrations of a packed batch."""
    head_len = batch.prompt_len
    length = (batch.token_ids.shape[1] - head_len) // batch.group
    examples = []
    for row, ids in enumerate(batch.token_ids.tolist()):
        demonstrations = []
        for start in range(head_len, len(ids), length):
            # A demonstration's tokens but the last have a target, so one more than targets.
            count = 1 + int((batch.targets[row, start : start + length] != IGNORED).sum())
            demonstrations.append(tuple(ids[start : start + count]))
        examples.append(Example(tuple(ids[: int(batch.prompt_mask[row].sum())]), tuple(demonstrations)))
    return examples

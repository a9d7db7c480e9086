"""Optimiser and learning-rate schedule of the small from-scratch models."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from spct.errors import ConfigError


def make_optimisers(model: nn.Module, kind: str, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Return optimisers for all parameters: AdamW, or Muon for the matrices of the layers and AdamW for the rest.

    Muon's steps are scaled to the size of AdamW's (`match_rms_adamw`), so that one learning rate serves both.

    Raises: ConfigError if the kind is unknown.
    """
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    if kind == "adamw":
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
        return [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))]
    if kind == "muon":
        muon: Any = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        return [muon, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)]
    raise ConfigError(f'optimizer: expected "adamw" or "muon", got {kind!r}')


def learning_rate(step: int, *, steps: int, warmup: int, decay: int, peak: float) -> float:
    """Give the rate of a step: linear warm-up, a plateau, a linear fall over the last `decay` steps to 2% of the peak."""
    if step < warmup:
        return peak * (step + 1) / warmup
    left = steps - step
    return peak * max(0.02, min(1.0, left / decay)) if decay else peak

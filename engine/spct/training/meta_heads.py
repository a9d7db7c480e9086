"""A linear head on a frozen judge: pooled states computed once, then a convex fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor

from spct.training.meta_data import MetaItem
from spct.training.meta_metrics import WithinPairs, correctness_loss, pairs_within, within_item_loss
from spct.training.meta_scorers import FusedScorer, ordered_samples
from spct.training.ranks import current

# Penalties on the squared weights over standardised states; the best on held-out training items is taken.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)
_ITEMS_PER_FILE = 32


def pooled_states(scorer: FusedScorer, items: Sequence[MetaItem], folder: Path) -> Tensor:
    """Give the pooled states of all samples of `items`, [S, E] fp32; `folder` keeps them, so that a killed run goes on.

    Cost: one forward over every prompt, once for each order, and every sample.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(items), _ITEMS_PER_FILE)
    console, ranks = Console(stderr=True), current()
    paths = {start: folder / f"states-{scorer.pooling}-{start:07d}.safetensors" for start in starts}
    is_silent = not (console.is_terminal and ranks.is_first)
    for start in track(ranks.deal(starts), description="hidden states", console=console, disable=is_silent):
        path = paths[start]
        if not path.exists():
            chunk = items[start : start + _ITEMS_PER_FILE]
            # Like lengths together would pad less; item by item pads nothing at all.
            states = torch.cat([scorer.pooled([item]) for item in chunk if item.samples])
            beside = path.with_suffix(".tmp")
            save_file({"states": states.cpu()}, beside)
            beside.replace(path)
    ranks.wait()
    return torch.cat([load_file(path)["states"] for path in paths.values()])


def fit_head(states: Tensor, items: Sequence[MetaItem], within: float) -> tuple[Tensor, float]:
    """Fit weight [E] and bias of a head: cross-entropy, `within` times the loss within items, and a penalty.

    states   [S, E] fp32, pooled, in the order of `items` and their samples
    within   weight of the within-item loss

    The penalty is chosen on every fifth item, the fit is then that of all items. Convex and deterministic (L-BFGS, fp64).
    """
    labels = torch.tensor([float(s.correct) for item in items for s in ordered_samples(item)], dtype=torch.float64)
    owners = torch.tensor([place for place, item in enumerate(items) for _ in item.samples])
    x = states.double()
    mean, scale = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / scale
    held_out = owners % 5 == 4
    penalty = PENALTIES[0]
    if held_out.any() and not held_out.all():
        learnt = ~held_out
        tried = []
        for choice in PENALTIES:
            weight, bias = _fit(x[learnt], labels[learnt], pairs_within(labels[learnt], owners[learnt]), within, choice)
            scores = x[held_out] @ weight + bias
            tried.append((float(_loss(scores, labels[held_out], pairs_within(labels[held_out], owners[held_out]), within)), choice))
        penalty = min(tried)[1]
    weight, bias = _fit(x, labels, pairs_within(labels, owners), within, penalty)
    weight = weight / scale
    return weight.float(), float(bias - weight @ mean)


def _fit(x: Tensor, labels: Tensor, pairs: WithinPairs, within: float, penalty: float) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _loss(x @ weight + bias, labels, pairs, within) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]  # torch's own
    return weight.detach(), bias.detach()


def _loss(scores: Tensor, labels: Tensor, pairs: WithinPairs, within: float) -> Tensor:
    loss = correctness_loss(scores, labels)
    return loss + within * within_item_loss(scores, pairs) if within else loss

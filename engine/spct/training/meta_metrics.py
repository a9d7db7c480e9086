"""Losses of a meta RM and what it is judged by: ranking (overall and within an item), calibration, and what it adds to the vote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

Floats = npt.NDArray[np.float64]
NUM_BINS = 10


def correctness_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Give the mean binary cross-entropy of logits against correctness (DeepSeek-GRM's meta RM, arXiv 2504.02495).

    scores  [S] fp32, logits
    labels  [S] fp32, 1 where the sample is correct
    """
    return F.binary_cross_entropy_with_logits(scores, labels)


def within_item_loss(scores: Tensor, labels: Tensor, items: Tensor) -> Tensor:
    """Give the mean over items of −log σ(s₊ − s₋), averaged over an item's pairs of a correct and a wrong sample.

    A filter only compares samples of one item, so an item's own difficulty, which cross-entropy rewards a head for knowing, is
    worth nothing to the vote. Items without such a pair count nothing; 0 if there are none.

    scores  [S] fp32, logits
    labels  [S] fp32, 1 where the sample is correct
    items   [S] int64, whose sample it is
    """
    is_pair = (items[:, None] == items[None]) & (labels[:, None] > labels[None])
    better, worse = is_pair.nonzero(as_tuple=True)
    if not len(better):
        return scores.sum() * 0.0
    per_item = is_pair.sum(1).new_zeros(int(items.max()) + 1).index_add_(0, items[better], better.new_ones(len(better)))
    weights = 1.0 / per_item[items[better]].to(scores.dtype)
    return (weights * F.softplus(scores[worse] - scores[better])).sum() / (per_item > 0).sum()


def auc(scores: Floats, labels: Floats) -> float | None:
    """Give the probability that a correct sample scores above a wrong one, ties counting half; None without both kinds."""
    positive, negative = scores[labels > 0], np.sort(scores[labels <= 0])
    if not len(positive) or not len(negative):
        return None
    below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(below.sum() / (2 * len(positive) * len(negative)))


def within_item_auc(scores: Floats, labels: Floats, items: npt.NDArray[np.int64]) -> tuple[float | None, int]:
    """Give the mean of `auc` over the items that have correct and wrong samples, and how many these are."""
    found = [auc(scores[items == i], labels[items == i]) for i in np.unique(items)]
    known = [value for value in found if value is not None]
    return (sum(known) / len(known) if known else None), len(known)


def calibration(scores: Floats, labels: Floats) -> tuple[float, list[dict[str, float]]]:
    """Give the expected calibration error of σ(score) over equal bins of probability, and the bins that hold samples.

    Each bin: "low" and "high" ends, "count", mean predicted probability "predicted", share "correct" (Guo et al., arXiv 1706.04599).
    """
    probability = 1 / (1 + np.exp(-np.clip(scores, -60, 60)))
    place = np.minimum((probability * NUM_BINS).astype(int), NUM_BINS - 1)
    error, bins = 0.0, []
    for index in np.unique(place):
        inside = place == index
        predicted, correct = float(probability[inside].mean()), float(labels[inside].mean())
        error += float(inside.mean()) * abs(predicted - correct)
        bins.append(
            {
                "low": float(index) / NUM_BINS,
                "high": float(index + 1) / NUM_BINS,
                "count": int(inside.sum()),
                "predicted": predicted,
                "correct": correct,
            }
        )
    return error, bins


def mean_with_interval(values: Sequence[float], *, seed: int = 0, resamples: int = 2000) -> list[float]:
    """Give [mean, low, high]: the 95% interval by bootstrap over the values (items); all three equal for fewer than two."""
    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return [mean, mean, mean]
    draws = np.random.default_rng(seed).integers(0, len(array), (resamples, len(array)))
    low, high = np.quantile(array[draws].mean(1), (0.025, 0.975))
    return [mean, float(low), float(high)]

"""Losses of a meta RM and what it is judged by: ranking (overall and within an item), calibration, and what it adds to the vote."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
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


class WithinPairs(NamedTuple):
    """Every pair of a correct and a wrong sample of one item; the weights of an item's pairs add up to one over the items with pairs.

    better, worse  [N] int64, places of the samples
    weights        [N] fp32
    """

    better: Tensor
    worse: Tensor
    weights: Tensor


def pairs_within(labels: Tensor, items: Tensor) -> WithinPairs:
    """Find the pairs that `within_item_loss` compares; labels and items as there. Cost: the samples, and an item's samples squared."""
    better, worse, counts = [], [], []
    order = items.argsort(stable=True)
    for places in torch.split(order, items.bincount().tolist()):
        right, wrong = places[labels[places] > 0], places[labels[places] <= 0]
        if len(right) and len(wrong):
            better.append(right.repeat_interleave(len(wrong)))
            worse.append(wrong.repeat(len(right)))
            counts.append(len(right) * len(wrong))
    if not counts:
        return WithinPairs(order[:0], order[:0], labels.new_zeros(0, dtype=torch.float32))
    each = torch.tensor(counts, device=labels.device)
    weights = (1.0 / (each.float() * len(counts))).repeat_interleave(each)
    return WithinPairs(torch.cat(better), torch.cat(worse), weights)


def within_item_loss(scores: Tensor, pairs: WithinPairs) -> Tensor:
    """Give the mean over items of −log σ(s₊ − s₋), averaged over an item's pairs of a correct and a wrong sample.

    A filter only compares samples of one item, so an item's own difficulty, which cross-entropy rewards a head for knowing, is
    worth nothing to the vote. Items without such a pair count nothing; 0 if there are none.

    scores  [S] fp32 or fp64, logits
    """
    if not len(pairs.better):
        return scores.sum() * 0.0
    return (pairs.weights.to(scores.dtype) * F.softplus(scores[pairs.worse] - scores[pairs.better])).sum()


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

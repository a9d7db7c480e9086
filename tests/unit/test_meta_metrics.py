"""Losses and measures of a meta RM against plain loops."""

import math
import random

import numpy as np
import pytest
import torch

from spct.training.meta_metrics import (
    auc,
    calibration,
    correctness_loss,
    mean_with_interval,
    pairs_within,
    within_item_auc,
    within_item_loss,
)


def drawn(seed, count=40, items=6):
    rng = random.Random(seed)
    scores = np.array([rng.choice((rng.uniform(-3, 3), 0.5)) for _ in range(count)])
    labels = np.array([float(rng.random() < 0.6) for _ in range(count)])
    return scores, labels, np.array([rng.randrange(items) for _ in range(count)])


def pairs(scores, labels, owners=None):
    places = range(len(scores))
    return [(i, j) for i in places for j in places if labels[i] > labels[j] and (owners is None or owners[i] == owners[j])]


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_ordered_pairs(seed):
    scores, labels, owners = drawn(seed)
    found = pairs(scores, labels)
    expected = sum(1.0 if scores[i] > scores[j] else 0.5 * (scores[i] == scores[j]) for i, j in found) / len(found)
    assert auc(scores, labels) == pytest.approx(expected)
    per_item = [auc(scores[owners == i], labels[owners == i]) for i in range(6)]
    known = [value for value in per_item if value is not None]
    assert within_item_auc(scores, labels, owners) == (pytest.approx(sum(known) / len(known)), len(known))


def test_what_an_item_is_worth_says_nothing_within_items():
    """A score that only knows how hard an item is ranks well overall and not at all within an item."""
    owners = np.repeat(np.arange(50), 8)
    labels = np.array([float(place % 8 < (7 if place // 8 % 2 else 1)) for place in range(400)])
    scores = np.where(owners % 2 == 1, 2.0, -2.0)
    assert auc(scores, labels) > 0.85 and within_item_auc(scores, labels, owners) == (0.5, 50)


def test_one_kind_alone_has_no_auc():
    assert auc(np.array([1.0, 2.0]), np.array([1.0, 1.0])) is None
    assert within_item_auc(np.array([1.0, 2.0]), np.array([1.0, 0.0]), np.array([0, 1])) == (None, 0)


@pytest.mark.parametrize("seed", range(4))
def test_loss_within_items(seed):
    scores, labels, owners = drawn(seed)
    per_item = {}
    for i, j in pairs(scores, labels, owners):
        per_item.setdefault(owners[i], []).append(math.log1p(math.exp(scores[j] - scores[i])))
    expected = sum(sum(v) / len(v) for v in per_item.values()) / len(per_item)
    given = torch.tensor(scores, requires_grad=True)
    loss = within_item_loss(given, pairs_within(torch.tensor(labels), torch.tensor(owners)))
    assert loss.item() == pytest.approx(expected)
    # Shifting all scores of an item changes nothing: its gradient sums to 0.
    (gradient,) = torch.autograd.grad(loss, given)
    for i in set(owners.tolist()):
        assert float(gradient[torch.tensor(owners) == i].sum()) == pytest.approx(0.0, abs=1e-12)


def test_items_of_one_kind_count_nothing():
    scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    loss = within_item_loss(scores, pairs_within(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0, 0, 1])))
    assert loss.item() == 0.0 and torch.autograd.grad(loss, scores)[0].tolist() == [0.0] * 3


def test_correctness_loss_is_cross_entropy():
    loss = correctness_loss(torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0]))
    assert float(loss) == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2)


def test_calibration():
    def logit(p):
        return math.log(p / (1 - p))

    scores = np.array([logit(0.05)] * 10 + [logit(0.85)] * 10)
    labels = np.array([0.0] * 8 + [1.0] * 2 + [1.0] * 7 + [0.0] * 3)
    error, bins = calibration(scores, labels)
    assert error == pytest.approx(0.5 * 0.15 + 0.5 * 0.15)
    assert [(b["low"], b["count"], b["correct"]) for b in bins] == [(0.0, 10, 0.2), (0.8, 10, 0.7)]
    assert calibration(np.array([60.0, -60.0]), np.array([1.0, 0.0]))[0] == pytest.approx(0.0)


def test_intervals_hold_the_mean():
    mean, low, high = mean_with_interval([0.0, 1.0] * 50)
    assert mean == 0.5 and 0.35 < low < 0.45 and 0.55 < high < 0.65
    assert mean_with_interval([0.25]) == [0.25, 0.25, 0.25]

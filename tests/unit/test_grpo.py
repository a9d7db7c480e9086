"""The rules of training by themselves: what is correct, advantages, the clipped loss, the KL estimate."""

from itertools import product

import pytest
import torch

from spct.errors import InputError
from spct.evaluation.accuracy import Truth, credit
from spct.training.correctness import is_correct, middle_of
from spct.training.grpo import advantages, k3, policy_loss


def test_correctness_is_the_strict_credit_of_the_evaluation():
    for n in (1, 2, 3):
        for scores in product((1, 5, 6, 10), repeat=n):
            for best in (0, None) if n == 1 else range(n):
                expected = credit(Truth("", n, best), scores, 5.5, strict=True) == 1.0
                assert is_correct(scores, best, 5.5) == expected, (scores, best)


def test_ties_the_middle_and_what_has_no_scores_are_wrong():
    assert is_correct((7, 3), 0, 5.5) and not is_correct((7, 7), 0, 5.5) and not is_correct((7, 3), 1, 5.5)
    assert is_correct((8, 9, 2), 1, 5.5) and not is_correct((9, 9, 2), 1, 5.5)
    assert not is_correct(None, 0, 5.5) and not is_correct(None, None, 5.5)
    assert middle_of((1, 10)) == 5.5 and middle_of((0, 1)) == 0.5
    assert [is_correct((s,), best, 0.5) for s in (0, 1) for best in (0, None)] == [False, True, True, False]
    assert not is_correct((5,), 0, 5.0) and not is_correct((5,), None, 5.0)


@pytest.mark.parametrize(("scores", "best"), [((1, 2), None), ((1, 2), 2), ((1, 2), -1), ((1,), 1)])
def test_a_truth_that_names_no_response_is_refused(scores, best):
    with pytest.raises(InputError, match="best: expected an index"):
        is_correct(scores, best, 5.5)


def test_advantages_are_normalised_within_the_group():
    got = advantages([1.0, -1.0, -1.0, -1.0])
    # mean -0.5, population std sqrt(0.75)
    assert got == pytest.approx((1.5 / (0.75**0.5 + 1e-4),) + (-0.5 / (0.75**0.5 + 1e-4),) * 3, rel=1e-12)
    assert sum(got) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("reward", [1.0, -1.0, 0.1, 1 / 3])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8])
def test_a_group_of_equal_rewards_has_no_advantage_at_all(reward, count):
    assert advantages([reward] * count) == (0.0,) * count


def test_no_reward_no_advantage():
    assert advantages([]) == ()


def test_the_clip_takes_the_gradient_only_where_the_step_went_far_enough():
    # ratio, advantage, loss, gradient of the loss in log-probability, clipped
    cases = [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.1, 2.0, -2.2, -2.2, False),
        (1.5, 2.0, -2.4, 0.0, True),
        (0.5, 2.0, -1.0, -1.0, False),
        (1.5, -2.0, 3.0, 3.0, False),
        (0.5, -2.0, 1.6, 0.0, True),
        (1.5, 0.0, 0.0, 0.0, False),
    ]
    ratio, advantage, loss, slope, clipped = (torch.tensor(column) for column in zip(*cases, strict=True))
    behaviour = torch.full((len(cases),), -1.3)
    logprob = (behaviour + ratio.log()).requires_grad_()
    got, hit = policy_loss(logprob, behaviour, advantage, 0.2)
    got.sum().backward()
    assert torch.allclose(got, loss) and torch.allclose(logprob.grad, slope, atol=1e-6)
    assert hit.tolist() == clipped.tolist()


def test_the_kl_estimate_is_never_negative_and_right_on_average():
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(50, generator=generator).log_softmax(0) for _ in range(2))
    estimate = k3(p, q)
    assert (estimate >= 0).all() and torch.equal(k3(p, p), torch.zeros(50))
    exact = (p.exp() * (p - q)).sum()
    assert float((p.exp() * estimate).sum()) == pytest.approx(float(exact), rel=1e-5)


def test_the_kl_estimate_pulls_towards_the_reference():
    logprob = torch.tensor([-1.0, -3.0], requires_grad=True)
    k3(logprob, torch.tensor([-2.0, -2.0])).sum().backward()
    assert logprob.grad[0] > 0 > logprob.grad[1]

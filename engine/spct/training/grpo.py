"""The rules of group-relative policy optimisation (GRPO, Shao et al. 2024, as used in arXiv 2504.02495, Eq. 15).

reward      +1 for a correct sample (Eq. 10), -1 for any other, the unparsable ones too
advantage   (reward - mean) / (std + 1e-4) within the group of samples of one prompt, std over the population
loss        mean over all tokens of a step of  -min(ratio A, clip(ratio, 1 - clip, 1 + clip) A) + beta k3
ratio       pi(token) / pi_sampler(token)
k3          exp(d) - d - 1 with d = log pi_reference - log pi (Schulman 2020): unbiased for KL(pi, pi_reference), never negative
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

STD_EPS = 1e-4


def advantages(rewards: Sequence[float]) -> tuple[float, ...]:
    """Normalise the rewards of one group; all zero, exactly, where they are all alike."""
    if not rewards or max(rewards) == min(rewards):
        return (0.0,) * len(rewards)
    mean = sum(rewards) / len(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    return tuple((r - mean) / (std + STD_EPS) for r in rewards)


def policy_loss(logprob: Tensor, behaviour: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Give the clipped objective of every token, negated, and whether the clip took its gradient.

    logprob    [N] fp32, under the policy, with its graph
    behaviour  [N] fp32, under the weights that drew the token
    advantage  [N] fp32, of the token's sample
    returns    ([N] fp32, [N] bool)
    """
    ratio = torch.exp(logprob - behaviour)
    free, bounded = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return -torch.minimum(free, bounded), bounded < free


def k3(logprob: Tensor, reference: Tensor) -> Tensor:
    """Estimate KL(policy, reference) at every token.

    logprob    [N] fp32, under the policy, with its graph
    reference  [N] fp32, under the frozen reference
    returns    [N] fp32, >= 0
    """
    difference = reference - logprob
    return torch.exp(difference) - difference - 1

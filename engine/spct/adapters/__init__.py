"""Reward functions with the exact signatures of RL frameworks: one module a framework, none of them imports its framework on load.

    spct.adapters.trl        `GRPOTrainer(reward_funcs=reward_function(...))`
    spct.adapters.verl       `custom_reward_function.path=pkg://spct.adapters.verl name=compute_score`, and a reward manager
    spct.adapters.openrlhf   `--reward.remote_url my_reward.py`, with `reward_func = make_reward_func(...)` in it
    spct.adapters.slime      `--custom-rm-path spct.adapters.slime.reward`, with or without `--group-rm`

They share `spct.adapters.core`: one engine a process, the reward's shape, what a missing reward is.
"""

from spct.adapters.core import MissingRewardError, Reward, RewardJudge, Shape

__all__ = ["MissingRewardError", "Reward", "RewardJudge", "Shape"]

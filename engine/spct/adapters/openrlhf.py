"""Rewards for OpenRLHF's `--reward.remote_url FILE.py`, which takes the name `reward_func` out of the file.

    # my_reward.py
    from spct.adapters.openrlhf import make_reward_func
    reward_func = make_reward_func("embedded", sampling={"samples": 8}, with_reference=True)

    python -m openrlhf.cli.train_ppo_ray --reward.remote_url my_reward.py --data.label_key answer ...

OpenRLHF calls `reward_func(queries, prompts, labels)` by position, in a thread, with lists of one (openrlhf/utils/agent.py,
`SingleTurnAgentExecutor`): a query is the prompt and the response as one text, special tokens and all. The responses of one prompt never
come together, so judging is pointwise; threads that call at once share the engine's batch.

OpenRLHF has no missing reward: it logs what a reward function raises and leaves the reward out, which then stops the training. So a missing
reward raises (the default), or becomes the number that the user chose.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from spct.adapters.core import Reward, RewardJudge, Shape
from spct.adapters.options import check_on_missing
from spct.adapters.texts import reference_of, same_length
from spct.engine import Engine
from spct.errors import InputError
from spct.types import SamplingParams, ScoreRequest, VotingParams

RewardFunc = Callable[[Sequence[str], Sequence[str], Sequence[Any]], dict[str, Any]]

# What common policies end a turn with, and pad with.
END_MARKS = ("<|im_end|>", "<|eot_id|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>", "<eos>", "</s>", "<pad>")

# OpenRLHF reads `scores or rewards`: a score of exactly 0 would be replaced by the reward, which may be on another scale.
_LEAST_SCORE = 2.0**-24


def make_reward_func(
    model: str | os.PathLike[str] | Engine = "embedded",
    *,
    on_missing: float | str = "raise",
    with_reference: bool = False,
    prompt_text: Callable[[str], str] | None = None,
    end_marks: Sequence[str] = END_MARKS,
    sampling: SamplingParams | Mapping[str, Any] | None = None,
    voting: VotingParams | Mapping[str, Any] | None = None,
    shape: Shape = "unit",
    engine_options: Mapping[str, Any] | None = None,
) -> RewardFunc:
    """A function for a file that `--reward.remote_url` names.

    on_missing      "raise", or the reward of a response that has none
    with_reference  labels are known good answers, shown to the judge
    prompt_text     makes of a prompt, which has the policy's chat template around it, what the judge is to read; None: as it is
    end_marks       special tokens that are cut off the end of a response
    model, sampling, voting, shape, engine_options   as `RewardJudge`

    It gives {"rewards" [B], "scores" [B], "extra_logs": {"valid" [B], "votes" [B]}}, fp32 tensors on the CPU: rewards in `shape`, scores
    in 0 .. 1 for dynamic filtering (a stand-in is clipped to it; 0 is raised to 2^-24, which OpenRLHF can tell from nothing).

    Raises: ConfigError as `RewardJudge`. The function itself raises MissingRewardError with on_missing "raise", and InputError if a query
    does not hold its prompt.
    """
    check_on_missing(on_missing, "raise")
    judge = RewardJudge(model, sampling=sampling, voting=voting, shape=shape, engine_options=engine_options)

    def reward_func(queries: Sequence[str], prompts: Sequence[str], labels: Sequence[Any]) -> dict[str, Any]:
        same_length(queries=queries, prompts=prompts, labels=labels)
        requests = [
            ScoreRequest(
                query=prompts[i] if prompt_text is None else prompt_text(prompts[i]),
                responses=[_response(queries[i], prompts[i], end_marks, i)],
                reference=reference_of(labels[i], f"labels[{i}]") if with_reference else None,
            )
            for i in range(len(queries))
        ]
        rewards = [one for (one,) in judge.score(requests)]
        return {
            "rewards": torch.tensor([one.or_else(on_missing) for one in rewards], dtype=torch.float32),
            "scores": torch.tensor([_score(one, on_missing) for one in rewards], dtype=torch.float32),
            "extra_logs": {
                "valid": torch.tensor([float(one.value is not None) for one in rewards]),
                "votes": torch.tensor([float(one.num_votes) for one in rewards]),
            },
        }

    return reward_func


def _score(reward: Reward, on_missing: float | str) -> float:
    unit = reward.or_else(on_missing) if reward.unit is None else reward.unit
    return min(max(unit, _LEAST_SCORE), 1.0)


def _response(query: str, prompt: str, end_marks: Sequence[str], index: int) -> str:
    start = query.find(prompt)
    if start < 0:
        raise InputError(
            f"queries[{index}]: expected a text that holds prompts[{index}], got {query!r:.80}; a prompt longer than the policy's limit is "
            f"cut at its start, so raise that limit or drop such prompts"
        )
    text = query[start + len(prompt) :]
    while mark := next((mark for mark in end_marks if mark and text.rstrip().endswith(mark)), None):
        text = text.rstrip().removesuffix(mark)
    return text

"""Rewards for TRL's `GRPOTrainer` (and what shares its reward functions: `RLOOTrainer`).

    from spct.adapters.trl import reward_function
    reward = reward_function("embedded", sampling={"samples": 8}, group_size=4, reference_column="answer")
    trainer = GRPOTrainer(model=policy, reward_funcs=reward, args=GRPOConfig(num_generations=8), train_dataset=rows)
    trainer.train()

TRL awaits coroutine functions, found by `inspect.iscoroutinefunction`, beside each other; it calls them with keyword arguments: `prompts`,
`completions` (texts, or lists of messages), every other column of the dataset, one entry a response, and `trainer_state`, `log_metric` and
others of its own (trl/trainer/grpo_trainer.py, `_calculate_rewards`). The responses of one prompt follow each other, but their number is
not passed, and a group may end on the next process: groups are runs of equal prompts. Every process of a distributed run loads an engine of
its own; `engine_options={"device": ...}` says where.

A missing reward is None. TRL leaves it out of this function's column, and a response without any reward (read at 1.16.0) out of its group's
baseline, with an advantage of 0.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from spct.adapters.core import Reward, RewardJudge, Shape
from spct.adapters.texts import query_of, reference_of, response_of, runs, same_length
from spct.engine import Engine
from spct.errors import ConfigError, InputError
from spct.types import MAX_SEED, SamplingParams, ScoreRequest, VotingParams

RewardFunction = Callable[..., Awaitable[list[float | None]]]


class _TrainerState(Protocol):
    global_step: int


def reward_function(
    model: str | os.PathLike[str] | Engine = "embedded",
    *,
    name: str = "spct",
    reference_column: str | None = None,
    principles_column: str | None = None,
    fresh_noise: bool = False,
    sampling: SamplingParams | Mapping[str, Any] | None = None,
    voting: VotingParams | Mapping[str, Any] | None = None,
    group_size: int = 1,
    shape: Shape = "unit",
    engine_options: Mapping[str, Any] | None = None,
) -> RewardFunction:
    """A coroutine function for `GRPOTrainer(reward_funcs=...)`.

    name                    under which TRL logs it: rewards/NAME/mean, and NAME/missing (fraction) and NAME/votes (mean) besides
    reference_column        of the dataset, with a known good answer (a row without one: None or "")
    principles_column       of the dataset, with criteria to judge by
    fresh_noise             draw new noise in every step of the trainer. Else one response has one reward for ever, and a policy that
                            trains for several epochs can learn which of its responses were lucky
    model, sampling, voting, group_size, shape, engine_options   as `RewardJudge`

    Raises: ConfigError as `RewardJudge`. The function itself raises InputError for a missing column or an unreadable message.
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ConfigError(f"name: expected an identifier, got {name!r}")
    judge = RewardJudge(model, sampling=sampling, voting=voting, group_size=group_size, shape=shape, engine_options=engine_options)

    async def reward(
        prompts: Sequence[Any],
        completions: Sequence[Any],
        trainer_state: _TrainerState | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        references = _column(columns, reference_column, "reference_column", len(prompts))
        principles = _column(columns, principles_column, "principles_column", len(prompts))
        same_length(prompts=prompts, completions=completions)
        seed = _seed(judge.sampling.seed, trainer_state) if fresh_noise else None
        groups = runs(list(zip(prompts, references, principles, strict=True)))
        requests = [
            ScoreRequest(
                query=query_of(prompts[group[0]], f"prompts[{group[0]}]"),
                responses=[response_of(completions[i], f"completions[{i}]") for i in group],
                reference=reference_of(references[group[0]], f"{reference_column}[{group[0]}]"),
                principles=principles[group[0]] or None,
                seed=seed,
            )
            for group in groups
        ]
        rewards = [one for group in await judge.score_async(requests) for one in group]
        if log_metric is not None and rewards:
            _log(log_metric, name, rewards)
        return [one.value for one in rewards]

    reward.__name__ = reward.__qualname__ = name
    return reward


def _column(columns: Mapping[str, Any], column: str | None, option: str, num_rows: int) -> Sequence[Any]:
    if column is None:
        return [None] * num_rows
    if column not in columns:
        raise InputError(f"{option}: the dataset has no column {column!r}; the trainer passed {', '.join(sorted(columns)) or 'none'}")
    same_length(**{"prompts": range(num_rows), column: columns[column]})
    values: Sequence[Any] = columns[column]
    return values


def _seed(seed: int, trainer_state: _TrainerState | None) -> int:
    if trainer_state is None:
        raise InputError("fresh_noise: expected a trainer_state from the trainer, got none; this version of TRL can't have fresh noise")
    # Seeds of near-by runs must not meet, so the steps of one run lie far from another's: 2^32 apart, modulo what a seed can be.
    return (seed + ((trainer_state.global_step + 1) << 32)) % (MAX_SEED + 1)


def _log(log_metric: Callable[[str, float], None], name: str, rewards: Sequence[Reward]) -> None:
    log_metric(f"{name}/missing", sum(one.value is None for one in rewards) / len(rewards))
    log_metric(f"{name}/votes", sum(one.num_votes for one in rewards) / len(rewards))

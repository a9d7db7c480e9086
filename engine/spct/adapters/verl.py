"""Rewards for verl (read at v0.9.0): a function that judges what `extra_info` holds, and a reward manager that needs nothing in it.

    reward.custom_reward_function.path=pkg://spct.adapters.verl  reward.custom_reward_function.name=compute_score
    +reward.custom_reward_function.reward_kwargs.model=embedded  +reward.custom_reward_function.reward_kwargs.query_key=question

    reward.reward_manager.source=importlib  reward.reward_manager.name=SpctRewardManager
    reward.reward_manager.module.path=pkg://spct.adapters.verl   +reward.reward_kwargs.spct.model=embedded

verl calls once per trajectory, from one event loop in each of its reward workers (verl/experimental/reward_loop), and spreads a group's
trajectories over workers: judging is pointwise, and calls that overlap share the worker's engine and batch.

verl has no missing reward: a None takes the rewards of a whole batch away, and NaN spreads. So a missing one raises (the default), or
becomes the number that the user chose. Every result has the same keys, since verl takes the keys of a batch from its first row.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import Mapping
from typing import Any

from spct.adapters.core import Reward, RewardJudge, judge_of
from spct.adapters.options import check_on_missing
from spct.adapters.texts import query_of, reference_of
from spct.errors import ConfigError, InputError
from spct.types import ScoreRequest

_BASE = "verl.experimental.reward_loop.reward_manager.base"


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any] | None = None,
    *,
    query_key: str = "question",
    with_reference: bool = False,
    on_missing: float | str = "raise",
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **options: Any,
) -> dict[str, float]:
    """The reward of one response, as verl's `custom_reward_function`; what follows `extra_info` comes from `reward_kwargs`.

    query_key       of `extra_info`: the prompt, a text or messages. verl passes the prompt nowhere else; where the data has none, use
                    `SpctRewardManager`
    with_reference  the ground truth is a known good answer, shown to the judge
    on_missing      "raise", or the score of a response that has none
    reward_router_address, reward_model_tokenizer   of verl's own reward model, which is not used
    options         of `RewardJudge`, as plain data: model, sampling, voting, shape, engine_options

    returns  {"score", "valid" (1, or 0 for a stand-in), "votes" (samples that voted)}

    Raises: ConfigError for a bad option; InputError if `extra_info` has no such query; MissingRewardError with on_missing "raise".
    """
    check_on_missing(on_missing, "raise")
    if query_key not in (extra_info or {}):
        known = ", ".join(sorted(map(str, extra_info or {}))) or "nothing"
        raise InputError(f"extra_info: expected the prompt under {query_key!r}, got {known}; set query_key, or use SpctRewardManager")
    query = (extra_info or {})[query_key]
    reference = reference_of(ground_truth, "ground_truth") if with_reference else None
    return _result(await _judge(_pointwise(options), query, solution_str, reference), on_missing)


class _Manager:
    """What `SpctRewardManager` does, without verl."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        options = dict((config.reward.get("reward_kwargs") or {}).get("spct") or {})
        self.with_reference = bool(options.pop("with_reference", False))
        self.on_missing: float | str = options.pop("on_missing", "raise")
        check_on_missing(self.on_missing, "raise")
        self.judge = _pointwise(options)
        self.tokenizer = tokenizer

    async def run_single(self, data: Any) -> dict[str, Any]:
        # Of a trajectory in several sequences verl judges the last.
        item = data[-1:][0]
        row = item.non_tensor_batch
        if "raw_prompt" not in row:
            raise InputError("raw_prompt: expected the messages of the prompt in the batch, got none; set data.return_raw_chat=True")
        token_ids = item.batch["responses"]
        length = token_ids.shape[-1]
        num_tokens = int(item.batch["attention_mask"][-length:].sum())
        text = await asyncio.to_thread(self.tokenizer.decode, token_ids[:num_tokens], skip_special_tokens=True)
        reference = reference_of(row["reward_model"]["ground_truth"], "ground_truth") if self.with_reference else None
        result = _result(await _judge(self.judge, row["raw_prompt"], text, reference), self.on_missing)
        return {"reward_score": result["score"], "reward_extra_info": result}


def _pointwise(options: Mapping[str, Any]) -> RewardJudge:
    judge = judge_of(options)
    if judge.group_size != 1:
        raise ConfigError(f"group_size: verl hands in one response a call, expected 1, got {judge.group_size}")
    return judge


async def _judge(judge: RewardJudge, query: Any, response: str, reference: str | None) -> Reward:
    # Messages that went through parquet or a batch are an array.
    query = query.tolist() if hasattr(query, "tolist") else query
    ((reward,),) = await judge.score_async([ScoreRequest(query=query_of(query, "prompt"), responses=[response], reference=reference)])
    return reward


def _result(reward: Reward, on_missing: float | str) -> dict[str, float]:
    return {"score": reward.or_else(on_missing), "valid": float(reward.value is not None), "votes": float(reward.num_votes)}


@functools.cache
def _manager_class() -> type:
    try:
        base: Any = importlib.import_module(_BASE).RewardManagerBase
    except ImportError as error:
        raise ConfigError(f"SpctRewardManager: needs verl 0.9 or newer with {_BASE}: {error}") from error

    def start(self: Any, config: Any, tokenizer: Any, compute_score: Any = None, *_router: Any, **_more: Any) -> None:
        base.__init__(self, config=config, tokenizer=tokenizer, compute_score=compute_score)
        self.spct = _Manager(config, tokenizer)

    async def run_single(self: Any, data: Any) -> dict[str, Any]:
        result: dict[str, Any] = await self.spct.run_single(data)
        return result

    text = """verl's reward manager over `RewardJudge`; options under `reward.reward_kwargs.spct`, as those of `compute_score`."""
    body = {"__init__": start, "run_single": run_single, "__doc__": text, "__module__": __name__}
    return type("SpctRewardManager", (base,), body)


def __getattr__(name: str) -> Any:
    # The class derives from one of verl's, so that it exists only where somebody asks for it.
    if name == "SpctRewardManager":
        return _manager_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

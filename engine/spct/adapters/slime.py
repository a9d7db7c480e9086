"""Rewards for slime's `--custom-rm-path`, for one sample a call and, with `--group-rm`, for a group of them.

    python train.py --custom-rm-path spct.adapters.slime.reward --group-rm --custom-config-path spct.yaml ...

    # spct.yaml: slime sets its keys on `args`
    spct_reward: {model: embedded, group_size: 4, sampling: {samples: 8}, on_missing: remove}

slime awaits `fn(args, sample)`, or `fn(args, samples)` with a list (slime/rollout/rm_hub/__init__.py), and stores what comes back as
`sample.reward`; with `--reward-key` it looks the number up in a dict. A `Sample` of slime's is one response of the policy: `prompt` (a text
or messages), `response`, `label`, `group_index`. Groups whose rewards are computed at the same time share the engine's batch.

slime has no missing reward, but it can keep a sample out of the loss. So a missing one raises (the default), becomes the number that the
user chose, or, with `on_missing: remove`, its sample gets `remove_sample = True` and, as a reward, the mean of its group's others, which
leaves the group's baseline where it is (0 where the whole group has none).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from spct.adapters.core import Reward, judge_of
from spct.adapters.options import check_on_missing
from spct.adapters.texts import query_of, reference_of, runs
from spct.errors import ConfigError, InputError
from spct.types import ScoreRequest


class PolicySample(Protocol):
    """What the adapter reads of `slime.utils.types.Sample`, and the one field that it may set."""

    prompt: Any
    response: str
    label: str | None
    group_index: int | None
    remove_sample: bool


async def reward(args: Any, samples: PolicySample | Sequence[PolicySample], **kwargs: Any) -> Any:
    """The reward of one sample, or the list of those of several, for `--custom-rm-path`.

    args     slime's; `args.spct_reward` holds options: those of `RewardJudge` as plain data (model, sampling, voting, group_size, shape,
             engine_options), `with_reference` (labels are known good answers, shown to the judge) and `on_missing` ("raise", "remove" or
             a number)
    samples  one sample, or a list; with `group_size` above 1, neighbours with the same prompt, label and group are judged together
    kwargs   more that slime may pass; not used

    returns  a float a sample; with `args.reward_key` a dict with it under that key and `args.eval_reward_key`, and "votes" and "valid"

    Raises: ConfigError for a bad option; InputError for an unreadable sample; MissingRewardError with on_missing "raise".
    """
    options = dict(getattr(args, "spct_reward", None) or {})
    with_reference, on_missing = bool(options.pop("with_reference", False)), options.pop("on_missing", "raise")
    check_on_missing(on_missing, "raise", "remove")
    judge = judge_of(options)
    is_list = isinstance(samples, Sequence)
    listed: Sequence[PolicySample] = samples if isinstance(samples, Sequence) else [samples]
    if not is_list and (on_missing == "remove" or judge.group_size > 1):
        what = 'on_missing "remove"' if on_missing == "remove" else "group_size above 1"
        raise ConfigError(f"{what} needs a sample's group, got one sample; start slime with --group-rm, or choose otherwise")
    groups = runs([_key(sample, i) for i, sample in enumerate(listed)])
    rewards = await judge.score_async([_request([listed[i] for i in group], with_reference) for group in groups])
    values = [
        value
        for group, found in zip(groups, rewards, strict=True)
        for value in _values([listed[i] for i in group], found, on_missing, args)
    ]
    return values if is_list else values[0]


def _key(sample: PolicySample, index: int) -> object:
    if not hasattr(sample, "prompt"):
        kind = type(sample).__name__
        raise InputError(
            f"samples[{index}]: expected a slime Sample, got {kind}; samples that fan out into several can't be judged in a group"
        )
    return sample.group_index, sample.prompt, sample.label


def _request(group: Sequence[PolicySample], with_reference: bool) -> ScoreRequest:
    first = group[0]
    return ScoreRequest(
        query=query_of(first.prompt),
        responses=[sample.response for sample in group],
        reference=reference_of(first.label, "label") if with_reference else None,
    )


def _values(group: Sequence[PolicySample], rewards: Sequence[Reward], on_missing: float | str, args: Any) -> list[float | dict[str, float]]:
    if on_missing == "remove":
        known = [one.value for one in rewards if one.value is not None]
        for sample, one in zip(group, rewards, strict=True):
            sample.remove_sample = sample.remove_sample or one.value is None
        on_missing = sum(known) / len(known) if known else 0.0
    return [_shaped(one, one.or_else(on_missing), args) for one in rewards]


def _shaped(one: Reward, value: float, args: Any) -> float | dict[str, float]:
    reward_key = getattr(args, "reward_key", None)
    if not reward_key:
        return value
    keys: Mapping[str, float] = {reward_key: value, getattr(args, "eval_reward_key", None) or reward_key: value}
    return {"votes": float(one.num_votes), "valid": float(one.value is not None), **keys}

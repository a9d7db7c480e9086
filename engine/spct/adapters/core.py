"""What every adapter shares: responses in, one reward each out, all of a call in one continuous batch.

    judge = RewardJudge("embedded", sampling={"samples": 8}, group_size=4)
    rewards = judge.score([ScoreRequest(query, responses)])     # or: await judge.score_async(...)
    rewards[0][2].value                                         # of the third response; None where there is none

**Pointwise or listwise.** `group_size=1` shows the judge one response at a time; more shows it up to so many responses to the same query
together, which compares them. More responses than that are split into parts of equal size, give or take one. A part whose prompt does
not fit the context is halved until it does.

**Shape of the reward.** Votes count as their mean over the samples that voted, never as their sum: the number of valid votes differs
between requests, and a policy must not be paid for it.

    unit      (mean - lowest) / (highest - lowest) on the template's score range, so 0 .. 1 (the default: comparable between templates)
    raw       the mean on the template's own range, such as 1 .. 10
    centred   unit, minus the average unit of the responses judged together: -1 .. 1. What a list has in common (a judge that is
              strict today) is gone, so parts of one group compare; needs at least two responses together

With `VotingParams(method="majority")` the mean is the share of samples that put the response strictly first: 0 .. 1 in `unit` and `raw`.

**Missing.** A response without a valid vote, one that does not fit the judge's context, and one with a character that the judge's
tokenizer does not know, has `value=None` and a `reason`. Wrong use (types, an unknown option, a template that does not take such a
request) and a failing engine raise.

**Noise** is keyed on seed and content: the same request has the same reward in every step, and equal requests of a call are judged once.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from spct.adapters.engines import shared_engine
from spct.adapters.options import params_of, plain
from spct.engine import Engine
from spct.errors import CapacityError, ConfigError, InputError, SpctError
from spct.types import Judgement, SamplingParams, ScoreRequest, VotingParams

Shape = Literal["unit", "raw", "centred"]
Outcomes = Mapping[ScoreRequest, Judgement | SpctError]

# A policy trains on many responses a step, so fewer samples than the 32 of a single judgement.
DEFAULT_SAMPLES = 8

_log = logging.getLogger(__name__)


class MissingRewardError(SpctError):
    """A response has no reward, in a framework that knows no missing reward, and the user chose no stand-in."""


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one response.

    value      in the shape asked for; None where it is missing
    unit       the same in shape "unit", for what wants 0 .. 1 whatever the shape
    num_votes  samples that voted
    reason     why the value is missing; None where it is not
    """

    value: float | None
    unit: float | None = None
    num_votes: int = 0
    reason: str | None = None

    def or_else(self, on_missing: float | str) -> float:
        """Gives the value, or the caller's stand-in for a missing one.

        on_missing  a number, or "raise"

        Raises: MissingRewardError with "raise".
        """
        if self.value is not None:
            return self.value
        if isinstance(on_missing, str):
            raise MissingRewardError(f"no reward: {self.reason}; pass on_missing=NUMBER to train on a stand-in of your choice instead")
        return on_missing


class RewardJudge:
    """An engine and the way in which its judgements become rewards; thread-safe.

    model           "embedded", a Hugging Face folder, a hub id, or an `Engine` that the caller keeps and closes
    sampling        `SamplingParams` or a mapping of its fields; 8 samples by default. A multiple of `group_size` shows every
                    response equally often in every place
    voting          `VotingParams` or a mapping of its fields
    group_size      most responses judged together; 1 is pointwise
    shape           "unit", "raw" or "centred" (see the module)
    engine_options  fields of `EngineConfig`, for a model that is not an `Engine`. Equal (model, options) share one engine a process

    Loading waits for the first call.

    Raises: ConfigError if an option is unknown, out of range or does not go with another.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Engine = "embedded",
        *,
        sampling: SamplingParams | Mapping[str, Any] | None = None,
        voting: VotingParams | Mapping[str, Any] | None = None,
        group_size: int = 1,
        shape: Shape = "unit",
        engine_options: Mapping[str, Any] | None = None,
    ) -> None:
        if shape not in ("unit", "raw", "centred"):
            raise ConfigError(f'shape: expected "unit", "raw" or "centred", got {shape!r}')
        if isinstance(group_size, bool) or not isinstance(group_size, int) or group_size < 1:
            raise ConfigError(f"group_size: expected a positive integer, got {group_size!r}")
        if isinstance(model, Engine) and engine_options:
            raise ConfigError("engine_options: expected none with an Engine, which has its own; leave them out")
        self.sampling = params_of("sampling", SamplingParams, sampling, SamplingParams(samples=DEFAULT_SAMPLES))
        self.voting = params_of("voting", VotingParams, voting, VotingParams())
        self.group_size = group_size
        self.shape = shape
        if self.least_together > group_size:
            why = 'shape "centred"' if shape == "centred" else "a majority vote"
            raise ConfigError(f"group_size: {why} compares responses, expected at least 2, got {group_size}")
        self._model = model
        self._engine_options = dict(engine_options or {})

    @property
    def engine(self) -> Engine:
        """The engine; loads it at the first use. Raises: as `Engine.from_pretrained`."""
        if isinstance(self._model, Engine):
            return self._model
        return shared_engine(os.fspath(self._model), self._engine_options)

    @property
    def least_together(self) -> int:
        """Responses that have to be judged together for a reward to mean anything."""
        return 2 if self.shape == "centred" or self.voting.method == "majority" else 1

    def score(self, requests: Sequence[ScoreRequest]) -> list[list[Reward]]:
        """Rewards of all responses of all requests, in their order; a request's responses are judged together up to `group_size`.

        Raises: InputError if the template does not take such requests or responses can't be divided; whatever fails in the engine.
        """
        engine, work = self.engine, _Work(self, requests)
        while distinct := work.open(engine):
            outcomes: dict[ScoreRequest, Judgement | SpctError] = {}
            for judgement in engine.score_batch(distinct, sampling=self.sampling, voting=self.voting):
                outcomes[distinct[judgement.index]] = judgement.error or judgement
            work.settle(outcomes)
        return work.rewards()

    async def score_async(self, requests: Sequence[ScoreRequest]) -> list[list[Reward]]:
        """`score` for event loops: all requests enter one batch at once; cancelling frees their memory.

        Raises: as `score`.
        """
        engine = await asyncio.to_thread(lambda: self.engine)
        work = _Work(self, requests)
        while distinct := work.open(engine):
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self._judge(engine, request)) for request in distinct]
            work.settle({request: task.result() for request, task in zip(distinct, running, strict=True)})
        return work.rewards()

    async def _judge(self, engine: Engine, request: ScoreRequest) -> Judgement | SpctError:
        try:
            return await engine.score_async(request, sampling=self.sampling, voting=self.voting)
        except SpctError as error:
            return error


@dataclass(frozen=True, slots=True)
class _Part:
    """Responses of one request that are judged together: the request that shows them, and where they come from."""

    shown: ScoreRequest
    request: int
    places: range


class _Work:
    """The requests of one call on their way to rewards."""

    def __init__(self, judge: RewardJudge, requests: Sequence[ScoreRequest]) -> None:
        self._judge = judge
        self._requests = requests
        self._rewards: list[list[Reward]] = [[Reward(None)] * len(request.responses) for request in requests]
        self._open = [self._part(i, places) for i, r in enumerate(requests) for places in self._divide(i, len(r.responses))]
        self._ranges: dict[ScoreRequest, tuple[int, int]] = {}
        self._halved = False

    def open(self, engine: Engine) -> list[ScoreRequest]:
        """The distinct requests that are still to be judged, once engine and template are known to take such requests.

        What they refuse whatever the responses say is a wrong set-up: it raises, where a bad response has no reward.
        """
        distinct = list(dict.fromkeys(part.shown for part in self._open))
        refused: dict[ScoreRequest, InputError] = {}
        for request in distinct:
            samples = self._judge.sampling.samples if request.samples is None else request.samples
            if samples > engine.config.max_samples:
                raise ConfigError(f"samples: expected at most the engine's max_samples={engine.config.max_samples}, got {samples}")
            try:
                self._ranges[request] = engine.prompt.score_range(request)
            except InputError as error:
                if not self._halved:
                    raise
                refused[request] = error  # a template for lists alone, and half of a list that was too long
        self.settle(refused)
        return [request for request in distinct if request not in refused]

    def settle(self, outcomes: Outcomes) -> None:
        """Turns what is known about open parts into rewards, or into smaller parts."""
        parts, self._open = self._open, []
        for part in parts:
            outcome = outcomes.get(part.shown)
            if outcome is None:
                self._open.append(part)
            elif isinstance(outcome, Judgement):
                self._count(part, outcome)
            elif isinstance(outcome, CapacityError) and len(part.places) >= 2 * self._judge.least_together:
                middle = part.places[len(part.places) // 2]
                halves = (range(part.places.start, middle), range(middle, part.places.stop))
                self._open += [self._part(part.request, half) for half in halves]
                self._halved = True
            elif isinstance(outcome, CapacityError | InputError):
                self._store(part, [Reward(None, reason=str(outcome))] * len(part.places))
            else:
                raise outcome

    def rewards(self) -> list[list[Reward]]:
        reasons = Counter(reward.reason for rewards in self._rewards for reward in rewards if reward.reason is not None)
        if reasons:
            number, total = reasons.total(), sum(map(len, self._rewards))
            _log.warning("%d of %d responses have no reward; most often: %s", number, total, reasons.most_common(1)[0][0])
        return self._rewards

    def _divide(self, index: int, num_responses: int) -> list[range]:
        num_parts = -(-num_responses // self._judge.group_size)
        bounds = [num_responses * i // num_parts for i in range(num_parts + 1)]
        parts = [range(bounds[i], bounds[i + 1]) for i in range(num_parts)]
        if min(map(len, parts)) < self._judge.least_together:
            raise InputError(
                f"request {index}: {num_responses} responses can't be judged in parts of 2 to {self._judge.group_size}, and a response "
                f'alone has nothing to be compared with; change group_size, hand in whole groups, or use shape "unit" with summed votes'
            )
        return parts

    def _part(self, index: int, places: range) -> _Part:
        request = self._requests[index]
        # Without the id, so that equal content is judged once.
        shown = replace(request, responses=request.responses[places.start : places.stop], id=None)
        return _Part(shown, index, places)

    def _count(self, part: _Part, judgement: Judgement) -> None:
        votes = judgement.num_votes
        if votes == 0:
            statuses = Counter(sample.status for sample in judgement.samples)
            reason = "no valid vote: " + ", ".join(f"{number} {status}" for status, number in statuses.most_common())
            self._store(part, [Reward(None, reason=reason)] * len(part.places))
            return
        is_mean = self._judge.voting.method == "mean"
        means = [reward if is_mean else reward / votes for reward in judgement.rewards if reward is not None]
        low, high = (0, 1) if self._judge.voting.method == "majority" else self._ranges[part.shown]
        units = [(mean - low) / (high - low) for mean in means]
        average = sum(units) / len(units)
        values = {"raw": means, "unit": units, "centred": [unit - average for unit in units]}[self._judge.shape]
        self._store(part, [Reward(value, unit, votes) for value, unit in zip(values, units, strict=True)])

    def _store(self, part: _Part, rewards: list[Reward]) -> None:
        for place, reward in zip(part.places, rewards, strict=True):
            self._rewards[part.request][place] = reward


def judge_of(options: Mapping[str, Any]) -> RewardJudge:
    """The judge of a framework's configuration, in which nothing but plain data can stand: arguments of `RewardJudge` by name.

    Cheap enough for every call: the engine behind it is shared.

    Raises: ConfigError as `RewardJudge`, and for an unknown option.
    """
    options = plain(options)
    known = ("model", "sampling", "voting", "group_size", "shape", "engine_options")
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; known options: {', '.join(known)}")
    return RewardJudge(**options)

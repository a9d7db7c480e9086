"""Best of n: many responses to one query in order of preference, k votes each.

Up to `group_size` responses share one prompt, as `Engine.score` shows them. More are dealt twice into groups of equal size, give or take
one: consecutive places of one permutation, then every G-th place of it, so that responses that met in the first deal are apart in the
second (a lattice design: F. Yates, "A new method of arranging variety trials involving a large number of varieties", 1936). Each deal
draws half of the votes, so a response still has k of them, and what its company does to its scores is half as much the same company's.
Instructions and query come first in every prompt, so all groups share their keys and values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from spct.errors import CapacityError, ConfigError, InputError, SpctError
from spct.types import Judgement, Sample, SamplingParams, ScoreRequest, Timings, Usage, VotingParams
from spct.voting import content_key
from spct.voting.orders import order_of

# What the embedded model was trained on, and what the lists of RMB (arXiv 2410.09893) need; a longer list is read less carefully.
MAX_TOGETHER = 6


@dataclass(frozen=True, slots=True)
class Ranking:
    """The outcome of ranking one request's responses.

    ranking     groups of equal reward, the best first; responses without a valid vote stand in none
    rewards     one per response, in the request's order: mean over its votes, on the template's range (with "majority": the share of
                votes that put it strictly first); None without a valid vote
    best        index of the strict maximum; None on a tie or without a valid vote
    num_votes   per response, samples that voted on it
    stdev       per response, population standard deviation over its votes; None without a vote
    parts       which responses were shown together, in the order that `judgements` counts them
    judgements  of the parts
    error       why nothing was ranked (only from `rank_batch`)
    """

    ranking: tuple[tuple[int, ...], ...]
    rewards: tuple[float | None, ...]
    best: int | None
    num_votes: tuple[int, ...]
    stdev: tuple[float | None, ...]
    parts: tuple[tuple[int, ...], ...] = ()
    judgements: tuple[Judgement, ...] = ()
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    id: str | int | None = None
    index: int = 0
    error: SpctError | None = None

    @property
    def order(self) -> tuple[int, ...]:
        """Indices from best to worst; equal ones in the request's order, those without a valid vote left out."""
        return tuple(i for group in self.ranking for i in group)

    @property
    def samples(self) -> tuple[Sample, ...]:
        """What was drawn, part by part; scores and order count the part's responses."""
        return tuple(sample for judgement in self.judgements for sample in judgement.samples)


@dataclass(frozen=True, slots=True)
class Part:
    """Responses that share a prompt: their indices, and the request that shows them."""

    places: tuple[int, ...]
    request: ScoreRequest


@dataclass(frozen=True, slots=True)
class RankPlan:
    """How requests are divided.

    sampling    its `samples` are the votes of each response
    voting      of every part; "mean" counts as "sum", since rewards are means
    group_size  responses shown together at most
    check       raises CapacityError or InputError for a request that can't be judged as it stands

    Raises: ConfigError if `group_size` is below 1.
    """

    sampling: SamplingParams
    voting: VotingParams
    group_size: int
    check: Callable[[ScoreRequest], None]

    def __post_init__(self) -> None:
        """Refuse what can't be dealt."""
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int) or self.group_size < 1:
            raise ConfigError(f"group_size: expected an integer from 1, got {self.group_size!r}")
        if self.voting.method == "mean":
            object.__setattr__(self, "voting", replace(self.voting, method="sum"))

    def divide(self, request: ScoreRequest) -> tuple[Part, ...]:
        """The parts of a request. Groups that don't fit the context are halved; where a template takes no list, each stands alone.

        Raises: CapacityError or InputError if not even single responses can be judged; ConfigError if a majority would have to be
        counted over several prompts.
        """
        size = min(self.group_size, len(request.responses))
        while True:
            parts = self._parts(request, size)
            try:
                for part in parts:
                    self.check(part.request)
                return parts
            except CapacityError:
                if size == 1:
                    raise
                size = -(-size // 2)
            except InputError:
                if size == 1:
                    raise
                size = 1

    def _parts(self, request: ScoreRequest, size: int) -> tuple[Part, ...]:
        votes = self.sampling.samples if request.samples is None else request.samples
        num_responses = len(request.responses)
        if num_responses <= size:
            return (Part(tuple(range(num_responses)), replace(request, samples=votes)),)
        if self.voting.method == "majority":
            raise ConfigError(
                f"voting: a majority compares responses of one prompt, and {num_responses} don't share one of at most {size}; "
                'use "sum" or "soft", or raise group_size'
            )
        seed = self.sampling.seed if request.seed is None else request.seed
        row = order_of("given" if self.voting.orders == "given" else "all", num_responses, seed, content_key(request), 0)
        num_groups = -(-num_responses // size)
        bounds = [num_responses * i // num_groups for i in range(num_groups + 1)]
        near = [row[a:b] for a, b in itertools.pairwise(bounds)]
        dealt = [(group, votes) for group in near]
        if size > 1 and votes > 1 and self.voting.orders != "given":
            apart = [row[i::num_groups] for i in range(num_groups)]
            dealt = [(group, votes - votes // 2) for group in near] + [(group, votes // 2) for group in apart]
        return tuple(
            Part(group, replace(request, responses=[request.responses[i] for i in group], samples=count, id=None)) for group, count in dealt
        )


def combine(request: ScoreRequest, parts: Sequence[Part], judgements: Sequence[Judgement], index: int = 0) -> Ranking:
    """Pool the votes of all parts, in their order, into a ranking."""
    count = len(request.responses)
    totals, squares, votes = [0.0] * count, [0.0] * count, [0] * count
    for part, judgement in zip(parts, judgements, strict=True):
        for place, total, stdev in zip(part.places, judgement.rewards, judgement.stdev, strict=True):
            if total is not None and stdev is not None:
                totals[place] += total
                squares[place] += total**2 / judgement.num_votes + judgement.num_votes * stdev**2
                votes[place] += judgement.num_votes
    # One division of whole numbers, so that equal means are equal floats.
    rewards = tuple(total / number if number else None for total, number in zip(totals, votes, strict=True))
    spread = [
        None if r is None else math.sqrt(max(0.0, square / number - r * r))
        for r, square, number in zip(rewards, squares, votes, strict=True)
    ]
    ranking = _ranked(rewards)
    return Ranking(
        ranking=ranking,
        rewards=rewards,
        best=ranking[0][0] if ranking and len(ranking[0]) == 1 else None,
        num_votes=tuple(votes),
        stdev=judgements[0].stdev if len(parts) == 1 else tuple(spread),
        parts=tuple(part.places for part in parts),
        judgements=tuple(judgements),
        usage=_usage([judgement.usage for judgement in judgements]),
        timings=_timings([judgement.timings for judgement in judgements]),
        id=request.id,
        index=index,
    )


def refused(request: object, index: int, error: SpctError) -> Ranking:
    """The ranking of a request that could not be ranked, or of what is no request."""
    if not isinstance(request, ScoreRequest):
        return Ranking((), (), None, (), (), index=index, error=error)
    nothing = (None,) * len(request.responses)
    return Ranking((), nothing, None, (0,) * len(nothing), nothing, id=request.id, index=index, error=error)


def rank_stream(
    requests: Iterable[Any],
    plan: RankPlan,
    request_of: Callable[[Any], ScoreRequest],
    score: Callable[[Iterator[ScoreRequest]], Iterator[Judgement]],
) -> Iterator[Ranking]:
    """Yield the ranking of each request as the last of its parts finishes; all parts go through one continuous batch.

    request_of  makes a request of what the stream holds, or raises
    score       judges a stream of requests
    """
    waiting: dict[int, tuple[ScoreRequest, tuple[Part, ...], dict[int, Judgement]]] = {}
    owners: dict[int, tuple[int, int]] = {}
    failed: list[Ranking] = []

    def parts() -> Iterator[ScoreRequest]:
        number = 0
        for index, item in enumerate(requests):
            try:
                request = request_of(item)
                divided = plan.divide(request)
            except SpctError as error:
                failed.append(refused(item, index, error))
                continue
            waiting[index] = request, divided, {}
            for place, part in enumerate(divided):
                owners[number] = index, place
                number += 1
                yield part.request

    for judgement in score(parts()):
        yield from _taken(failed)
        index, place = owners.pop(judgement.index)
        if index not in waiting:
            continue
        request, divided, known = waiting[index]
        if judgement.error is not None:
            del waiting[index]
            yield refused(request, index, judgement.error)
            continue
        known[place] = judgement
        if len(known) == len(divided):
            del waiting[index]
            yield combine(request, divided, [known[i] for i in range(len(divided))], index)
    yield from failed


def _taken(rankings: list[Ranking]) -> list[Ranking]:
    taken, rankings[:] = rankings[:], []
    return taken


def _ranked(rewards: Sequence[float | None]) -> tuple[tuple[int, ...], ...]:
    """Indices by falling reward, equal ones together."""
    values = sorted({reward for reward in rewards if reward is not None}, reverse=True)
    return tuple(tuple(i for i, reward in enumerate(rewards) if reward == value) for value in values)


def _usage(usages: Sequence[Usage]) -> Usage:
    return Usage(
        prompt_tokens=max(usage.prompt_tokens for usage in usages),
        prefilled_tokens=sum(usage.prefilled_tokens for usage in usages),
        generated_tokens=sum(usage.generated_tokens for usage in usages),
        meta_tokens=sum(usage.meta_tokens for usage in usages),
    )


def _timings(timings: Sequence[Timings]) -> Timings:
    """From the first part's start to the last one's end, as if all had been submitted together."""
    return Timings(
        min(timing.queue_ms for timing in timings),
        min(timing.first_token_ms for timing in timings),
        max(timing.total_ms for timing in timings),
    )

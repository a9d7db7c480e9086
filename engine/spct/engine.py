"""The one entry point of inference: requests in, judgements out."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import itertools
import os
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from spct import checkpoint
from spct.assembly import Assembly, assemble
from spct.config import EngineConfig
from spct.errors import BackendError, SpctError
from spct.judging import Judging, PendingRequest, request_from, request_from_mapping
from spct.prompting import JudgePrompt
from spct.ranking import MAX_TOGETHER, Ranking, RankPlan, combine, rank_stream
from spct.runner.loop import StepLoop
from spct.scheduling.scheduler import SchedulerStats
from spct.scheduling.sequence import Group
from spct.types import Generation, Judgement, SamplingParams, ScoreRequest, Turn, VotingParams


class Engine:
    """A generative reward model, ready to judge. Make one with `Engine.from_pretrained`.

    All public methods may be called from any thread. Requests of all callers share one continuous batch and one prefix
    cache. Closing (or leaving a `with` block) cancels what is in flight.
    """

    def __init__(self, parts: Assembly, config: EngineConfig) -> None:
        self.config = config
        self.prompt: JudgePrompt = parts.prompt
        self.weights_version = 0
        self._parts = parts
        self._loop = StepLoop(parts.scheduler, parts.runner)
        self._judging = Judging(parts, config)
        self._arrivals = itertools.count()
        self._needs_full_load = False

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike[str] = "embedded", **options: Any) -> Engine:
        """Loads a checkpoint folder, a hub id, or the model that ships with the package.

        model    "embedded", a Hugging Face folder, or a hub id (needs the extra `hub`)
        options  fields of `EngineConfig`; they win over `SPCT_*` variables

        Raises: ConfigError for a bad option; CheckpointError if the folder can't be loaded as it stands.
        """
        config = EngineConfig.create(options)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        return cls(assemble(os.fspath(model), config), config)

    def score(
        self,
        query: str | ScoreRequest | Sequence[Turn | Mapping[str, str]],
        responses: Sequence[str] | None = None,
        *,
        reference: str | None = None,
        principles: str | Sequence[str] | None = None,
        sampling: SamplingParams | None = None,
        voting: VotingParams | None = None,
    ) -> Judgement:
        """Judges one request and waits for the outcome.

        query      a string, the turns of a conversation, or a whole `ScoreRequest`
        responses  one or more texts to score

        Raises: InputError or CapacityError if the request is malformed or can never fit; BackendError if a step failed.
        """
        request = request_from(query, responses, reference, principles)
        pending = self._submit(request, sampling, voting, 0)
        try:
            self._loop.drive_until(pending.group)
            if (reading := self._begin_reading(pending)) is not None:
                self._meta_loop.drive_until(reading)
        finally:
            self._cancel(pending)
        return self._judging.finish(pending)

    def score_batch(
        self,
        requests: Iterable[ScoreRequest | Mapping[str, Any]],
        *,
        sampling: SamplingParams | None = None,
        voting: VotingParams | None = None,
    ) -> Iterator[Judgement]:
        """Judges a stream of requests, yielding each as it finishes; `index` tells its place in the stream.

        Reads ahead just far enough to keep the batch full, so memory does not grow with the stream. A bad request yields a
        judgement with `error` and ends nothing else. Dropping the iterator cancels what it has not yielded.

        Raises: ConfigError at once for parameters that no request could meet.
        """
        sampling, voting = sampling or SamplingParams(), voting or VotingParams()
        self._judging.check(voting)
        return self._stream(iter(requests), sampling, voting)

    async def score_async(
        self,
        query: str | ScoreRequest | Sequence[Turn | Mapping[str, str]],
        responses: Sequence[str] | None = None,
        *,
        reference: str | None = None,
        principles: str | Sequence[str] | None = None,
        sampling: SamplingParams | None = None,
        voting: VotingParams | None = None,
    ) -> Judgement:
        """`score` for event loops: a thread of the engine drives the steps; cancelling frees the request's memory.

        Raises: as `score`.
        """
        request = request_from(query, responses, reference, principles)
        pending = await asyncio.to_thread(self._prepare, request, sampling, voting, 0)
        try:
            await _run_in_thread_of(self._loop, pending.group)
            if self._parts.meta is not None:
                reading = await asyncio.to_thread(self._judging.begin_reading, pending, next(self._arrivals))
                if reading is not None and not reading.is_finished:
                    await _run_in_thread_of(self._meta_loop, reading)
        finally:
            self._cancel(pending)
        return await asyncio.to_thread(self._judging.finish, pending)

    def rank(
        self,
        query: str | ScoreRequest | Sequence[Turn | Mapping[str, str]],
        responses: Sequence[str] | None = None,
        *,
        reference: str | None = None,
        principles: str | Sequence[str] | None = None,
        votes: int | None = None,
        group_size: int = MAX_TOGETHER,
        sampling: SamplingParams | None = None,
        voting: VotingParams | None = None,
    ) -> Ranking:
        """Best of n: orders any number of responses, with `votes` samples on each (None: `sampling.samples`).

        group_size  responses shown together at most; more are dealt into groups (`spct.ranking`), and 1 shows every response alone

        Raises: as `score`; ConfigError if a majority would have to be counted over several groups.
        """
        request = request_from(query, responses, reference, principles)
        ranking = next(self.rank_batch([request], votes=votes, group_size=group_size, sampling=sampling, voting=voting))
        if ranking.error is not None:
            raise ranking.error
        return ranking

    def rank_batch(
        self,
        requests: Iterable[ScoreRequest | Mapping[str, Any]],
        *,
        votes: int | None = None,
        group_size: int = MAX_TOGETHER,
        sampling: SamplingParams | None = None,
        voting: VotingParams | None = None,
    ) -> Iterator[Ranking]:
        """`rank` for a stream of requests, in one continuous batch; yields as `score_batch` does.

        Raises: ConfigError at once for parameters that no request could meet.
        """
        plan = self._rank_plan(votes, group_size, sampling, voting)
        return rank_stream(
            requests,
            plan,
            lambda item: item if isinstance(item, ScoreRequest) else request_from_mapping(item),
            lambda parts: self.score_batch(parts, sampling=plan.sampling, voting=plan.voting),
        )

    async def rank_async(
        self,
        query: str | ScoreRequest | Sequence[Turn | Mapping[str, str]],
        responses: Sequence[str] | None = None,
        *,
        reference: str | None = None,
        principles: str | Sequence[str] | None = None,
        votes: int | None = None,
        group_size: int = MAX_TOGETHER,
        sampling: SamplingParams | None = None,
        voting: VotingParams | None = None,
    ) -> Ranking:
        """`rank` for event loops, as `score_async` is to `score`. Raises: as `rank`."""
        request = request_from(query, responses, reference, principles)
        plan = self._rank_plan(votes, group_size, sampling, voting)
        parts = await asyncio.to_thread(plan.divide, request)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(self.score_async(part.request, sampling=plan.sampling, voting=plan.voting)) for part in parts]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        return combine(request, parts, [task.result() for task in running])

    def generate(self, token_ids: Sequence[int], sampling: SamplingParams | None = None) -> list[Generation]:
        """Raw samples of one prompt, in the order of their index.

        token_ids  the prompt, 0 <= id < vocabulary size

        Raises: InputError for an empty prompt or an unknown id; CapacityError if it can never fit.
        """
        self._check_open()
        pending = self._judging.prepare_generation(token_ids, sampling or SamplingParams(), next(self._arrivals))
        self._loop.submit(pending)
        try:
            self._loop.drive_until(pending)
        finally:
            self._loop.cancel(pending)
        return self._judging.generations(pending)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Teacher-forced logits: [T, V] fp32, row t predicts token t + 1. For parity checks; keeps its own KV memory.

        Raises: InputError for an empty prompt or an unknown id; CapacityError past the context.
        """
        self._check_open()
        ids = self._judging.check_tokens(token_ids, reserve=0)
        with self._loop.exclusive():
            return self._parts.runner.logits(ids)

    def load_weights(self, named_tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]) -> None:
        """Replaces the weights of the live engine.

        What was submitted before finishes with the old weights; cached prefixes are dropped; `weights_version` goes up.
        Names and shapes are the checkpoint's own; `meta_head.weight` [E] and `meta_head.bias` [1] may be among them where the
        checkpoint has a meta head. A mapping is checked whole before anything changes. If a stream fails midway, the engine
        refuses work until a full load succeeds. A separate meta model keeps its weights.

        Raises: CheckpointError if tensors are missing, unknown, misshapen or not finite.
        """
        with self._loop.exclusive():
            self._loop.drain()
            self._parts.scheduler.tree.clear()
            is_mapping = isinstance(named_tensors, Mapping)
            self._needs_full_load = self._needs_full_load or not is_mapping
            checkpoint.replace_weights(self._parts.model, named_tensors)
            self._needs_full_load = False
            self.weights_version += 1

    def fingerprints(self, sampling: SamplingParams, voting: VotingParams) -> dict[str, str]:
        """Short hashes of all that decides an outcome besides the request: two runs with equal hashes give equal samples."""
        return self._judging.fingerprints(sampling, voting, self.weights_version)

    @property
    def stats(self) -> SchedulerStats:
        """Counts of the step loop since the engine started."""
        return self._parts.scheduler.stats

    @property
    def meta_stats(self) -> SchedulerStats | None:
        """Counts of the separate meta model's loop; None without such a model."""
        return None if self._parts.meta is None else self._meta_loop.scheduler.stats

    def close(self) -> None:
        """Cancels what is in flight and stops the engine's threads. The engine refuses work afterwards."""
        self._loop.close()
        if self._parts.meta is not None:
            self._meta_loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None) -> None:
        self.close()

    def _stream(
        self, requests: Iterator[ScoreRequest | Mapping[str, Any]], sampling: SamplingParams, voting: VotingParams
    ) -> Iterator[Judgement]:
        in_flight: list[PendingRequest] = []
        index, exhausted = 0, False
        try:
            while in_flight or not exhausted:
                while not exhausted and self._has_room(in_flight):
                    try:
                        item = next(requests)
                    except StopIteration:
                        exhausted = True
                        break
                    index += 1
                    try:
                        request = item if isinstance(item, ScoreRequest) else request_from_mapping(item)
                        in_flight.append(self._submit(request, sampling, voting, index - 1))
                    except SpctError as error:
                        yield self._judging.refused(item, index - 1, error)
                if in_flight:
                    self._step(in_flight)
                for pending in [p for p in in_flight if _has_ended(p, reads=self._parts.meta is not None)]:
                    in_flight.remove(pending)
                    try:
                        judgement = self._judging.finish(pending)
                    except SpctError as error:
                        judgement = self._judging.refused(pending.request, pending.index, error)
                    yield judgement
        finally:
            for pending in in_flight:
                self._cancel(pending)

    def _step(self, in_flight: list[PendingRequest]) -> None:
        """One step of the judge, and one of the separate meta model where samples have ended."""
        self._loop.step()
        if self._parts.meta is None:
            return
        for pending in in_flight:
            if pending.group.is_finished:
                self._begin_reading(pending)
        self._meta_loop.step()

    def _begin_reading(self, pending: PendingRequest) -> Group | None:
        """Hands the samples of a finished group to the separate meta model, once; None where nothing is to be read."""
        if pending.meta_group is None:
            reading = self._judging.begin_reading(pending, next(self._arrivals))
            if reading is not None and not reading.is_finished:
                self._meta_loop.submit(reading)
        return pending.meta_group

    def _cancel(self, pending: PendingRequest) -> None:
        self._loop.cancel(pending.group)
        if pending.meta_group is not None:
            self._meta_loop.cancel(pending.meta_group)

    @property
    def _meta_loop(self) -> StepLoop:
        assert self._parts.meta is not None
        return self._parts.meta.loop

    def _has_room(self, in_flight: list[PendingRequest]) -> bool:
        """Two batches of samples ahead keep every step full while the oldest requests run out."""
        return sum(p.group.num_unfinished for p in in_flight) < 2 * self.config.max_batch

    def _rank_plan(self, votes: int | None, group_size: int, sampling: SamplingParams | None, voting: VotingParams | None) -> RankPlan:
        sampling, voting = sampling or SamplingParams(), voting or VotingParams()
        sampling = sampling if votes is None else dataclasses.replace(sampling, samples=votes)
        self._judging.check(voting)
        return RankPlan(sampling, voting, group_size, lambda request: self._judging.check_request(request, sampling))

    def _prepare(self, request: ScoreRequest, sampling: SamplingParams | None, voting: VotingParams | None, index: int) -> PendingRequest:
        self._check_open()
        return self._judging.prepare(request, sampling or SamplingParams(), voting or VotingParams(), index, next(self._arrivals))

    def _submit(self, request: ScoreRequest, sampling: SamplingParams | None, voting: VotingParams | None, index: int) -> PendingRequest:
        pending = self._prepare(request, sampling, voting, index)
        self._loop.submit(pending.group)
        return pending

    def _check_open(self) -> None:
        if self._needs_full_load:
            raise BackendError("a load of weights failed midway; call load_weights with a full set of tensors first")


def _has_ended(pending: PendingRequest, *, reads: bool) -> bool:
    """All samples have ended and, where a separate meta model reads them, have been read."""
    group, reading = pending.group, pending.meta_group
    if not group.is_finished or not reads or group.error is not None:
        return group.is_finished
    return reading is not None and reading.is_finished


async def _run_in_thread_of(loop: StepLoop, group: Group) -> None:
    """Submits a group and waits until the loop's own thread has finished it."""
    done: concurrent.futures.Future[None] = concurrent.futures.Future()
    group.on_finished = lambda: _resolve(done)
    loop.submit(group)
    loop.start_thread()
    await asyncio.wrap_future(done)


def _resolve(future: concurrent.futures.Future[None]) -> None:
    # A cancelled waiter has cancelled the future already; setting a result then would raise.
    if future.set_running_or_notify_cancel():
        future.set_result(None)

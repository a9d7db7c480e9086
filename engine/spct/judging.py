"""Between requests and tokens: a request becomes a group of sequences, a finished group becomes a judgement."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Callable, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

import torch

from spct.assembly import Assembly
from spct.config import EngineConfig
from spct.errors import BackendError, InputError, SpctError
from spct.scheduling.sequence import Group, Sequence
from spct.types import Generation, Judgement, Sample, SamplingParams, ScoreRequest, Timings, Turn, Usage, VotingParams
from spct.voting import (
    ScoreRead,
    SoftReader,
    content_key,
    expected_scores,
    generation_seed,
    judge,
    orders,
    read_sample,
    resolve_filter,
    sample_seed,
)


@dataclass(eq=False, slots=True)
class PendingRequest:
    """A request in flight.

    orders        of its samples, in the order of their index
    index         place in its stream
    meta_prompts  per order, where a separate meta model reads the samples
    meta_group    these readings, once the samples have ended; None before, and without such a model
    """

    request: ScoreRequest
    voting: VotingParams
    group: Group
    orders: list[tuple[int, ...]]
    index: int
    meta_prompts: Mapping[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)
    meta_group: Group | None = None


class Judging:
    """Turns requests into groups and groups into judgements, for one model and its limits."""

    def __init__(self, parts: Assembly, config: EngineConfig) -> None:
        self._prompt = parts.prompt
        self._model = parts.model
        self._meta = parts.meta
        self._limits = parts.limits
        self._soft = SoftReader(parts.prompt.decode, parts.model.spec.vocab_size)
        self._config = config
        self._eos = frozenset(parts.model.generation.eos_token_ids) | frozenset(parts.prompt.eos_token_ids)

    @property
    def has_meta_head(self) -> bool:
        """The checkpoint has a meta-RM head."""
        return self._model.decoder.head.meta_weight is not None

    @property
    def has_meta_scores(self) -> bool:
        """Samples get a meta score: from the checkpoint's head, or from a separate model."""
        return self._meta is not None or self.has_meta_head

    def check(self, voting: VotingParams) -> None:
        """Refuses votes that this model can't give. Raises: ConfigError."""
        resolve_filter(voting.filter, self.has_meta_scores)

    def prepare(self, request: ScoreRequest, sampling: SamplingParams, voting: VotingParams, index: int, arrival: int) -> PendingRequest:
        """Renders and encodes every distinct order of a request and lists its sequences.

        Raises: InputError or CapacityError if the request can't be judged; ConfigError if the votes can't be given.
        """
        self.check(voting)
        num_samples = request.samples if request.samples is not None else sampling.samples
        self._limits.check_samples(num_samples)
        seed = request.seed if request.seed is not None else sampling.seed
        content = content_key(request)
        shown = orders(voting.orders, len(request.responses), num_samples, seed, content)
        prompts = {order: self._prompt.encode(request, order, max_tokens=self._limits.max_context) for order in dict.fromkeys(shown)}
        for prompt in prompts.values():
            self._limits.check_fits(len(prompt), sampling.max_tokens)
        meta_prompts = {} if self._meta is None else self._meta.encode(request, prompts)
        group = Group(sampling, self._eos)
        if voting.method == "soft":
            group.reader = self._reader(request)
        for i, order in enumerate(shown):
            group.add(self._sequence(group, i, prompts[order], sample_seed(seed, content, i), arrival))
        return PendingRequest(request, voting, group, shown, index, meta_prompts)

    def check_request(self, request: ScoreRequest, sampling: SamplingParams) -> None:
        """Refuses a request that could never be judged, without preparing its samples. Raises: InputError, CapacityError."""
        self._limits.check_samples(sampling.samples if request.samples is None else request.samples)
        prompt = self._prompt.encode(request, max_tokens=self._limits.max_context)
        self._limits.check_fits(len(prompt), sampling.max_tokens)

    def begin_reading(self, pending: PendingRequest, arrival: int) -> Group | None:
        """The group in which a separate meta model reads the samples of a finished group, made at the first call.

        None without such a model, and where the samples came to nothing.
        """
        group = pending.group
        if self._meta is None or pending.meta_group is not None or group.error is not None:
            return pending.meta_group
        ended = ("eos", "length")
        texts = [self._text(s) if s.finish_reason in ended and s.token_ids else None for s in group.sequences]
        pending.meta_group = self._meta.group(pending.meta_prompts, pending.orders, texts, arrival)
        return pending.meta_group

    def prepare_generation(self, token_ids: SequenceOf[int], sampling: SamplingParams, arrival: int) -> Group:
        """A group that samples one bare prompt. Raises: InputError, CapacityError."""
        self._limits.check_samples(sampling.samples)
        prompt = self.check_tokens(token_ids, reserve=1)
        self._limits.check_fits(len(prompt), sampling.max_tokens)
        group = Group(sampling, self._eos)
        for i in range(sampling.samples):
            group.add(self._sequence(group, i, prompt, generation_seed(sampling.seed, prompt, i), arrival))
        return group

    def check_tokens(self, token_ids: SequenceOf[int], *, reserve: int) -> tuple[int, ...]:
        """The token ids as a tuple, once they are known to be in the vocabulary and, with `reserve` more, in the context.

        Raises: InputError for an empty prompt or an unknown id; CapacityError past the context.
        """
        ids = tuple(int(t) for t in token_ids)
        vocab_size = self._model.spec.vocab_size
        if not ids:
            raise InputError("token_ids: expected at least one token, got none")
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise InputError(f"token_ids: expected 0 <= id < {vocab_size}, got {min(ids)} .. {max(ids)}")
        self._limits.check_context(len(ids), reserve)
        return ids

    def finish(self, pending: PendingRequest) -> Judgement:
        """Parses and counts the votes of a finished group.

        Raises: the error that ended the group before its time; BackendError if the engine was closed under it.
        """
        group, request = pending.group, pending.request
        _raise_if_failed(group)
        score_range, in_think = self._prompt.score_range(request), self._prompt.opens_think(request)
        meta_scores = self._meta_scores(pending)
        parsed = [
            read_sample(
                self._text(sequence),
                sequence.finish_reason or "cancelled",
                order,
                score_range,
                num_tokens=len(sequence.token_ids),
                meta_score=meta_score,
                logprob=_mean(sequence.logprobs),
                token_ids=tuple(sequence.token_ids),
                token_logprobs=tuple(sequence.logprobs),
                expected=_expected(sequence),
                in_think=in_think,
            )
            for sequence, order, meta_score in zip(group.sequences, pending.orders, meta_scores, strict=True)
        ]
        outcome = judge(parsed, len(request.responses), pending.voting, self.has_meta_scores)
        return Judgement(
            rewards=outcome.rewards,
            best=outcome.best,
            num_votes=outcome.num_votes,
            stdev=outcome.stdev,
            samples=outcome.samples,
            usage=_usage(pending),
            timings=_timings(pending),
            id=request.id,
            index=pending.index,
        )

    def refused(self, item: object, index: int, error: SpctError) -> Judgement:
        """The judgement of a request that could not be judged."""
        request_id, num_responses = None, 0
        if isinstance(item, ScoreRequest):
            request_id, num_responses = item.id, len(item.responses)
        elif isinstance(item, dict) and isinstance(item.get("id"), str | int):
            request_id = item["id"]
        nothing: tuple[None, ...] = (None,) * num_responses
        samples: tuple[Sample, ...] = ()
        return Judgement(nothing, None, 0, nothing, samples, id=request_id, index=index, error=error)

    def generations(self, group: Group) -> list[Generation]:
        """The raw samples of a finished group. Raises: as `finish`."""
        _raise_if_failed(group)
        return [
            Generation(
                token_ids=tuple(s.token_ids),
                text=self._text(s),
                logprobs=tuple(s.logprobs),
                meta_score=self._meta_score(s),
                finish_reason=s.finish_reason or "cancelled",
                meta_logits=tuple(s.meta_logits) if self.has_meta_head else None,
            )
            for s in group.sequences
        ]

    def fingerprints(self, sampling: SamplingParams, voting: VotingParams, weights_version: int) -> dict[str, str]:
        """One short hash each of weights, tokenizer, template, sampling, voting, numerics and versions.

        Memory and batch limits are left out: they change no token.
        """
        tokenizer, template = self._prompt.digest
        dtypes, config = self._model.dtypes, self._config
        numerics = (str(dtypes), config.weights, config.kv_dtype, config.backend, config.deterministic, torch.get_num_threads())
        parts = {
            "weights": (self._model.weights_digest, weights_version, *(() if self._meta is None else (self._meta.digest,))),
            "tokenizer": (tokenizer, sorted(self._eos)),
            "template": template,
            "sampling": dataclasses.astuple(sampling),
            "voting": dataclasses.astuple(voting),
            "numerics": (*numerics, self._limits.max_context),
            "versions": (_version("spct"), torch.__version__, platform.machine()),
        }
        return {name: hashlib.blake2b(repr(part).encode(), digest_size=6).hexdigest() for name, part in parts.items()}

    def _sequence(self, group: Group, index: int, prompt: tuple[int, ...], noise_seed: int, arrival: int) -> Sequence:
        max_len = self._limits.max_len(len(prompt), group.sampling.max_tokens)
        return Sequence(group, index, prompt, noise_seed, max_len, (arrival, index))

    def _reader(self, request: ScoreRequest) -> Callable[[Sequence], list[ScoreRead] | None]:
        """What soft votes look up in a finished sample of `request`."""
        num_responses, score_range, in_think = len(request.responses), self._prompt.score_range(request), self._prompt.opens_think(request)
        self._soft.check(score_range)

        def reads(sequence: Sequence) -> list[ScoreRead] | None:
            return self._soft.reads(sequence.token_ids[:-1], sequence.max_len, num_responses, score_range, in_think=in_think)

        return reads

    def _text(self, sequence: Sequence) -> str:
        ids = sequence.token_ids
        return self._prompt.decode(ids[:-1] if sequence.finish_reason == "eos" else ids)

    def _meta_scores(self, pending: PendingRequest) -> list[float | None]:
        sequences = pending.group.sequences
        if self._meta is None:
            return [self._meta_score(s) for s in sequences]
        if pending.meta_group is None:
            return [None] * len(sequences)
        return self._meta.scores(pending.meta_group, len(sequences))

    def _meta_score(self, sequence: Sequence) -> float | None:
        if not self.has_meta_head or not sequence.meta_logits:
            return None
        if self._model.decoder.head.pooling == "mean":
            return _mean(sequence.meta_logits)
        return sequence.meta_logits[-1]


def request_from(
    query: str | ScoreRequest | SequenceOf[Turn | Mapping[str, str]],
    responses: SequenceOf[str] | None,
    reference: str | None,
    principles: str | SequenceOf[str] | None,
) -> ScoreRequest:
    """The request of a call's arguments. Raises: InputError if they contradict each other or are no request."""
    if isinstance(query, ScoreRequest):
        if responses is not None or reference is not None or principles is not None:
            raise InputError("a ScoreRequest carries its own responses, reference and principles; pass it alone")
        return query
    if responses is None:
        raise InputError("responses: expected a list of strings, got nothing")
    return ScoreRequest(query=query, responses=responses, reference=reference, principles=principles)


def request_from_mapping(item: Any) -> ScoreRequest:
    """The request of a mapping of its fields. Raises: InputError if it is none."""
    if not isinstance(item, Mapping):
        raise InputError(f"expected a ScoreRequest or a mapping of its fields, got {type(item).__name__}")
    known = ScoreRequest.__dataclass_fields__
    unknown = sorted(str(k) for k in item if k not in known)
    if unknown:
        raise InputError(f"unknown field {unknown[0]!r}; known fields: {', '.join(known)}")
    missing = [name for name in ("query", "responses") if name not in item]
    if missing:
        raise InputError(f"{missing[0]}: required, but missing")
    return ScoreRequest(**item)


def _raise_if_failed(group: Group) -> None:
    if group.error is not None:
        raise group.error
    if all(s.finish_reason == "cancelled" for s in group.sequences):
        raise BackendError("the request was cancelled: the engine was closed while it ran")


def _expected(sequence: Sequence) -> tuple[float, ...] | None:
    """Expected scores in the order shown, where they were looked up to the end."""
    if sequence.reads is None or sequence.finish_reason != "eos":
        return None
    return expected_scores(cast("list[ScoreRead]", sequence.reads), sequence.read_logprobs)


def _mean(values: SequenceOf[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _usage(pending: PendingRequest) -> Usage:
    group = pending.group
    return Usage(
        prompt_tokens=max(len(s.prompt) for s in group.sequences),
        prefilled_tokens=group.prefilled_tokens,
        generated_tokens=sum(len(s.token_ids) for s in group.sequences),
        meta_tokens=0 if pending.meta_group is None else pending.meta_group.prefilled_tokens,
    )


def _timings(pending: PendingRequest) -> Timings:
    group, meta_group = pending.group, pending.meta_group

    def since(moment: float | None) -> float:
        return 0.0 if moment is None else round(1000 * (moment - group.submitted_s), 3)

    ended = group.finished_s if meta_group is None or meta_group.finished_s is None else meta_group.finished_s
    return Timings(since(group.first_step_s), since(group.first_token_s), since(ended))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source"

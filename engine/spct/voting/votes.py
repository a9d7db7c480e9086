"""From parsed samples to a reward: filter, vote, outcome."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from spct.errors import ConfigError, InputError
from spct.types import FilterMethod, FinishReason, Sample, SampleStatus, VotingParams
from spct.voting.orders import in_request_order
from spct.voting.parse import parse_scores


@dataclass(frozen=True, slots=True)
class ParsedSample:
    """A finished sample before the vote.

    scores      in the request's order; None unless status is "ok"
    status      "ok", "parse_error", "truncated", "pruned", "numeric_error" or "cancelled"
    order       order[p] is the index of the response shown at place p
    meta_score  pooled meta logit; None without a meta head
    logprob     mean log-probability per token; None without tokens
    token_ids, token_logprobs  what was drawn, token by token
    expected    expected scores in the request's order; None unless they were looked up
    """

    scores: tuple[int, ...] | None
    status: SampleStatus
    order: tuple[int, ...]
    text: str
    num_tokens: int
    meta_score: float | None = None
    logprob: float | None = None
    token_ids: tuple[int, ...] = ()
    token_logprobs: tuple[float, ...] = ()
    expected: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the votes say; fields as in `spct.types.Judgement`."""

    rewards: tuple[float | None, ...]
    best: int | None
    num_votes: int
    stdev: tuple[float | None, ...]
    samples: tuple[Sample, ...]


def read_sample(
    text: str,
    finish_reason: FinishReason,
    order: tuple[int, ...],
    score_range: tuple[int, int],
    *,
    num_tokens: int,
    meta_score: float | None = None,
    logprob: float | None = None,
    token_ids: tuple[int, ...] = (),
    token_logprobs: tuple[float, ...] = (),
    expected: tuple[float, ...] | None = None,
    in_think: bool = False,
) -> ParsedSample:
    """Parse a finished sample and map its scores, and the expected ones (in the order shown), back through its order.

    Only a sample that ended by itself is parsed: one cut at its limit is `truncated`, whatever it has written.
    """
    status: SampleStatus
    scores = None
    if finish_reason == "eos":
        shown = parse_scores(text, len(order), score_range, in_think=in_think)
        status = "parse_error" if shown is None else "ok"
        scores = None if shown is None else in_request_order(shown, order)
    else:
        status = "truncated" if finish_reason == "length" else finish_reason
    expected = in_request_order(expected, order) if expected is not None and scores is not None else None
    return ParsedSample(scores, status, order, text, num_tokens, meta_score, logprob, token_ids, token_logprobs, expected)


def judge(samples: Sequence[ParsedSample], num_responses: int, voting: VotingParams, has_meta_head: bool) -> Outcome:
    """Filter the parsed samples, let the kept ones vote, and give every sample its final status.

    sum       a response's reward is the sum of its scores (DeepSeek-GRM, arXiv 2504.02495, eq. 14)
    mean      the sum divided by the number of votes
    soft      the sum of the expected scores; a sample whose expected scores could not be found is a parse error
    majority  a sample votes for its strict maximum; a tie in it adds 0, yet the sample counts

    Raises: ConfigError if the filter needs a meta head that is not there; InputError if a sample's scores are not one per response.
    """
    method = resolve_filter(voting.filter, has_meta_head)
    if voting.method == "soft":
        samples = [replace(s, status="parse_error", scores=None) if s.status == "ok" and s.expected is None else s for s in samples]
    parsed = [i for i, sample in enumerate(samples) if sample.status == "ok"]
    for i in parsed:
        scores, expected = samples[i].scores, samples[i].expected
        if scores is None or len(scores) != num_responses or (expected is not None and len(expected) != num_responses):
            got = scores if expected is None else (scores, expected)
            raise InputError(f"samples[{i}].scores: expected {num_responses} scores of a sample with status 'ok', got {got}")
    kept = frozenset(_keep(samples, parsed, method, voting.meta_keep))
    ballots = [_ballot(samples[i], voting) for i in sorted(kept)]
    rewards = _rewards(ballots, num_responses, voting)
    return Outcome(
        rewards=rewards,
        best=_best(rewards),
        num_votes=len(ballots),
        stdev=tuple(_stdev([ballot[r] for ballot in ballots]) for r in range(num_responses)),
        samples=tuple(_final(sample, i in kept) for i, sample in enumerate(samples)),
    )


def resolve_filter(method: FilterMethod, has_meta_head: bool) -> FilterMethod:
    """Turn "auto" into "meta" where there is a meta head, else "none".

    Raises: ConfigError if "meta" is asked for without a head.
    """
    if method == "auto":
        return "meta" if has_meta_head else "none"
    if method == "meta" and not has_meta_head:
        raise ConfigError(
            'filter: "meta" needs a checkpoint with meta_head.safetensors or a separate meta model (meta_model), got neither; '
            'use "logprob", "none" or "auto"'
        )
    return method


def num_kept(num_parsed: int, fraction: float) -> int:
    """Give how many of the parsed samples a filter keeps: max(1, ceil(fraction * parsed - 1e-9)), 0 of 0.

    The 1e-9 takes back the rounding of products such as 0.07 * 100.
    """
    return min(num_parsed, max(1, math.ceil(fraction * num_parsed - 1e-9)))


def _keep(samples: Sequence[ParsedSample], parsed: list[int], method: FilterMethod, fraction: float) -> list[int]:
    if method == "none":
        return parsed
    worth = {i: samples[i].meta_score if method == "meta" else samples[i].logprob for i in parsed}
    # What has no finite measure is trusted least; ties go to the lower index.
    ranked = sorted(parsed, key=lambda i: (-_finite(worth[i]), i))
    return ranked[: num_kept(len(parsed), fraction)]


def _finite(value: float | None) -> float:
    return value if value is not None and math.isfinite(value) else -math.inf


def _ballot(sample: ParsedSample, voting: VotingParams) -> Sequence[float]:
    scores = sample.expected if voting.method == "soft" else sample.scores
    assert scores is not None, "a kept sample has scores"
    if voting.method != "majority":
        return scores
    best = max(scores)
    return tuple(int(score == best and scores.count(best) == 1) for score in scores)


def _rewards(ballots: list[Sequence[float]], num_responses: int, voting: VotingParams) -> tuple[float | None, ...]:
    if not ballots:
        return (None,) * num_responses
    sums = [sum(column) for column in zip(*ballots, strict=True)]
    return tuple(total / len(ballots) if voting.method == "mean" else float(total) for total in sums)


def _best(rewards: tuple[float | None, ...]) -> int | None:
    values = [reward for reward in rewards if reward is not None]
    if not values or values.count(max(values)) > 1:
        return None
    return rewards.index(max(values))


def _stdev(values: list[float]) -> float | None:
    if not values:
        return None
    if all(isinstance(v, int) for v in values):
        # In integers up to the root, so that equal votes give exactly 0.
        return math.sqrt(len(values) * sum(v * v for v in values) - sum(values) ** 2) / len(values)
    return statistics.pstdev(values)


def _final(sample: ParsedSample, kept: bool) -> Sample:
    status: SampleStatus = "filtered" if sample.status == "ok" and not kept else sample.status
    return Sample(
        scores=sample.scores if sample.status == "ok" else None,
        status=status,
        kept=kept,
        meta_score=sample.meta_score,
        order=sample.order,
        text=sample.text,
        num_tokens=sample.num_tokens,
        logprob=sample.logprob,
        token_ids=sample.token_ids,
        token_logprobs=sample.token_logprobs,
        expected=sample.expected if sample.status == "ok" else None,
    )

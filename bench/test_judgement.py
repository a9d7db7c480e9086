"""Whole judgements of the embedded model: a new request each time, and the same one again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from spct import Engine, Judgement, SamplingParams, ScoreRequest

_turn = itertools.count(10)
SAMPLING = SamplingParams(samples=8, max_tokens=160, seed=0)


@pytest.fixture(scope="module")
def judge() -> Iterator[Engine]:
    """The model that ships with the package."""
    with Engine.from_pretrained("embedded", device="cpu", kv_memory="256MiB") as engine:
        yield engine


def request(turn: int) -> ScoreRequest:
    """An arithmetic question whose first response is right; every turn asks for other numbers."""
    query = f"Vera buys {turn} packs of 9 pens. Then come 4 pens more. What is the total? Above all, give the exact result."
    return ScoreRequest(query, (f"Dear Ben, The result is {9 * turn + 4} pens.", f"Dear Ben, The result is {9 * turn + 14} pens."))


def check(judgement: Judgement) -> None:
    """Votes came from parsed samples, and are as many as they say."""
    voters = [s for s in judgement.samples if s.kept and s.scores is not None]
    assert len(judgement.samples) == SAMPLING.samples and judgement.num_votes == len(voters) > 0
    assert judgement.rewards == tuple(sum(column) for column in zip(*(s.scores for s in voters if s.scores), strict=True))


def test_cold(benchmark: BenchmarkFixture, judge: Engine) -> None:
    """Nothing of the request is cached but the template's own beginning."""
    made: list[Judgement] = []
    benchmark.group = f"judgement, k={SAMPLING.samples}"
    benchmark.pedantic(
        lambda asked: made.append(judge.score(asked, sampling=SAMPLING)), setup=lambda: ((request(next(_turn)),), {}), rounds=10
    )
    for judgement in made:
        check(judgement)
    benchmark.extra_info["tokens"] = sum(j.usage.generated_tokens for j in made) / len(made)


def test_warm(benchmark: BenchmarkFixture, judge: Engine) -> None:
    """The prompts are cached; samples and rewards are those of the cold call."""
    benchmark.group = f"judgement, k={SAMPLING.samples}"
    asked = request(next(_turn))
    first = judge.score(asked, sampling=SAMPLING)
    check(first)
    again = benchmark.pedantic(lambda: judge.score(asked, sampling=SAMPLING), rounds=10)
    assert again.rewards == first.rewards and [s.token_ids for s in again.samples] == [s.token_ids for s in first.samples]
    assert again.usage.prefilled_tokens < first.usage.prefilled_tokens

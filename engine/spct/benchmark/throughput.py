"""Many requests in one continuous batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from spct.benchmark.spread import Spread
from spct.engine import Engine
from spct.types import SamplingParams, ScoreRequest, VotingParams


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of `num_judgements` requests.

    seconds           of each repeat, from the first request to the last judgement
    generated_tokens, prefilled_tokens   over all requests of a repeat
    """

    num_judgements: int
    generated_tokens: int
    prefilled_tokens: int
    seconds: Spread

    @property
    def judgement_rate(self) -> Spread:
        """Judgements per second."""
        return Spread.of([self.num_judgements / s for s in self.seconds.values])

    @property
    def token_rate(self) -> Spread:
        """Generated tokens per second."""
        return Spread.of([self.generated_tokens / s for s in self.seconds.values])


def measure_throughput(
    engine: Engine, batches: Sequence[Sequence[ScoreRequest]], sampling: SamplingParams, voting: VotingParams, *, warmup: int
) -> Throughput:
    """Judges each batch as one stream; the first `warmup` of them don't count.

    batches  of requests, one per repeat: different texts, so that no cached prefix of an earlier one helps

    Raises: what the first refused request was refused for; what the engine raises.
    """
    seconds, generated, prefilled, judged = [], [], [], 0
    for turn, requests in enumerate(batches):
        begin = time.perf_counter()
        judgements = list(engine.score_batch(requests, sampling=sampling, voting=voting))
        elapsed = time.perf_counter() - begin
        for judgement in judgements:
            if judgement.error is not None:
                raise judgement.error
        if turn >= warmup:
            judged = len(judgements)
            seconds.append(elapsed)
            generated.append(sum(j.usage.generated_tokens for j in judgements))
            prefilled.append(sum(j.usage.prefilled_tokens for j in judgements))
    return Throughput(judged, round(sum(generated) / len(generated)), round(sum(prefilled) / len(prefilled)), Spread.of(seconds))

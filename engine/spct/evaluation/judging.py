"""Draws the samples that an evaluation counts, with the engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from spct.engine import Engine
from spct.errors import CapacityError
from spct.evaluation.accuracy import DrawnSample
from spct.types import Judgement, Sample, SamplingParams, ScoreRequest, VotingParams
from spct.voting.soft import MAX_SCORE


class Question(Protocol):
    """What an evaluation asks: an item of the project's own tasks or of a benchmark."""

    @property
    def responses(self) -> tuple[str, ...]:
        """The responses to be scored."""

    def request(self) -> ScoreRequest:
        """The question without its truth."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One way to sample every item: at the temperature asked for, or greedily.

    name      "sampled", "greedy", or "values" of a baseline that values text
    sampling  of the engine
    """

    name: str
    sampling: SamplingParams

    def request(self, item: Question) -> ScoreRequest:
        """The item as this pass asks it: greedily once for each rotation of its responses, since all samples of one order are equal."""
        request = item.request()
        return request if self.name != "greedy" else replace(request, samples=len(item.responses))

    def unread(self, item: Question) -> list[DrawnSample]:
        """The samples of an item that was not judged: as many as were asked for, without scores, over the rotations of its responses."""
        n = len(item.responses)
        count = self.sampling.samples if self.name != "greedy" else n
        return [DrawnSample(None, order=tuple((i + p) % n for p in range(n))) for i in range(count)]


def passes(sampling: SamplingParams, *, greedy: bool) -> list[Pass]:
    """The passes of an evaluation that draws `sampling.samples` of every item."""
    both = [Pass("sampled", sampling), Pass("greedy", replace(sampling, samples=1, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0))]
    return both if greedy else both[:1]


def voting_of(engine: Engine) -> VotingParams:
    """How an evaluation asks the engine to judge: no filter, and expected scores besides, where the template has few enough scores."""
    return VotingParams(method="soft" if engine.prompt.score_range(2)[1] <= MAX_SCORE else "sum", filter="none")


def judge_items(engine: Engine, items: Sequence[Question], way: Pass) -> Iterator[Judgement]:
    """Judge items as they finish; a judgement's `index` is the item's place in `items`.

    An item that is too long for the model, or whose samples do not fit its memory, comes with its CapacityError and without samples.

    Raises: the first other error of an item.
    """
    for judgement in engine.score_batch((way.request(item) for item in items), sampling=way.sampling, voting=voting_of(engine)):
        if judgement.error is not None and not isinstance(judgement.error, CapacityError):
            raise judgement.error
        yield judgement


def drawn(sample: Sample) -> DrawnSample:
    """What an evaluation keeps of a sample."""
    return DrawnSample(sample.scores, sample.meta_score, sample.logprob, sample.expected, sample.order, sample.num_tokens)


def draw_samples(engine: Engine, items: Sequence[Question], sampling: SamplingParams) -> list[list[DrawnSample]]:
    """Judge every item; return its samples in the order of their index.

    Raises: the first item's error, if one could not be judged.
    """
    rows: list[list[DrawnSample]] = [[] for _ in items]
    for judgement in judge_items(engine, items, Pass("sampled", sampling)):
        if judgement.error is not None:
            raise judgement.error
        rows[judgement.index] = [drawn(sample) for sample in judgement.samples]
    return rows

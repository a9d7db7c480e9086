"""The forms that value text: what each reads of an item, what it learns from, and how its numbers become scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from spct.baselines.value_model import ValueModel, alone, behind, shared_example, together
from spct.training.labelled import LabelledRequest
from spct.training.sample_batches import Example
from spct.types import ScoreRequest


class Critiques(Protocol):
    """What the semi-scalar form reads beside responses: `spct.baselines.critiques.CritiqueStore`."""

    def __call__(self, request: ScoreRequest) -> Sequence[str]:
        """The critique of every response."""

    def num_tokens(self, request: ScoreRequest) -> int:
        """Tokens that they took."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """An item laid out for a form: its texts, in the order of the examples and their samples, and the truth."""

    examples: tuple[Example, ...]
    num_responses: int
    best: int | None

    @property
    def num_tokens(self) -> int:
        """Tokens that it computes."""
        return sum(example.num_tokens for example in self.examples)

    @property
    def num_values(self) -> int:
        """Numbers that a model gives for it."""
        return sum(len(example.samples) for example in self.examples)


class ValueForm(Protocol):
    """What training and evaluation need of a form."""

    model: ValueModel

    def lesson(self, item: LabelledRequest) -> Lesson:
        """Lay out an item to learn from; without examples where this form learns nothing from it."""

    def loss(self, lesson: Lesson, values: Tensor) -> Tensor:
        """The loss of the numbers `values` [N] that the model gave for a lesson."""

    def texts(self, request: ScoreRequest) -> list[Example]:
        """Lay out a request to be judged; nothing where this form can't judge it."""

    def scores(self, request: ScoreRequest, values: Tensor) -> list[float]:
        """A number per response, higher is better and 0 the border of good and bad, from the numbers `values` [N] of its texts."""

    def num_written(self, request: ScoreRequest) -> int:
        """Tokens that were written for a verdict."""


class ScalarForm:
    """A number per response, each read alone; Bradley-Terry over the best and each of the others.

    A single response is a question of good or bad: cross-entropy of its number as a logit.
    """

    def __init__(self, model: ValueModel) -> None:
        self.model = model

    def lesson(self, item: LabelledRequest) -> Lesson:
        """Every response alone."""
        return Lesson(tuple(self.texts(item.request)), len(item.request.responses), item.best)

    def loss(self, lesson: Lesson, values: Tensor) -> Tensor:
        """-log sigmoid(best - other), mean over the others; the numbers are `values` [N]."""
        if lesson.num_responses == 1:
            return F.softplus(-values[0] if lesson.best == 0 else values[0])
        assert lesson.best is not None
        others = torch.cat([values[: lesson.best], values[lesson.best + 1 :]])
        return F.softplus(others - values[lesson.best]).mean()

    def texts(self, request: ScoreRequest) -> list[Example]:
        """Every response alone, behind what their prompts share."""
        return [shared_example([self.model.prompt.encode(one) for one in alone(request)])]

    def scores(self, request: ScoreRequest, values: Tensor) -> list[float]:
        """The numbers as they are: `values` [N], one per response."""
        del request
        return [float(value) for value in values]

    def num_written(self, request: ScoreRequest) -> int:
        """Nothing is written."""
        del request
        return 0


class PairwiseForm:
    """A number per ordered pair: the logit that the response shown first is better. Learns from the best with each other one, both ways.

    A response's score is its mean probability of winning over all others, each pair shown in both orders and centred on 0. A single
    response can't be judged.
    """

    def __init__(self, model: ValueModel) -> None:
        self.model = model

    def lesson(self, item: LabelledRequest) -> Lesson:
        """The best and each of the others, both ways; nothing for a single response."""
        count, best = len(item.request.responses), item.best
        if count == 1 or best is None:
            return Lesson((), count, best)
        others = [i for i in range(count) if i != best]
        pairs = [*((best, i) for i in others), *((i, best) for i in others)]
        return Lesson(tuple(self._examples(item.request, pairs)), count, best)

    def loss(self, lesson: Lesson, values: Tensor) -> Tensor:
        """Cross-entropy, mean over the pairs; of `values` [N] the first half shows the best one first."""
        half = len(values) // 2
        return F.softplus(torch.cat([-values[:half], values[half:]])).mean()

    def texts(self, request: ScoreRequest) -> list[Example]:
        """All ordered pairs."""
        pairs = _all_pairs(len(request.responses))
        return self._examples(request, pairs) if pairs else []

    def scores(self, request: ScoreRequest, values: Tensor) -> list[float]:
        """Mean probability of winning, less a half; `values` [N] of all ordered pairs."""
        count = len(request.responses)
        told = dict(zip(_all_pairs(count), values.tolist(), strict=True))
        return [
            sum(1 / (1 + math.exp(-(told[i, j] - told[j, i]) / 2)) for j in range(count) if j != i) / (count - 1) - 0.5
            for i in range(count)
        ]

    def num_written(self, request: ScoreRequest) -> int:
        """Nothing is written."""
        del request
        return 0

    def _examples(self, request: ScoreRequest, pairs: Sequence[tuple[int, int]]) -> list[Example]:
        return [shared_example([self.model.prompt.encode(pair) for pair in together(request, pairs)])]


class SemiScalarForm(ScalarForm):
    """A number per response, read alone together with the judge's critique of it; learns as the scalar form does.

    critiques  of a request's responses, each judged alone
    """

    def __init__(self, model: ValueModel, critiques: Critiques) -> None:
        super().__init__(model)
        self._critiques = critiques

    def texts(self, request: ScoreRequest) -> list[Example]:
        """Every response alone, with its critique behind it."""
        prompt = self.model.prompt
        return [
            behind(prompt.encode(one), prompt.tokenizer.encode_user(critique))
            for one, critique in zip(alone(request), self._critiques(request), strict=True)
        ]

    def num_written(self, request: ScoreRequest) -> int:
        """The critiques."""
        return self._critiques.num_tokens(request)


def _all_pairs(count: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(count) for j in range(count) if i != j]

"""Verdicts of a baseline as the samples that an evaluation counts: one per item of a form that values, one per order of a judge."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from spct.assembly import choose_device
from spct.baselines.critiques import CRITIQUE_VOTING, CritiqueStore, critique_sampling
from spct.baselines.learners import CRITIC
from spct.baselines.text_forms import picked
from spct.baselines.value_forms import PairwiseForm, ScalarForm, SemiScalarForm, ValueForm
from spct.baselines.value_model import ValueModel
from spct.engine import Engine
from spct.errors import CapacityError
from spct.evaluation.accuracy import DrawnSample, Truth
from spct.evaluation.judging import Pass, Question, passes
from spct.evaluation.report import accuracy_report
from spct.types import SamplingParams, ScoreRequest, VotingParams

# Values as fixed-point numbers: an evaluation's scores are integers, and 0 is their middle.
_UNIT = 1_000_000
SCORE_RANGE = (-_UNIT, _UNIT)
_UNFILTERED = VotingParams(filter="none")

Rows = Sequence[Sequence[DrawnSample]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a baseline says of an item: one sample of a form that values, one per rotation of a judge that picks.

    samples  without scores where the form has nothing to compare; empty with `error`
    error    why the item was not judged: it is too long
    """

    samples: tuple[DrawnSample, ...]
    error: CapacityError | None = None


class Baseline(Protocol):
    """A trained baseline, ready to judge.

    way        how it asks an item, for the keys of what it says
    critiques  what a semi-scalar form reads beside the responses; None for the others
    """

    way: Pass
    critiques: CritiqueStore | None

    def fingerprints(self) -> dict[str, str]:
        """Short hashes of all that decides a verdict besides the item, by name: equal hashes give equal verdicts."""

    def verdicts(self, items: Sequence[Question], places: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        """Judge the items at `places`, greedily; each one's place and verdict as it ends. An item's does not depend on the others.

        Raises: the engine's error for an item that it refuses, its length aside.
        """


@contextmanager
def open_baseline(form: str, folder: Path, *, device: str, max_tokens: int) -> Iterator[Baseline]:
    """A baseline from its folder.

    max_tokens  of what it writes

    Raises: CheckpointError if the folder can't be loaded.
    """
    if form == "judge":
        with Engine.from_pretrained(folder, device=device) as engine:
            yield _Picking(engine, max_tokens)
    elif form == "semi-scalar":
        model = ValueModel(folder, choose_device(device))
        with Engine.from_pretrained(folder / CRITIC, device=device) as engine:
            yield _Reading(model, engine, max_tokens)
    else:
        model = ValueModel(folder, choose_device(device))
        yield _Valuing((ScalarForm if form == "scalar" else PairwiseForm)(model))


def verdicts(
    form: str, folder: Path, items: Sequence[Question], *, device: str, max_tokens: int, done: Callable[[str], None]
) -> list[Sequence[DrawnSample]]:
    """For each item its verdicts at temperature 0; those of an item that the form can't judge have no scores.

    folder  of a trained baseline
    done    called as each item ends

    Raises: CheckpointError if the folder can't be loaded; the engine's error for an item that it refuses, its length aside.
    """
    with open_baseline(form, folder, device=device, max_tokens=max_tokens) as baseline:
        rows: list[Sequence[DrawnSample]] = [baseline.way.unread(item) for item in items]
        for place, verdict in baseline.verdicts(items, range(len(items))):
            rows[place] = verdict.samples or rows[place]
            done(f"{place + 1}")
    return rows


def baseline_report(truths: Sequence[Truth], rows: Rows) -> dict[str, Any]:
    """`accuracy_report` of verdicts: `greedy` averages over the orders; `several` is the same of items with two responses and more."""

    def told(chosen: Sequence[int]) -> dict[str, Any]:
        own = [rows[i] for i in chosen]
        return accuracy_report([truths[i] for i in chosen], [row[:1] for row in own], (1,), SCORE_RANGE, greedy=own)

    several = [i for i, truth in enumerate(truths) if truth.num_responses > 1]
    return {**told(range(len(truths))), **({"several": told(several)} if several else {})}


class _Valuing:
    """A form that values text. Every item is computed by itself, so that its values are the same in whatever run."""

    def __init__(self, form: ValueForm) -> None:
        self._form = form
        self.way = Pass("values", SamplingParams(samples=1, temperature=0.0))
        self.critiques: CritiqueStore | None = None

    def fingerprints(self) -> dict[str, str]:
        """Hash weights, tokenizer, template, numerics and versions."""
        return self._form.model.fingerprints()

    def verdicts(self, items: Sequence[Question], places: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        """Value the items in their order."""
        for place in places:
            yield place, self._verdict(items[place].request())

    @torch.no_grad()
    def _verdict(self, request: ScoreRequest) -> Verdict:
        form = self._form
        try:
            texts = form.texts(request)
            form.model.check_fits(texts)
        except CapacityError as error:
            return Verdict((), error)
        scores = tuple(round(_UNIT * score) for score in form.scores(request, form.model.values(texts))) if texts else None
        return Verdict((DrawnSample(scores, num_tokens=form.num_written(request)),))


class _Reading(_Valuing):
    """A form that values a response together with the critique of it, which the critic writes first."""

    def __init__(self, model: ValueModel, engine: Engine, max_tokens: int) -> None:
        critiques = CritiqueStore(None)
        super().__init__(SemiScalarForm(model, critiques))
        self.critiques, self._engine, self._max_tokens = critiques, engine, max_tokens

    def fingerprints(self) -> dict[str, str]:
        """Those of the value, and the critic's as one."""
        critic = self._engine.fingerprints(critique_sampling(self._max_tokens), CRITIQUE_VOTING)
        return {**super().fingerprints(), "sampling": critic.pop("sampling"), "critic": "-".join(critic[name] for name in sorted(critic))}

    def verdicts(self, items: Sequence[Question], places: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        """Write the critiques that are lacking, all together, then value the items in their order."""
        assert self.critiques is not None, "a form that reads critiques has a store of them"
        self.critiques.draw(self._engine, (items[place].request() for place in places), self._max_tokens)
        yield from super().verdicts(items, places)


class _Picking:
    """A judge that names a place, once for each rotation of the responses; it has nothing to pick from a single one."""

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self.way = passes(SamplingParams(max_tokens=max_tokens), greedy=True)[1]
        self.critiques: CritiqueStore | None = None

    def fingerprints(self) -> dict[str, str]:
        """The engine's."""
        return self._engine.fingerprints(self.way.sampling, _UNFILTERED)

    def verdicts(self, items: Sequence[Question], places: Sequence[int]) -> Iterator[tuple[int, Verdict]]:
        """Ask the engine for all of them at once."""
        for place in places:
            if len(items[place].responses) == 1:
                yield place, Verdict(tuple(self.way.unread(items[place])))
        asked = [place for place in places if len(items[place].responses) > 1]
        requests: Iterable[ScoreRequest] = (self.way.request(items[place]) for place in asked)
        for judgement in self._engine.score_batch(requests, sampling=self.way.sampling, voting=_UNFILTERED):
            place = asked[judgement.index]
            if judgement.error is None:
                count = len(items[place].responses)
                picks = (DrawnSample(picked(s, count), order=s.order, num_tokens=s.num_tokens) for s in judgement.samples)
                yield place, Verdict(tuple(picks))
            elif isinstance(judgement.error, CapacityError):
                yield place, Verdict((), judgement.error)
            else:
                raise judgement.error

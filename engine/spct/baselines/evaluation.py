"""Verdicts of a baseline as the samples that an evaluation counts: one per item of a form that values, one per order of a judge."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from spct.assembly import choose_device
from spct.baselines.critiques import CritiqueStore
from spct.baselines.learners import CRITIC
from spct.baselines.text_forms import picked
from spct.baselines.value_forms import PairwiseForm, ScalarForm, SemiScalarForm, ValueForm
from spct.baselines.value_model import ValueModel
from spct.engine import Engine
from spct.errors import CapacityError
from spct.evaluation.accuracy import DrawnSample, Truth
from spct.evaluation.judging import Question, passes
from spct.evaluation.report import accuracy_report
from spct.training.sample_batches import Example
from spct.types import SamplingParams, ScoreRequest, VotingParams

# Values as fixed-point numbers: an evaluation's scores are integers, and 0 is their middle.
_UNIT = 1_000_000
SCORE_RANGE = (-_UNIT, _UNIT)
_ITEMS_AT_ONCE = 8

Rows = list[list[DrawnSample]]


def verdicts(
    form: str,
    folder: Path,
    items: Sequence[Question],
    *,
    device: str,
    max_tokens: int,
    done: Callable[[str], None],
    drawn: Path | None = None,
) -> Rows:
    """For each item its verdicts at temperature 0; those of an item that the form can't judge have no scores.

    folder  of a trained baseline
    done    called as each item ends
    drawn   file of critiques, so that a killed run need not write them again; None: they are written for this run alone

    Raises: CheckpointError if the folder can't be loaded; the engine's error for an item that it refuses, its length aside.
    """
    if form == "judge":
        with Engine.from_pretrained(folder, device=device) as engine:
            return _picks(engine, items, max_tokens, done)
    model = ValueModel(folder, choose_device(device))
    requests = [item.request() for item in items]
    if form == "semi-scalar":
        with tempfile.TemporaryDirectory() as place, Engine.from_pretrained(folder / CRITIC, device=device) as engine:
            critiques = CritiqueStore(drawn or Path(place) / "critiques.jsonl")
            critiques.draw(engine, requests, max_tokens)
        return _values(SemiScalarForm(model, critiques), requests, done)
    return _values((ScalarForm if form == "scalar" else PairwiseForm)(model), requests, done)


def baseline_report(truths: Sequence[Truth], rows: Rows) -> dict[str, Any]:
    """`accuracy_report` of verdicts: `greedy` averages over the orders; `several` is the same of items with two responses and more."""

    def told(chosen: Sequence[int]) -> dict[str, Any]:
        own = [rows[i] for i in chosen]
        return accuracy_report([truths[i] for i in chosen], [row[:1] for row in own], (1,), SCORE_RANGE, greedy=own)

    several = [i for i, truth in enumerate(truths) if truth.num_responses > 1]
    return {**told(range(len(truths))), **({"several": told(several)} if several else {})}


@torch.no_grad()
def _values(form: ValueForm, requests: Sequence[ScoreRequest], done: Callable[[str], None]) -> Rows:
    rows: Rows = []
    for start in range(0, len(requests), _ITEMS_AT_ONCE):
        here = requests[start : start + _ITEMS_AT_ONCE]
        texts = [_texts(form, request) for request in here]
        shown = [example for examples in texts for example in examples]
        values = form.model.values(shown) if shown else torch.empty(0)
        counts = [sum(len(example.samples) for example in examples) for examples in texts]
        for request, count, own in zip(here, counts, torch.split(values, counts), strict=True):
            scores = tuple(round(_UNIT * score) for score in form.scores(request, own)) if count else None
            rows.append([DrawnSample(scores, num_tokens=form.num_written(request))])
            done(f"{len(rows)}")
    return rows


def _texts(form: ValueForm, request: ScoreRequest) -> list[Example]:
    """A request laid out; nothing where it is too long to be judged."""
    try:
        texts = form.texts(request)
        form.model.check_fits(texts)
    except CapacityError:
        return []
    return texts


def _picks(engine: Engine, items: Sequence[Question], max_tokens: int, done: Callable[[str], None]) -> Rows:
    """What a judge that names a place picks, once for each rotation of the responses; it has nothing to pick from a single one."""
    greedy = passes(SamplingParams(max_tokens=max_tokens), greedy=True)[1]
    rows: Rows = [greedy.unread(item) for item in items]
    asked = [i for i, item in enumerate(items) if len(item.responses) > 1]
    requests: Iterable[ScoreRequest] = (greedy.request(items[i]) for i in asked)
    for _ in range(len(items) - len(asked)):
        done("")
    for judgement in engine.score_batch(requests, sampling=greedy.sampling, voting=VotingParams(filter="none")):
        if judgement.error is not None and not isinstance(judgement.error, CapacityError):
            raise judgement.error
        i = asked[judgement.index]
        if judgement.error is None:
            count = len(items[i].responses)
            rows[i] = [DrawnSample(picked(s, count), order=s.order, num_tokens=s.num_tokens) for s in judgement.samples]
        done("")
    return rows

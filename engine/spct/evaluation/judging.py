"""Draws the samples that an evaluation counts, with the engine."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from spct.engine import Engine
from spct.evaluation.accuracy import DrawnSample
from spct.evaluation.embedded_test import truth_of
from spct.evaluation.report import accuracy_report
from spct.training.tasks import Item
from spct.types import SamplingParams, VotingParams


def draw_samples(engine: Engine, items: Sequence[Item], sampling: SamplingParams) -> list[list[DrawnSample]]:
    """Judge every item; return its samples in the order of their index.

    Raises: the first item's error, if one could not be judged.
    """
    console = Console(stderr=True)
    rows: list[list[DrawnSample]] = [[] for _ in items]
    requests = [item.request(id=i) for i, item in enumerate(items)]
    stream = engine.score_batch(requests, sampling=sampling, voting=VotingParams(filter="none"))
    for judgement in track(stream, total=len(items), description="judging", console=console, disable=not console.is_terminal):
        if judgement.error is not None:
            raise judgement.error
        rows[judgement.index] = [DrawnSample(s.scores, s.meta_score, s.logprob) for s in judgement.samples]
    return rows


def evaluate(items: Sequence[Item], *, ks: Sequence[int], args: argparse.Namespace) -> dict[str, Any]:
    """Judge the items with max(ks) samples each and report accuracy at every k.

    Raises: SpctError as the engine does.
    """
    sampling = SamplingParams(samples=max(ks), temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed)
    with Engine.from_pretrained(args.model) as engine:
        samples = draw_samples(engine, items, sampling)
        score_range = engine.prompt.score_range(2)
    return accuracy_report([truth_of(item) for item in items], samples, ks, score_range)

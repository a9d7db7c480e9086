"""Rows of the output, as bytes of one line each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from spct.cli.jsonl import InputRow
from spct.errors import SpctError
from spct.ranking import Ranking
from spct.types import Judgement, Sample

# A message quotes what it refuses; a row of hostile input must not come back as a message of the same size.
_MAX_MESSAGE = 1000


def judgement_row(
    row: InputRow, judgement: Judgement, run: Mapping[str, str], *, include_text: bool, include_expected: bool = False
) -> bytes:
    """The output row of a request that was judged, or of one that the engine refused.

    include_text      the text of every sample
    include_expected  the expected scores of every sample, of soft votes
    """
    if judgement.error is not None:
        return error_row(row, judgement.error, run)
    extra = (*(("expected",) if include_expected else ()), *(("text",) if include_text else ()))
    return msgspec.json.encode(
        {
            "id": row.id,
            "status": "ok",
            "rewards": judgement.rewards,
            "best": judgement.best,
            "num_votes": judgement.num_votes,
            "stdev": judgement.stdev,
            "samples": [_sample(sample, extra) for sample in judgement.samples],
            "usage": judgement.usage,
            "timings": judgement.timings,
            "error": None,
            "key": row.key,
            "run": run,
        }
    )


def ranking_row(row: InputRow, ranking: Ranking, run: Mapping[str, str], *, include_text: bool, include_expected: bool = False) -> bytes:
    """The output row of a request that was ranked: a judgement's, with the ranking and the votes of each response.

    Scores of a sample that was shown some of the responses are null for the others; its `order` names those that it was shown.
    """
    extra = (*(("expected",) if include_expected else ()), *(("text",) if include_text else ()))
    count = len(ranking.rewards)
    return msgspec.json.encode(
        {
            "id": row.id,
            "status": "ok",
            "ranking": ranking.ranking,
            "rewards": ranking.rewards,
            "best": ranking.best,
            "num_votes": ranking.num_votes,
            "stdev": ranking.stdev,
            "samples": [
                _in_whole(_sample(sample, extra), places, count)
                for places, judgement in zip(ranking.parts, ranking.judgements, strict=True)
                for sample in judgement.samples
            ],
            "usage": ranking.usage,
            "timings": ranking.timings,
            "error": None,
            "key": row.key,
            "run": run,
        }
    )


def error_row(row: InputRow, error: SpctError, run: Mapping[str, str]) -> bytes:
    """The output row of a request that can't be judged."""
    message = str(error).encode("utf-8", "backslashreplace").decode()
    if len(message) > _MAX_MESSAGE:
        message = message[:_MAX_MESSAGE] + "…"
    return msgspec.json.encode(
        {
            "id": row.id,
            "status": "error",
            "rewards": [],
            "best": None,
            "num_votes": 0,
            "stdev": [],
            "samples": [],
            "usage": {"prompt_tokens": 0, "prefilled_tokens": 0, "generated_tokens": 0},
            "timings": None,
            "error": {"type": type(error).__name__, "message": message, "line": row.line},
            "key": row.key,
            "run": run,
        }
    )


class Outcome(Protocol):
    """What an evaluation writes of an item: a judgement, or a verdict of a baseline."""

    @property
    def samples(self) -> Sequence[Any]:
        """What was drawn: samples of the engine, or what an evaluation keeps of them."""

    @property
    def error(self) -> SpctError | None:
        """Why the item was not judged."""


def drawn_row(key: str, name: str, outcome: Outcome, run: Mapping[str, str], seconds: float) -> bytes:
    """The row of an evaluation: the samples of one item, or the error for which it was not judged.

    name     which of the evaluation's passes drew them
    seconds  wall time since the row before
    """
    fields = ("scores", "status", "expected", "meta_score", "logprob", "order", "num_tokens")
    error = outcome.error
    return msgspec.json.encode(
        {
            "key": key,
            "pass": name,
            "status": "ok" if error is None else "error",
            "samples": [{field: getattr(s, field) for field in fields if hasattr(s, field)} for s in outcome.samples],
            **({"usage": outcome.usage, "timings": outcome.timings} if isinstance(outcome, Judgement) else {}),
            "error": None if error is None else {"type": type(error).__name__, "message": str(error)},
            "seconds": round(seconds, 6),
            "run": run,
        }
    )


def run_parts(fingerprints: Mapping[str, str], include: str | None) -> dict[str, str]:
    """A short hash of everything that a row depends on beside its request, by name, so that what differs can be told.

    fingerprints  of the engine: weights, tokenizer, template, sampling, voting, numerics, versions
    include       what `--include` adds to a row
    """
    return {**fingerprints, "include": hashlib.blake2b((include or "").encode(), digest_size=4).hexdigest()}


def _sample(sample: Sample, extra: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in ("scores", "status", "kept", "meta_score", "order", "num_tokens", *extra)}


def _in_whole(sample: dict[str, Any], places: Sequence[int], count: int) -> dict[str, Any]:
    """A sample of a part, told in terms of all `count` responses; `places` are the part's."""
    for name in ("scores", "expected"):
        if sample.get(name) is not None:
            known = dict(zip(places, sample[name], strict=True))
            sample[name] = [known.get(i) for i in range(count)]
    return {**sample, "order": [places[shown] for shown in sample["order"]]}

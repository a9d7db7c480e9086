"""Rows of the output, as bytes of one line each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from spct.cli.jsonl import InputRow
from spct.errors import SpctError
from spct.types import Judgement, Sample

# A message quotes what it refuses; a row of hostile input must not come back as a message of the same size.
_MAX_MESSAGE = 1000


def judgement_row(row: InputRow, judgement: Judgement, run: Mapping[str, str], *, include_text: bool) -> bytes:
    """The output row of a request that was judged, or of one that the engine refused."""
    if judgement.error is not None:
        return error_row(row, judgement.error, run)
    return msgspec.json.encode(
        {
            "id": row.id,
            "status": "ok",
            "rewards": judgement.rewards,
            "best": judgement.best,
            "num_votes": judgement.num_votes,
            "stdev": judgement.stdev,
            "samples": [_sample(sample, include_text) for sample in judgement.samples],
            "usage": judgement.usage,
            "timings": judgement.timings,
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


def run_parts(fingerprints: Mapping[str, str], include: str | None) -> dict[str, str]:
    """A short hash of everything that a row depends on beside its request, by name, so that what differs can be told.

    fingerprints  of the engine: weights, tokenizer, template, sampling, voting, numerics, versions
    include       what `--include` adds to a row
    """
    return {**fingerprints, "include": hashlib.blake2b((include or "").encode(), digest_size=4).hexdigest()}


def _sample(sample: Sample, include_text: bool) -> dict[str, Any]:
    fields = ("scores", "status", "kept", "meta_score", "order", "num_tokens", *(("text",) if include_text else ()))
    return {name: getattr(sample, name) for name in fields}

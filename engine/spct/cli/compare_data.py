"""What `spct compare` reads: two files of responses, matched row by row; no row is dropped in silence."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spct.cli.jsonl import InputRow, parse_value, request_of, row_key
from spct.errors import InputError
from spct.types import ScoreRequest

_NO_FIELDS = ("samples", "seed")


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of a file: its line, and the prompt with the one response to it."""

    line: int
    request: ScoreRequest


@dataclass(frozen=True, slots=True)
class Matched:
    """Two files, matched.

    rows       a request with both responses per prompt, in the order of the first file; `line` is that of the first file
    unmatched  {"file", "line", "id"} of every row that the other file lacks
    by         "id" or "query"
    """

    rows: tuple[InputRow, ...]
    unmatched: tuple[dict[str, Any], ...]
    by: str


def read_pairs(first: Path, second: Path) -> Matched:
    """Read and match two files: by id where every row of both has one, else by the query.

    Raises: InputError naming file and line of a row that is malformed, stands twice, or asks something else than its partner; or if no
    row has a partner.
    """
    files = (first, second)
    answers = [_read(path) for path in files]
    by = "id" if all(a.request.id is not None for file in answers for a in file) else "query"
    known = [_by_key(path, file, by) for path, file in zip(files, answers, strict=True)]
    rows = []
    for key, answer in known[0].items():
        if key in known[1]:
            rows.append(_pair(files, answer, known[1][key]))
    if not rows:
        raise InputError(f"{first}, {second}: expected rows of the same {by}, got none in common")
    unmatched = [
        {"file": path.name, "line": answer.line, "id": answer.request.id}
        for path, own, other in zip(files, known, reversed(known), strict=True)
        for key, answer in own.items()
        if key not in other
    ]
    return Matched(tuple(rows), tuple(unmatched), by)


def _read(path: Path) -> list[Answer]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from None
    answers = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                answers.append(Answer(number, _answer(parse_value(line))))
            except InputError as error:
                raise InputError(f"{path}, line {number}: {error}") from None
    if not answers:
        raise InputError(f"{path}: expected one JSON object per line, got an empty file")
    return answers


def _answer(value: object) -> ScoreRequest:
    if isinstance(value, dict):
        if "response" in value and "responses" in value:
            raise InputError("response, responses: expected one of the two fields, got both")
        if "response" in value:
            value = {**{name: field for name, field in value.items() if name != "response"}, "responses": [value["response"]]}
        for name in _NO_FIELDS:
            if name in value:
                raise InputError(f"{name}: expected as a flag, the same for all rows, got it in a row")
    request = request_of(value)
    if len(request.responses) != 1:
        raise InputError(f"responses: expected one response per row, got {len(request.responses)}; `spct rank` orders several")
    return request


def _by_key(path: Path, answers: Sequence[Answer], by: str) -> dict[Hashable, Answer]:
    known: dict[Hashable, Answer] = {}
    for answer in answers:
        key: Hashable = answer.request.id if by == "id" else answer.request.query
        if key in known:
            told = f"id {answer.request.id!r}" if by == "id" else "query (give every row an id to tell them apart)"
            raise InputError(f"{path}, lines {known[key].line} and {answer.line}: expected every prompt once, got the same {told} twice")
        known[key] = answer
    return known


def _pair(files: tuple[Path, Path], a: Answer, b: Answer) -> InputRow:
    first, second = a.request, b.request
    for name in ("query", "reference", "principles"):
        if getattr(first, name) != getattr(second, name):
            places = f"{files[0]}, line {a.line} and {files[1]}, line {b.line}"
            raise InputError(f"{places}: {name}: expected the same in both rows (id {first.id!r}), got two different ones")
    request = ScoreRequest(
        first.query,
        [first.responses[0], second.responses[0]],
        reference=first.reference,
        principles=first.principles,
        id=first.id if first.id is not None else second.id,
    )
    return InputRow(a.line, row_key(request), request.id, request)

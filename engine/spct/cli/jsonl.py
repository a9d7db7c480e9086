"""Rows of the input: one JSON object per line, read so that no line can stop the others."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from spct.errors import InputError
from spct.types import ScoreRequest

# A line is held in memory twice while it is read, so one line may not be the whole input.
MAX_ROW_BYTES = 64 * 2**20
_BOM = b"\xef\xbb\xbf"
_FIELDS = ("id", "query", "responses", "reference", "principles", "samples", "seed")
_INTEGER_DIGITS = 20
_SPACE = " \t\r\n"

RowId = str | int | None


class Lines(Protocol):
    """Anything with lines: an open binary file, or a `Source`."""

    def readline(self, limit: int, /) -> bytes:
        """The next line with its newline, or its first `limit` bytes; empty at the end."""


@dataclass(frozen=True, slots=True)
class InputRow:
    """One line of the input that is not blank: a request, or the reason why it is none.

    line   its number in the input, from 1
    key    hash of its content, with the number of equal rows before it: the same row twice has two keys
    id     the caller's, where it can be read
    """

    line: int
    key: str
    id: RowId
    request: ScoreRequest | None
    error: InputError | None = None


def read_rows(stream: Lines) -> Iterator[InputRow]:
    """Every row of `stream`, one at a time; a bad row comes with its error.

    Cost: memory of one line, and about 100 bytes for every row read so far (its hash).
    Raises: OSError if the stream can't be read.
    """
    seen: Counter[bytes] = Counter()
    for number, line, digest in _lines(stream):
        request, error, row_id = None, None, None
        if line is None:
            error = InputError(f"the row is longer than {MAX_ROW_BYTES} bytes; split the request or shorten its texts")
        else:
            try:
                request = parse_request(line)
                row_id, digest = request.id, _digest(request)
            except InputError as refusal:
                error, row_id = refusal, recover_id(line)
        occurrence = seen[digest]
        seen[digest] += 1
        yield InputRow(number, f"{digest.hex()}-{occurrence}", row_id, request, error)


def parse_request(line: bytes) -> ScoreRequest:
    """The request that one line of JSON asks for.

    Strict: as `parse_value`, and no unknown field.
    Raises: InputError saying what is wrong with the line.
    """
    return request_of(parse_value(line))


def parse_value(line: bytes) -> object:
    """The value of one line of JSON. Strict: UTF-8, no duplicate keys, no NaN, no number that a 64-bit type can't hold.

    Raises: InputError saying what is wrong with the line.
    """
    try:
        value: object = _DECODER.decode(line.decode("utf-8"))
        return value
    except UnicodeDecodeError as error:
        raise InputError(f"the row is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"malformed JSON: {error.msg} at column {error.colno}; expected one object per line") from None
    except RecursionError:
        raise InputError("the row is nested too deeply; expected an object of strings and lists of strings") from None


def request_of(value: object) -> ScoreRequest:
    """The request of a row's value. Raises: InputError naming the field that is missing, unknown or malformed."""
    if not isinstance(value, dict):
        raise InputError(f"expected a JSON object per line, got {_json_kind(value)}")
    unknown = [name for name in value if name not in _FIELDS]
    if unknown:
        raise InputError(f"unknown field {_shown(unknown[0])}; known fields: {', '.join(_FIELDS)}")
    for name in ("query", "responses"):
        if name not in value:
            raise InputError(f"{name}: the field is missing; a row needs at least query and responses")
    if not _valid_id(value.get("id")):
        raise InputError(f"id: expected a string or a 64-bit integer, got {_json_kind(value['id'])}")
    for name in ("query", "principles"):
        if isinstance(value.get(name), Mapping):
            raise InputError(f"{name}: expected a string or a list, got an object")
    return ScoreRequest(**value)


def row_key(request: ScoreRequest, occurrence: int = 0) -> str:
    """The key of a row that asks for `request`, with `occurrence` equal rows before it."""
    return f"{_digest(request).hex()}-{occurrence}"


def recover_id(line: bytes) -> RowId:
    """The `id` of a line that is no request, where it stands before the fault (or the line is JSON); else None."""
    text = line.decode("utf-8", "replace").strip(_SPACE)
    found: list[object] = []
    try:
        for name, value in _leading_pairs(text):
            if name == "id":
                found.append(value)
    except (ValueError, RecursionError):
        pass
    if len(found) != 1:
        return None
    value = found[0]
    return value if _valid_id(value) and (isinstance(value, str | int)) else None


def _digest(request: ScoreRequest) -> bytes:
    r = request
    content = msgspec.json.encode([r.query, r.responses, r.reference, r.principles, r.id, r.samples, r.seed])
    return hashlib.blake2b(content, digest_size=16, person=b"request").digest()


def _lines(stream: Lines) -> Iterator[tuple[int, bytes | None, bytes]]:
    """(number, line or None if it is too long, hash of its bytes) of every line that is not blank."""
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        hasher = hashlib.blake2b(line.strip(), digest_size=16, person=b"line")
        if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(2**20)
                hasher.update(line)
            yield number, None, hasher.digest()
        elif line.strip():
            yield number, line, hasher.digest()


def _leading_pairs(text: str) -> Iterator[tuple[str, object]]:
    """Members of the object that `text` begins with, up to the first fault (a ValueError)."""
    if not text.startswith("{"):
        return
    at = 1
    while True:
        name, at = _LENIENT.raw_decode(text, _skip_space(text, at))
        at = _skip_space(text, at)
        if not isinstance(name, str) or text[at : at + 1] != ":":
            return
        value, at = _LENIENT.raw_decode(text, _skip_space(text, at + 1))
        yield name, value
        at = _skip_space(text, at)
        if text[at : at + 1] != ",":
            return
        at += 1


def _skip_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _valid_id(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**64)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = Counter(name for name, _ in pairs)
        raise InputError(f"duplicate key {_shown(names.most_common(1)[0][0])}; every key may stand once")
    return value


def _parse_int(text: str) -> int:
    if len(text) > _INTEGER_DIGITS:
        raise InputError(f"the integer {text[:_INTEGER_DIGITS]}… has {len(text)} digits; expected at most 64 bits")
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise InputError(f"the number {text[:_INTEGER_DIGITS]} is out of range")
    return value


def _parse_constant(text: str) -> float:
    raise InputError(f"{text} is not JSON; expected a number or null")


def _ignore_number(text: str) -> object:
    return int(text) if len(text) <= _INTEGER_DIGITS else math.inf


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_parse_int, parse_float=_parse_float, parse_constant=_parse_constant)
_LENIENT = json.JSONDecoder(parse_int=_ignore_number)


def _shown(name: str) -> str:
    return json.dumps(name if len(name) <= 60 else name[:60] + "…")


def _json_kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "true or false", int: "an integer", float: "a number"}
    return kinds.get(type(value), "null")

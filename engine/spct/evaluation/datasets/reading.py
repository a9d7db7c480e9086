"""Rows of a JSON array or of JSON lines, one at a time, and their fields; every fault names the file, the line and the field."""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

from spct.errors import InputError
from spct.types import ScoreRequest, Turn

_GZIP, _PARQUET, _BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"
_SPACE, _NEWLINE = " \t\r\n", b"\n"
_SHOWN = 80
# What some files call the roles of a conversation.
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file. Every method that reads a field raises InputError, naming file, line and field, if it is not what it should be.

    line    where the row begins, from 1
    number  its place among the rows, from 0
    """

    path: Path
    line: int
    number: int
    fields: Mapping[str, Any]

    @property
    def place(self) -> str:
        """A name that no other row has, whatever the file's ids."""
        return f"{self.path}:{self.number}"

    def fail(self, field: str, expected: str, got: object) -> NoReturn:
        """Refuse a field.

        Raises: InputError, always.
        """
        raise InputError(f"{self.path}, line {self.line}, {field}: expected {expected}, got {_shown(got)}")

    def value(self, field: str, expected: str = "the field") -> Any:
        """A field that must be there."""
        if field not in self.fields:
            raise InputError(f"{self.path}, line {self.line}, {field}: the field is missing; expected {expected}")
        return self.fields[field]

    def text(self, field: str) -> str:
        """A string, which may be empty: an empty response is a response."""
        return self.as_text(field, self.value(field, "a string"))

    def as_text(self, field: str, value: object) -> str:
        """A value that must be a string of valid Unicode."""
        if not isinstance(value, str):
            self.fail(field, "a string", value)
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            self.fail(field, "valid Unicode", "a lone surrogate")
        return value

    def name(self, field: str, default: str) -> str:
        """A short label, or the default where the field is missing or null; an integer is written out."""
        value = self.fields.get(field)
        if value is None:
            return default
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else self.as_text(field, value)

    def texts(self, field: str, count: int | None = None) -> tuple[str, ...]:
        """A list of strings: at least one, or exactly `count`."""
        wanted = "a list of strings" if count is None else f"a list of {count} strings"
        value = self.value(field, wanted)
        if not isinstance(value, list) or not value or (count is not None and len(value) != count):
            self.fail(field, wanted, value)
        return tuple(self.as_text(f"{field}[{i}]", text) for i, text in enumerate(value))

    def choice(self, field: str, choices: Collection[Any]) -> Any:
        """One of a few values, of the same type."""
        value = self.value(field, _listed(choices))
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            self.fail(field, _listed(choices), value)
        return value

    def number_from(self, field: str, low: float, high: float) -> float:
        """A number within limits."""
        value = self.value(field, f"a number from {low:g} to {high:g}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fail(field, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def inner_text(self, field: str, inner: str) -> str:
        """A string within an object: `field` is the object's name, as in a message."""
        return self.text_within(field, self.value(field, f"an object with {inner}"), inner)

    def text_within(self, field: str, value: object, inner: str) -> str:
        """A string within an object that was already read."""
        if not isinstance(value, dict) or inner not in value:
            self.fail(field, f"an object with {inner}", value)
        return self.as_text(f"{field}.{inner}", value[inner])

    def conversation(self, field: str) -> str | tuple[Turn, ...]:
        """A string, or turns with a role and content; a single turn of a user is that user's text."""
        value = self.value(field, "a string or a list of turns")
        if isinstance(value, str):
            return self.as_text(field, value)
        if not isinstance(value, list) or not value:
            self.fail(field, "a string or a non-empty list of turns", value)
        turns = tuple(self._turn(f"{field}[{i}]", turn) for i, turn in enumerate(value))
        return turns[0].content if len(turns) == 1 and turns[0].role == "user" else turns

    def request(self, fields: Mapping[str, Any]) -> ScoreRequest:
        """What `spct score` would make of these fields.

        Raises: InputError naming file, line and field.
        """
        try:
            return ScoreRequest(**fields)
        except InputError as error:
            raise InputError(f"{self.path}, line {self.line}, {error}") from None

    def _turn(self, field: str, value: object) -> Turn:
        content = self.text_within(field, value, "content")
        role = self.text_within(field, value, "role")
        role = _ROLES.get(role, role)
        if role not in ("system", "user", "assistant", "tool"):
            self.fail(f"{field}.role", "system, user, assistant or tool", role)
        return Turn(role, content)


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file: JSON lines, or one JSON array of objects, either also compressed with gzip.

    Lines are read one at a time; of an array the text is held in memory, and one row of it at a time. Blank lines are skipped.

    Raises: InputError if the file can't be read, holds no row, or has a line or an element that is no object, naming file and line.
    """
    number = -1
    try:
        with _open(path) as file:
            first = _first_byte(file, path)
            elements = _array(file.read(), path) if first == b"[" else _lines(file, path)
            for number, (line, value) in enumerate(elements):
                if not isinstance(value, dict):
                    raise InputError(f"{path}, line {line}: expected a JSON object, got {_shown(value)}")
                yield Row(path, line, number, value)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: can't be read: {getattr(error, 'strerror', None) or error}") from None
    if number < 0:
        raise InputError(f"{path}: expected rows, one JSON object per line or an array of objects, got an empty file")


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == _PARQUET:
        raise InputError(
            f"{path}: a Parquet file; expected JSON. Write it as JSON lines first, such as with "
            'datasets.load_dataset("parquet", data_files=FILE)["train"].to_json(OUT)'
        )
    # GzipFile reads, peeks and iterates as an open file does; typeshed does not say so.
    return cast("IO[bytes]", gzip.open(path, "rb")) if magic[:2] == _GZIP else path.open("rb")


def _first_byte(file: IO[bytes], path: Path) -> bytes:
    """The first byte that is no space, with the file put back to before it."""
    start = len(_BOM) if file.read(len(_BOM)) == _BOM else 0
    file.seek(start)
    while (byte := file.read(1)) and byte.isspace():
        pass
    if byte and byte not in b"[{":
        raise InputError(f"{path}: expected JSON: one object per line, or an array of objects; it begins with {byte!r}")
    file.seek(start)
    return byte


def _lines(file: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    for line, content in enumerate(file, 1):
        if content.strip():
            try:
                yield line, _DECODER.decode(content.decode("utf-8"))
            except json.JSONDecodeError as error:
                raise InputError(f"{path}, line {line}: malformed JSON: {error.msg} at column {error.colno}") from None
            except UnicodeDecodeError as error:
                raise InputError(f"{path}, line {line}: not UTF-8: {error.reason} at byte {error.start}") from None
            except (InputError, RecursionError) as error:
                raise InputError(f"{path}, line {line}: {error}") from None


def _array(content: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    """The elements of an array, with the lines on which they begin."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, line {content.count(_NEWLINE, 0, error.start) + 1}: not UTF-8: {error.reason}") from None
    at, line, counted, mark = _skip(text, 0), 1, 0, "["
    while mark != "]":
        at = _skip(text, at + 1)
        if mark == "[" and text[at : at + 1] == "]":
            break
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = _DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {error.lineno}: malformed JSON: {error.msg} at column {error.colno}") from None
        except (InputError, RecursionError) as error:
            raise InputError(f"{path}, line {line}: {error}") from None
        yield line, value
        at = _skip(text, at)
        mark = text[at : at + 1]
        if mark not in (",", "]"):
            raise InputError(f"{path}, line {_line_of(text, at)}: malformed JSON: expected , or ] after a row, got {_shown(mark)}")
    end = _skip(text, at + 1)
    if end != len(text):
        raise InputError(f"{path}, line {_line_of(text, end)}: malformed JSON: there is text after the array")


def _line_of(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _skip(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise InputError(f"{name}: the field stands twice; every field may stand once")
    return value


def _refuse_constant(text: str) -> float:
    raise InputError(f"{text} is not JSON; expected a number or null")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)


def _listed(choices: Collection[Any]) -> str:
    *most, last = [json.dumps(choice) for choice in choices]
    return f"{', '.join(most)} or {last}" if most else last


def _shown(value: object) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"

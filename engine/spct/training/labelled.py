"""Judging requests of known truth, for training: the project's own tasks, or the rows of a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol, TypeVar

from spct.errors import InputError, SpctError
from spct.training.tasks import DOMAINS, draw_item
from spct.types import ScoreRequest

# A row is what `spct score` reads, and its truth. How often and from which seed it is sampled is the training's own business.
_FIELDS = ("id", "query", "responses", "reference", "principles", "samples", "seed", "best", "domain")
_UNUSED = ("samples", "seed")

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class LabelledRequest:
    """A request and which of its responses is right.

    best    index of the strictly best response; with one response 0 if it is good, None if it is bad
    domain  what statistics report apart
    """

    request: ScoreRequest
    best: int | None
    domain: str

    def in_order(self, order: Sequence[int]) -> LabelledRequest:
        """Give the same question with its responses permuted: place p holds what was response `order[p]`."""
        responses = tuple(self.request.responses[i] for i in order)
        best = None if self.best is None else list(order).index(self.best)
        return LabelledRequest(replace(self.request, responses=responses), best, self.domain)


class Labelled(Protocol):
    """An endless, seeded stream of labelled requests."""

    def draw(self, index: int) -> LabelledRequest:
        """Give request `index` of the stream: the same whatever was drawn before."""


@dataclass(frozen=True, slots=True)
class GeneratedRequests:
    """The training split of the project's own tasks, the domains in turn; never an item of a held-out split."""

    seed: int
    domains: tuple[str, ...] = ()

    def draw(self, index: int) -> LabelledRequest:
        """Give request `index`.

        Raises: ConfigError if a domain is unknown.
        """
        turns = self.domains or tuple(DOMAINS)
        item = draw_item("train", self.seed, index, domain=turns[index % len(turns)])
        return LabelledRequest(item.request(), item.best, item.domain)


@dataclass(frozen=True, slots=True)
class GivenRequests:
    """The rows of a file over and over, each pass in a new order drawn from the seed."""

    rows: tuple[LabelledRequest, ...]
    seed: int

    def draw(self, index: int) -> LabelledRequest:
        """Give request `index`: pass index // len(rows), place index % len(rows) in it."""
        turn, place = divmod(index, len(self.rows))
        order = list(range(len(self.rows)))
        Random(f"rows/{self.seed}/{turn}").shuffle(order)
        return self.rows[order[place]]


def open_requests(data: Path | None, seed: int, domains: Sequence[str] = ()) -> Labelled:
    """Give the requests of a file, or the project's own without one.

    Raises: InputError as `read_labelled`.
    """
    return GeneratedRequests(seed, tuple(domains)) if data is None else GivenRequests(read_labelled(data), seed)


def read_labelled(path: Path) -> tuple[LabelledRequest, ...]:
    """Read rows {"query", "responses", "best", "reference"?, "principles"?, "domain"?, "id"?}; blank lines are skipped.

    `best` is the index of the best response, or null for a single response that is bad. `samples` and `seed` of a row are left out.

    Raises: InputError naming the line that is no such row, or if there is none.
    """
    return read_rows(path, _labelled)


def read_rows(path: Path, parse: Callable[[Any], Row]) -> tuple[Row, ...]:
    """Read a file of one JSON value per line through `parse`; blank lines are skipped.

    Raises: InputError if the file can't be read, has no row or a line that is no JSON; what `parse` raises of `SpctError`, with the
    line named.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(parse(json.loads(line)))
            except SpctError as error:
                raise type(error)(f"{path}, line {number}: {error}") from None
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: {error}") from None
    if not rows:
        raise InputError(f"{path}: expected one JSON object per line, got an empty file")
    return tuple(rows)


def request_of(row: Any, *, needed: Sequence[str] = (), known: Sequence[str] = ()) -> ScoreRequest:
    """Give the request of a row, whatever else stands in it.

    needed  fields that it must have beside query and responses
    known   fields that it may have beside those of a labelled row

    Raises: InputError saying what is wrong with the row.
    """
    if not isinstance(row, dict):
        raise InputError(f"expected a JSON object, got {type(row).__name__}")
    fields = (*_FIELDS, *known)
    unknown = [name for name in row if name not in fields]
    if unknown:
        raise InputError(f"unknown field {unknown[0]!r}; known fields: {', '.join(fields)}")
    wanted = ("query", "responses", *needed)
    for name in wanted:
        if name not in row:
            raise InputError(f"{name}: the field is missing; a row needs {', '.join(wanted[:-1])} and {wanted[-1]}")
    if not isinstance(row.get("domain", ""), str):
        raise InputError(f"domain: expected a string, got {type(row['domain']).__name__}")
    return ScoreRequest(**{k: v for k, v in row.items() if k in _FIELDS and k not in (*_UNUSED, "best", "domain")})


def best_of(row: dict[str, Any], count: int) -> int | None:
    """Give the truth of a row with `count` responses, see `LabelledRequest`.

    Raises: InputError if it is none.
    """
    best = row["best"]
    is_index = isinstance(best, int) and not isinstance(best, bool) and 0 <= best < count
    if not is_index and not (best is None and count == 1):
        wanted = "0 (good) or null (bad)" if count == 1 else f"the index of the best response, 0 to {count - 1}"
        raise InputError(f"best: expected {wanted}, got {best!r}")
    return None if best is None else int(best)


def _labelled(row: Any) -> LabelledRequest:
    request = request_of(row, needed=("best",))
    return LabelledRequest(request, best_of(row, len(request.responses)), row.get("domain", "data"))

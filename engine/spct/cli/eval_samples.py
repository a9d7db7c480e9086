"""`samples.jsonl`: what `spct eval` drew, a row for each item and pass, so that a kill loses nothing. Of judges and of baselines alike."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from spct.cli.console import ProgressBar, note
from spct.cli.jsonl import row_key
from spct.cli.rows import Outcome, drawn_row
from spct.cli.store import OutputStore
from spct.errors import CapacityError
from spct.evaluation.accuracy import DrawnSample
from spct.evaluation.judging import Pass, Question

SAMPLES = "samples.jsonl"

# Judges the items at these places, and gives each one's place with its outcome as it ends.
Judge = Callable[[Sequence[int]], Iterable[tuple[int, Outcome]]]


class _DrawnRow(msgspec.Struct):
    """What a report needs of a row of `samples.jsonl`; `seconds`: wall time since the row before, in the same run."""

    key: str
    samples: list[DrawnSample]
    seconds: float
    error: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Drawn:
    """What was drawn: for each pass and item its samples, the wall time of the first pass, and why items were not judged.

    lacking  for each pass, how many items have no row at all
    """

    by_pass: Sequence[Sequence[Sequence[DrawnSample]]]
    seconds: float
    refusals: Sequence[str]
    lacking: Sequence[int]


def keys_of(items: Sequence[Question], way: Pass) -> list[str]:
    """The key of every item's row: a hash of what is asked, and how many equal items came before."""
    seen: Counter[str] = Counter()
    keys = []
    for item in items:
        key = row_key(way.request(item))
        keys.append(f"{way.name}-{row_key(way.request(item), seen[key])}")
        seen[key] += 1
    return keys


def begin(store: OutputStore, run: Mapping[str, str], items: Sequence[Question], ways: Sequence[Pass], others: Iterable[str] = ()) -> None:
    """Makes `store` ready for more rows of `run`. What did not fit is asked again: memory and context may have grown.

    others  keys of rows that this run may write beside those of the items

    Raises: ConfigError, before anything is changed, if the rows that are there come from other settings, or none is of these items.
    """
    keys = {key for way in ways for key in keys_of(items, way)}
    store.begin(run, retry_errors=True, asked=keys | set(others))


def fill(store: OutputStore, run: Mapping[str, str], items: Sequence[Question], ways: Sequence[tuple[Pass, Judge]], label: str) -> bool:
    """Judges what `store`, which has begun `run`, does not hold yet, and writes a row for each item as it ends.

    Returns False if interrupted; the rows stand.
    """
    num_drawn = num_kept = 0
    try:
        with ProgressBar(label, len(items) * len(ways)) as bar:
            for way, judge in ways:
                keys = keys_of(items, way)
                lacking = [i for i, key in enumerate(keys) if key not in store.done]
                num_kept += len(items) - len(lacking)
                for _ in range(len(items) - len(lacking)):
                    bar.advance(way.name)
                last = time.monotonic()
                for place, outcome in judge(lacking):
                    now = time.monotonic()
                    store.append(drawn_row(keys[place], way.name, outcome, run, now - last))
                    num_drawn += 1
                    bar.advance(way.name)
                    last = now
            store.commit()
    except KeyboardInterrupt:
        note(f"interrupted; {num_drawn} items drawn, {num_kept} were there; the samples stand, --resume continues")
        return False
    return True


def check_judged(drawn: Drawn, num_items: int) -> None:
    """Raises: CapacityError if every item was refused, with the first reason."""
    if len(drawn.refusals) == num_items:
        raise CapacityError(f"eval: none of the {num_items} items could be judged; the first: {drawn.refusals[0]}")


def read_drawn(samples: Path, items: Sequence[Question], ways: Sequence[Pass]) -> Drawn:
    """The samples of every pass, in the order of the items; those of an item that was not judged have no scores."""
    decoder = msgspec.json.Decoder(_DrawnRow)
    places = {key: (p, i) for p, way in enumerate(ways) for i, key in enumerate(keys_of(items, way))}
    found = [[way.unread(item) for item in items] for way in ways]
    seconds, refusals = 0.0, []
    lacking = dict.fromkeys(places)
    with samples.open("rb") as file:
        for line in file:
            row = decoder.decode(line)
            if row.key not in places:
                continue
            number, index = places[row.key]
            lacking.pop(row.key, None)
            found[number][index] = row.samples or found[number][index]
            if number == 0:
                seconds += row.seconds
                refusals += [row.error.get("message", "")] if row.error is not None else []
    return Drawn(found, seconds, refusals, [sum(places[key][0] == number for key in lacking) for number in range(len(ways))])

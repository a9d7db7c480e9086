"""The formats of files, how each is told from the others, and how a file is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spct.errors import ConfigError, InputError
from spct.evaluation.datasets import pairs, ratings, rewardbench
from spct.evaluation.datasets.item import BenchmarkItem
from spct.evaluation.datasets.reading import Row, read_rows

AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Format:
    """A format of rows.

    name    of `--format`
    fields  that a row of it has, alternatives within a tuple; by these it is known
    items   rows to items
    lists   which of `fields` hold lists in it: tells RewardBench 2 from 1
    without fields that a row of it has not
    """

    name: str
    fields: tuple[str | tuple[str, ...], ...]
    items: Callable[[Iterator[Row]], Iterator[BenchmarkItem]]
    lists: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def fits(self, fields: Mapping[str, Any]) -> bool:
        """Whether a row with these fields looks like one of this format."""
        has = all(any(name in fields for name in ([f] if isinstance(f, str) else f)) for f in self.fields)
        flat = [f for f in self.fields if isinstance(f, str) and f in ("chosen", "rejected")]
        return (
            has
            and not any(name in fields for name in self.without)
            and all(isinstance(fields[name], list) == (name in self.lists) for name in flat)
        )

    def described(self) -> str:
        """What is looked for, in words."""
        names = [f if isinstance(f, str) else " or ".join(f) for f in self.fields]
        kinds = [f"{name} (a list)" if name in self.lists else name for name in names]
        return f"{self.name}: {', '.join(kinds)}" + (f", without {', '.join(self.without)}" if self.without else "")


def _each(items_of: Callable[[Row], Iterable[BenchmarkItem]]) -> Callable[[Iterator[Row]], Iterator[BenchmarkItem]]:
    """A format whose rows stand alone."""

    def items(rows: Iterator[Row]) -> Iterator[BenchmarkItem]:
        for row in rows:
            yield from items_of(row)

    return items


_ALL = (
    Format("rewardbench", ("prompt", "chosen", "rejected"), _each(rewardbench.rewardbench)),
    Format("rewardbench2", ("prompt", "chosen", "rejected", "num_correct"), _each(rewardbench.rewardbench2), ("chosen", "rejected")),
    Format("rm-bench", ("prompt", "chosen", "rejected"), _each(rewardbench.rm_bench), ("chosen", "rejected"), ("num_correct",)),
    Format("llmbar", ("input", "output_1", "output_2", "label"), _each(pairs.llmbar)),
    Format("judgebench", ("question", "response_A", "response_B", "label"), _each(pairs.judgebench)),
    Format("pandalm", ("instruction", "input", "response1", "response2", "annotator1", "annotator2", "annotator3"), _each(pairs.pandalm)),
    Format("ppe-preference", ("prompt", "response_1", "response_2", "winner"), _each(pairs.ppe_preference)),
    Format("ppe-correctness", ("prompt", "response_1", "scores", "sampled_conflict_pairs"), _each(pairs.ppe_correctness)),
    Format("rmb-pairs", ("conversation_input", "chosen", "reject"), _each(pairs.rmb_pairs)),
    Format("rmb-best-of-n", ("conversation_input", "bon_best", "loser_list"), _each(pairs.rmb_best_of_n)),
    Format("realmistake", ("input", "llm_response", ("label", "error_label")), _each(ratings.realmistake)),
    Format("helpsteer", ("prompt", "response", *ratings.HELPSTEER_ATTRIBUTES), ratings.helpsteer),
    Format(
        "helpsteer-preference",
        (("prompt", "context"), ("response_1", "response1"), ("response_2", "response2"), ("preference_strength", "overall_preference")),
        _each(ratings.helpsteer_preference),
    ),
    Format("spct", ("query", "responses", "best"), _each(ratings.own)),
)
FORMATS: Mapping[str, Format] = {format.name: format for format in _ALL}


def detect(path: Path) -> str:
    """Tell the format of a file by the fields of its first row.

    Raises: InputError if the file can't be read, or its rows are of no known format, or of several; it lists what was looked for.
    """
    first = next(read_rows(path))
    found = [format.name for format in FORMATS.values() if format.fits(first.fields)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{path}, line {first.line}: may be {' or '.join(found)}; say which with --format")
    looked_for = "".join(f"\n  {format.described()}" for format in FORMATS.values())
    has = ", ".join(first.fields) or "no field"
    raise InputError(f"{path}, line {first.line}: no known format; the row has {has}; expected the fields of one of these:{looked_for}")


def read_items(path: Path, format: str = AUTO) -> Iterator[BenchmarkItem]:
    """Yield the items of a file, in its order.

    format  a key of `FORMATS`, or "auto": told by the first row

    Raises: ConfigError for an unknown format; InputError naming file, line and field of the first malformed row, or if there is no row.
    """
    if format != AUTO and format not in FORMATS:
        raise ConfigError(f"--format: expected {AUTO} or one of {', '.join(FORMATS)}, got {format!r}")
    name = detect(path) if format == AUTO else format
    yield from FORMATS[name].items(read_rows(path))


def load(paths: Sequence[Path], format: str = AUTO) -> list[BenchmarkItem]:
    """Load all items of several files, file by file; every row is checked.

    Groups of different files stay apart, but for those of RewardBench 2's Ties and the like that name their group themselves.

    Raises: as `read_items`; InputError if a folder is given.
    """
    items: list[BenchmarkItem] = []
    for path in paths:
        if path.is_dir():
            raise InputError(f"{path}: expected a file, got a folder; name its files")
        items += read_items(path, format)
    return items

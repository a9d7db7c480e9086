"""The samples that both forms of the meta RM learn from: drawn by the engine, labelled by correctness, kept as JSONL.

A row is one item with all of its samples, token ids included. A kill leaves whole rows and at most one torn line, which is cut off; what
is missing is drawn again and comes out the same, since a sample depends on seed and content alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

from spct.engine import Engine
from spct.errors import CheckpointError, ConfigError
from spct.training.correctness import is_correct, middle_of
from spct.training.labelled import GeneratedRequests, LabelledRequest, read_labelled
from spct.training.ranks import current
from spct.training.tasks import DOMAINS, draw_item
from spct.types import Sample, SamplingParams, VotingParams

Split = Literal["train", "validation"]
Order = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MetaSample:
    """One sample of the judge.

    order      in which it saw the responses
    token_ids  what was drawn, the EOS included
    text       the same, decoded, without the EOS
    scores     in the request's order; None where it voted for nothing
    correct    its label: what it says of the request is true
    """

    order: Order
    token_ids: tuple[int, ...]
    text: str
    scores: tuple[int, ...] | None
    correct: bool


@dataclass(frozen=True, slots=True)
class MetaItem:
    """An item and the samples drawn for it, those without tokens left out."""

    split: Split
    index: int
    item: LabelledRequest
    samples: tuple[MetaSample, ...]

    def by_order(self) -> list[tuple[Order, tuple[MetaSample, ...]]]:
        """Group the samples by the order that they saw: each order is one prompt."""
        orders = dict.fromkeys(s.order for s in self.samples)
        return [(order, tuple(s for s in self.samples if s.order == order)) for order in orders]


@dataclass(frozen=True, slots=True)
class DataConfig:
    """What is sampled.

    items, validation  number of items to train on and to judge by; an item is in one of the two, never in both
    data               file of labelled rows, of which a seeded share of `validation` is held out; None: the project's own tasks, whose
                       two splits have no problem in common
    seed               of the items; the default is one that no other stage of training draws its items from
    domains            of the project's own tasks, in turn; (): all

    Raises: ConfigError if a number makes no sense.
    """

    items: int = 1500
    validation: int = 300
    seed: int = 3
    data: Path | None = None
    domains: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what can't be drawn."""
        for name in ("items", "validation"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def split(self, split: Split) -> list[LabelledRequest]:
        """List the labelled requests of a split.

        Raises: InputError if the file can't be read; ConfigError if it is too short or a domain is unknown.
        """
        count = self.items if split == "train" else self.validation
        if self.data is not None:
            return self._given(split)
        if split == "train":
            source = GeneratedRequests(self.seed, self.domains)
            return [source.draw(i) for i in range(count)]
        turns = self.domains or tuple(DOMAINS)
        drawn = [draw_item("validation", self.seed, i, domain=turns[i % len(turns)]) for i in range(count)]
        return [LabelledRequest(item.request(), item.best, item.domain) for item in drawn]

    def _given(self, split: Split) -> list[LabelledRequest]:
        assert self.data is not None
        rows = list(read_labelled(self.data))
        Random(f"meta/{self.seed}").shuffle(rows)
        if len(rows) <= self.validation:
            raise ConfigError(f"validation: expected fewer than the {len(rows)} rows of {self.data}, got {self.validation}")
        return rows[: self.validation] if split == "validation" else rows[self.validation :][: self.items]


def draw_meta_items(engine: Engine, config: DataConfig, sampling: SamplingParams, path: Path) -> list[MetaItem]:
    """Draw what `path` does not hold yet, a share on each rank; return all items, those to train on first, each split by index.

    sampling   its samples are drawn for every item

    Raises: ConfigError if the file was drawn with another model or other settings; CheckpointError if it is damaged; the first
    item's error, if one could not be judged.
    """
    items: dict[Split, list[LabelledRequest]] = {"train": config.split("train"), "validation": config.split("validation")}
    header, ranks = _header(engine, config, sampling), current()
    content = ranks.fold(path)
    if not content:
        content = json.dumps({"run": header}).encode() + b"\n"
        if ranks.is_first:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    kept = _parsed(path, content, header, items)
    missing: list[tuple[Split, int]] = [(s, i) for s in items for i in range(len(items[s])) if (s, i) not in kept]
    with ranks.part(path).open("a", encoding="utf-8") as file:
        for split, index, samples in _judged(engine, items, ranks.deal(missing), sampling):
            file.write(json.dumps({"split": split, "index": index, "samples": samples}, separators=(",", ":")) + "\n")
            file.flush()
    kept = _parsed(path, ranks.fold(path), header, items)
    return [_item(s, i, items[s][i], kept[s, i]) for s in items for i in range(len(items[s]))]


def _judged(
    engine: Engine, items: dict[Split, list[LabelledRequest]], missing: Sequence[tuple[Split, int]], sampling: SamplingParams
) -> Iterator[tuple[Split, int, list[dict[str, Any]]]]:
    console = Console(stderr=True)
    is_silent = not (console.is_terminal and current().is_first)
    requests = (items[split][index].request for split, index in missing)
    stream = engine.score_batch(requests, sampling=sampling, voting=VotingParams(filter="none"))
    for judgement in track(stream, total=len(missing), description="samples", console=console, disable=is_silent):
        if judgement.error is not None:
            raise judgement.error
        split, index = missing[judgement.index]
        item = items[split][index]
        middle = middle_of(engine.prompt.score_range(item.request))
        yield split, index, [_row(s, is_correct(s.scores, item.best, middle)) for s in judgement.samples]


def _row(sample: Sample, correct: bool) -> dict[str, Any]:
    fields = ("order", "token_ids", "text", "scores")
    return {**{name: getattr(sample, name) for name in fields}, "correct": correct}


def _item(split: Split, index: int, item: LabelledRequest, rows: Sequence[dict[str, Any]]) -> MetaItem:
    samples = tuple(
        MetaSample(
            tuple(row["order"]),
            tuple(row["token_ids"]),
            row["text"],
            None if row["scores"] is None else tuple(row["scores"]),
            bool(row["correct"]),
        )
        for row in rows
        if row["token_ids"]
    )
    return MetaItem(split, index, item, samples)


def _header(engine: Engine, config: DataConfig, sampling: SamplingParams) -> dict[str, str]:
    """What the samples depend on beside the items themselves, by name."""
    prints = engine.fingerprints(sampling, VotingParams(filter="none"))
    told = {name: prints[name] for name in ("weights", "tokenizer", "template", "sampling")}
    data = None if config.data is None else str(config.data)
    drawn_from = (config.items, config.validation, config.seed, data, config.domains)
    return {**told, "data": repr(drawn_from)}


def _parsed(
    path: Path, content: bytes, header: dict[str, str], items: dict[Split, list[LabelledRequest]]
) -> dict[tuple[Split, int], list[dict[str, Any]]]:
    """The rows of the file, whose header must be this run's."""
    lines = content.decode("utf-8", "replace").splitlines()
    kept: dict[tuple[Split, int], list[dict[str, Any]]] = {}
    try:
        run = json.loads(lines[0])["run"]
        for line in lines[1:]:
            row = json.loads(line)
            if not 0 <= row["index"] < len(items[row["split"]]):
                raise ValueError(f"item {row['index']}")
            kept[row["split"], row["index"]] = row["samples"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: expected rows of samples, got something else ({error}); remove the file to draw them again"
        ) from None
    other = sorted(name for name in header if run.get(name) != header[name])
    if other:
        raise ConfigError(f"{path}: was drawn with another {' and '.join(other)}; use another output folder, or remove it to draw anew")
    return kept

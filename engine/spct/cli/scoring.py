"""The loop that `score`, `rank` and `compare` share: rows in, outcomes of the engine out, line by line."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from spct.cli.console import ProgressBar, note
from spct.cli.exit_codes import EXIT_ERROR_ROWS, EXIT_INTERRUPTED, EXIT_OK
from spct.cli.jsonl import InputRow
from spct.cli.rows import error_row
from spct.cli.store import Mode, OutputStore
from spct.errors import ConfigError, SpctError
from spct.types import Sample, ScoreRequest, Usage


class Outcome(Protocol):
    """What the engine says of one request: a `Judgement` or a `Ranking`."""

    @property
    def index(self) -> int:
        """The request's place in its stream."""

    @property
    def error(self) -> SpctError | None:
        """Why there is no outcome."""

    @property
    def samples(self) -> Sequence[Sample]:
        """What was drawn."""

    @property
    def usage(self) -> Usage:
        """What it cost."""


O = TypeVar("O", bound=Outcome)  # noqa: E741  (an outcome)


def output_mode(args: Namespace) -> Mode:
    """How the flags open the output. Raises: ConfigError if they contradict each other."""
    continues = args.resume or args.retry_errors
    if args.overwrite and continues:
        raise ConfigError("--overwrite: can't be used with --resume or --retry-errors; one replaces OUT, the others continue it")
    return "resume" if continues else "overwrite" if args.overwrite else "new"


@dataclass(slots=True)
class Scoring(Generic[O]):
    """One pass over the input: which rows are with the engine, and what became of the others.

    rows      of the input
    judge     streams requests through the engine
    write     the output row of an outcome
    is_ready  whether the next row is there without waiting for it
    done      what the summary calls a row that came to its end, such as "judged"
    """

    rows: Iterator[InputRow]
    store: OutputStore
    run: Mapping[str, str]
    judge: Callable[[Iterator[ScoreRequest]], Iterator[O]]
    write: Callable[[InputRow, O], bytes]
    bar: ProgressBar
    is_ready: Callable[[], bool] = lambda: True
    done: str = "judged"
    pending: dict[int, InputRow] = field(default_factory=dict)
    at_end: bool = False
    num_judged: int = 0
    num_skipped: int = 0
    num_samples: int = 0
    num_scored: int = 0
    num_tokens: int = 0

    def run_all(self) -> int:
        """Streams the rows through the engine; returns the exit code.

        Raises: what the engine raises for the whole run; OSError if the output can't be written.
        """
        start = time.monotonic()
        try:
            with self.bar:
                while not self.at_end:
                    for outcome in self.judge(self._requests()):
                        self._finish(outcome)
                self.store.commit()
        except KeyboardInterrupt:
            note(f"interrupted; {self._summary(start)}; the rows written stand, --resume continues")
            return EXIT_INTERRUPTED
        note(self._summary(start))
        return EXIT_ERROR_ROWS if self.store.num_errors else EXIT_OK

    def _requests(self) -> Iterator[ScoreRequest]:
        """What the engine gets: rows that are in OUT are skipped, bad ones become error rows at once.

        Ends early where the next row is not there yet and others are with the engine: whoever writes the input may wait for
        these, so they are finished first.
        """
        index = 0
        while self.is_ready() or not self.pending:
            row = next(self.rows, None)
            if row is None:
                self.at_end = True
                return
            if row.key in self.store.done:
                self.num_skipped += 1
                self._advance()
            elif row.request is None:
                assert row.error is not None
                self.store.append(error_row(row, row.error, self.run))
                self.store.num_errors += 1
                self._advance()
            else:
                # The engine holds the request; here only what its output row needs.
                self.pending[index] = InputRow(row.line, row.key, row.id, None)
                index += 1
                yield row.request

    def _finish(self, outcome: O) -> None:
        row = self.pending.pop(outcome.index)
        self.store.append(error_row(row, outcome.error, self.run) if outcome.error is not None else self.write(row, outcome))
        self.store.num_errors += outcome.error is not None
        self.num_judged += outcome.error is None
        self.num_samples += len(outcome.samples)
        self.num_scored += sum(sample.scores is not None for sample in outcome.samples)
        self.num_tokens += outcome.usage.generated_tokens
        self._advance()

    def _advance(self) -> None:
        self.bar.advance(f"{self.store.num_errors} errors" if self.store.num_errors else "")

    def _summary(self, start: float) -> str:
        seconds = time.monotonic() - start
        valid = f", {self.num_scored} of {self.num_samples} samples with scores" if self.num_samples else ""
        skipped = f", {self.num_skipped} already there" if self.num_skipped else ""
        return (
            f"{self.num_judged} {self.done}{valid}{skipped}, {self.store.num_errors} error rows, "
            f"{self.num_tokens} tokens in {seconds:.1f} s"
        )

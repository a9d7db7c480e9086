"""`spct score`: requests in, judgements out, line by line."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

from spct.cli import options
from spct.cli.console import ProgressBar, note, only_rows_on_stdout
from spct.cli.dry_run import dry_run
from spct.cli.exit_codes import EXIT_ERROR_ROWS, EXIT_INTERRUPTED, EXIT_OK
from spct.cli.jsonl import InputRow, read_rows
from spct.cli.rows import error_row, judgement_row, run_parts
from spct.cli.source import Source, open_source
from spct.cli.store import Mode, OutputStore
from spct.config import EngineConfig
from spct.engine import Engine
from spct.errors import ConfigError
from spct.types import Judgement, SamplingParams, ScoreRequest, VotingParams


def main(args: Namespace) -> int:
    """Judges every row of the input. Returns the exit code.

    Raises: ConfigError if flags, input or output can't be used; SpctError or OSError if the run can't go on.
    """
    sampling, voting = options.sampling_params(args), options.voting_params(args)
    options.check_samples(sampling, EngineConfig.create(options.engine_options(args)))
    if args.overwrite and (args.resume or args.retry_errors):
        raise ConfigError("--overwrite: can't be used with --resume or --retry-errors; one replaces OUT, the others continue it")
    with open_source(args.input) as source:
        if args.dry_run:
            return dry_run(source, args.model, options.engine_options(args), sampling, voting)
        mode: Mode = "resume" if args.resume or args.retry_errors else "overwrite" if args.overwrite else "new"
        quiet = only_rows_on_stdout() if args.output == "-" else nullcontext()
        with OutputStore.open(args.output, mode) as store, quiet:
            if store.is_same_file(source.fileno()):
                raise ConfigError(f"{args.output}: is the input too; write to another file")
            with Engine.from_pretrained(args.model, **options.engine_options(args)) as engine:
                run = run_parts(engine.fingerprints(sampling, voting), args.include)
                store.begin(run, retry_errors=args.retry_errors)
                total = source.count_rows() if sys.stderr.isatty() else None
                include = {"include_text": args.include == "text", "include_expected": voting.method == "soft"}
                scoring = _Scoring(source, store, run, include, ProgressBar("judging", total))
                return scoring.run_all(engine, sampling, voting)


@dataclass(slots=True)
class _Scoring:
    """One pass over the input: which rows are with the engine, and what became of the others."""

    source: Source
    store: OutputStore
    run: Mapping[str, str]
    include: Mapping[str, bool]
    bar: ProgressBar
    pending: dict[int, InputRow] = field(default_factory=dict)
    at_end: bool = False
    num_judged: int = 0
    num_skipped: int = 0
    num_samples: int = 0
    num_scored: int = 0
    num_tokens: int = 0

    def run_all(self, engine: Engine, sampling: SamplingParams, voting: VotingParams) -> int:
        """Streams the rows through the engine; returns the exit code."""
        start, rows = time.monotonic(), read_rows(self.source)
        try:
            with self.bar:
                while not self.at_end:
                    for judgement in engine.score_batch(self._requests(rows), sampling=sampling, voting=voting):
                        self._finish(judgement)
                self.store.commit()
        except KeyboardInterrupt:
            note(f"interrupted; {self._summary(start)}; the rows written stand, --resume continues")
            return EXIT_INTERRUPTED
        note(self._summary(start))
        return EXIT_ERROR_ROWS if self.store.num_errors else EXIT_OK

    def _requests(self, rows: Iterator[InputRow]) -> Iterator[ScoreRequest]:
        """What the engine gets: rows that are in OUT are skipped, bad ones become error rows at once.

        Ends early where the next row is not there yet and others are with the engine: whoever writes the input may wait for
        these, so they are finished first.
        """
        index = 0
        while self.source.is_ready() or not self.pending:
            row = next(rows, None)
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

    def _finish(self, judgement: Judgement) -> None:
        row = self.pending.pop(judgement.index)
        self.store.append(judgement_row(row, judgement, self.run, **self.include))
        self.store.num_errors += judgement.error is not None
        self.num_judged += judgement.error is None
        self.num_samples += len(judgement.samples)
        self.num_scored += sum(sample.scores is not None for sample in judgement.samples)
        self.num_tokens += judgement.usage.generated_tokens
        self._advance()

    def _advance(self) -> None:
        self.bar.advance(f"{self.store.num_errors} errors" if self.store.num_errors else "")

    def _summary(self, start: float) -> str:
        seconds = time.monotonic() - start
        valid = f", {self.num_scored} of {self.num_samples} samples with scores" if self.num_samples else ""
        skipped = f", {self.num_skipped} already there" if self.num_skipped else ""
        return f"{self.num_judged} judged{valid}{skipped}, {self.store.num_errors} error rows, {self.num_tokens} tokens in {seconds:.1f} s"

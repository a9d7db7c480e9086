"""`spct score`: requests in, judgements out, line by line."""

from __future__ import annotations

import sys
from argparse import Namespace
from contextlib import nullcontext

from spct.cli import options
from spct.cli.console import ProgressBar, only_rows_on_stdout
from spct.cli.dry_run import dry_run
from spct.cli.jsonl import read_rows
from spct.cli.rows import judgement_row, run_parts
from spct.cli.scoring import Scoring, output_mode
from spct.cli.source import open_source
from spct.cli.store import OutputStore
from spct.config import EngineConfig
from spct.engine import Engine
from spct.errors import ConfigError


def main(args: Namespace) -> int:
    """Judges every row of the input. Returns the exit code.

    Raises: ConfigError if flags, input or output can't be used; SpctError or OSError if the run can't go on.
    """
    sampling, voting = options.sampling_params(args), options.voting_params(args)
    options.check_samples(sampling, EngineConfig.create(options.engine_options(args)))
    mode = output_mode(args)
    with open_source(args.input) as source:
        if args.dry_run:
            return dry_run(source, args.model, options.engine_options(args), sampling, voting)
        quiet = only_rows_on_stdout() if args.output == "-" else nullcontext()
        with OutputStore.open(args.output, mode) as store, quiet:
            if store.is_same_file(source.fileno()):
                raise ConfigError(f"{args.output}: is the input too; write to another file")
            with Engine.from_pretrained(args.model, **options.engine_options(args)) as engine:
                run = run_parts(engine.fingerprints(sampling, voting), args.include)
                store.begin(run, retry_errors=args.retry_errors)
                total = source.count_rows() if sys.stderr.isatty() else None
                include = {"include_text": args.include == "text", "include_expected": voting.method == "soft"}
                return Scoring(
                    rows=read_rows(source),
                    store=store,
                    run=run,
                    judge=lambda requests: engine.score_batch(requests, sampling=sampling, voting=voting),
                    write=lambda row, judgement: judgement_row(row, judgement, run, **include),
                    bar=ProgressBar("judging", total),
                    is_ready=source.is_ready,
                ).run_all()

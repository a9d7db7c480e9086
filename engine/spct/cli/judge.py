"""`spct judge`: one judgement, for a person to read."""

from __future__ import annotations

import sys
from argparse import Namespace

from rich.console import Console

from spct.cli import options, report
from spct.cli.console import waiting
from spct.cli.exit_codes import EXIT_OK
from spct.cli.jsonl import InputRow, row_key
from spct.cli.rows import judgement_row, run_parts
from spct.config import EngineConfig
from spct.engine import Engine
from spct.types import ScoreRequest


def main(args: Namespace) -> int:
    """Judges one request and prints the outcome.

    Raises: SpctError if the flags, the model or the request can't be used.
    """
    sampling, voting = options.sampling_params(args), options.voting_params(args)
    options.check_samples(sampling, EngineConfig.create(options.engine_options(args)))
    request = ScoreRequest(query=args.query, responses=args.responses, reference=args.reference, principles=args.principles)
    with waiting("loading"), Engine.from_pretrained(args.model, **options.engine_options(args)) as engine:
        with waiting("judging"):
            judgement = engine.score(request, sampling=sampling, voting=voting)
        run = run_parts(engine.fingerprints(sampling, voting), "text")
    if args.json:
        row = InputRow(1, row_key(request), None, request)
        sys.stdout.buffer.write(judgement_row(row, judgement, run, include_text=True, include_expected=voting.method == "soft") + b"\n")
        sys.stdout.flush()
    else:
        report.print_judgement(Console(file=sys.stdout, highlight=False), request, judgement)
    return EXIT_OK

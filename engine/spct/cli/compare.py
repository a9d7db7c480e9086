"""`spct compare`: which of two models' responses to the same prompts the judge prefers, in both orders."""

from __future__ import annotations

import json
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from spct.cli import options
from spct.cli.compare_data import Matched, read_pairs
from spct.cli.console import ProgressBar, note, waiting
from spct.cli.evaluate import write_text
from spct.cli.exit_codes import EXIT_ERROR_ROWS, EXIT_INTERRUPTED, EXIT_OK
from spct.cli.jsonl import InputRow
from spct.cli.rows import judgement_row, run_parts
from spct.cli.scoring import Scoring, output_mode
from spct.cli.store import OutputStore
from spct.config import EngineConfig
from spct.engine import Engine
from spct.errors import ConfigError
from spct.evaluation.comparison import TIE, Verdict, comparison_report, comparison_table, verdict_of
from spct.types import SamplingParams, ScoreRequest, VotingParams

JUDGEMENTS = "judgements.jsonl"
REPORT = "compare.json"


class _Sample(msgspec.Struct):
    order: list[int]
    kept: bool
    scores: list[int] | None = None
    expected: list[float] | None = None


class _Row(msgspec.Struct):
    """What the report needs of a row."""

    key: str
    status: str
    rewards: list[float | None]
    samples: list[_Sample]


def main(args: Namespace) -> int:
    """Compares two files. Returns the exit code: 3 where rows had no partner or could not be judged.

    Raises: ConfigError or InputError if flags or rows can't be used; SpctError or OSError if the run can't go on.
    """
    sampling, voting = _params(args)
    if args.output is None and (args.resume or args.retry_errors):
        raise ConfigError("--resume: there is nothing to continue without a folder; name it with -o")
    mode = output_mode(args)
    matched = read_pairs(args.first, args.second)
    if matched.unmatched:
        lost = matched.unmatched[0]
        note(f"{len(matched.unmatched)} rows have no partner in the other file; the first: {lost['file']}, line {lost['line']}")
    equal = [row for row in matched.rows if len(set(_request(row).responses)) == 1]
    asked = [row for row in matched.rows if len(set(_request(row).responses)) > 1]
    with ExitStack() as stack:
        if args.output is not None:
            args.output.mkdir(parents=True, exist_ok=True)
        folder = args.output or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        code = EXIT_OK
        with OutputStore.open(str(folder / JUDGEMENTS), mode) as store:
            if asked:
                code = _judge(args, asked, store, sampling, voting)
        if code == EXIT_INTERRUPTED:
            return code
        report = _report(args, matched, asked, equal, folder / JUDGEMENTS)
        if args.output is not None:
            write_text(args.output / REPORT, json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if args.json else comparison_table(report, args.first.name, args.second.name), flush=True)
    return EXIT_ERROR_ROWS if matched.unmatched else code


def _params(args: Namespace) -> tuple[SamplingParams, VotingParams]:
    sampling, voting = options.sampling_params(args), options.voting_params(args)
    options.check_samples(sampling, EngineConfig.create(options.engine_options(args)))
    if voting.orders == "given":
        raise ConfigError("--orders: compare shows every pair in both orders, expected balanced or all, got given")
    if voting.orders == "balanced" and sampling.samples % 2:
        raise ConfigError(f"--samples: expected an even number, half of them for each order, got {sampling.samples}")
    return sampling, voting


def _judge(args: Namespace, rows: Sequence[InputRow], store: OutputStore, sampling: SamplingParams, voting: VotingParams) -> int:
    with waiting("loading"):
        engine = Engine.from_pretrained(args.model, **options.engine_options(args))
    with engine:
        run = run_parts(engine.fingerprints(sampling, voting), args.include)
        store.begin(run, retry_errors=args.retry_errors)
        include = {"include_text": args.include == "text", "include_expected": voting.method == "soft"}
        return Scoring(
            rows=iter(rows),
            store=store,
            run=run,
            judge=lambda requests: engine.score_batch(requests, sampling=sampling, voting=voting),
            write=lambda row, judgement: judgement_row(row, judgement, run, **include),
            bar=ProgressBar("comparing", len(rows)),
            done="compared",
        ).run_all()


def _report(args: Namespace, matched: Matched, asked: Sequence[InputRow], equal: Sequence[InputRow], path: Path) -> dict[str, Any]:
    """What the rows of `path` say of the pairs that were asked; equal texts are ties that nobody has to judge."""
    decoder = msgspec.json.Decoder(_Row)
    known = {row.key: row for row in map(decoder.decode, path.read_bytes().splitlines())}
    verdicts = [_verdict(known[row.key], _request(row)) for row in asked]
    lengths = [len(_request(row).responses[0]) for row in equal]
    ties = [Verdict(TIE, None, None, (length, length)) for length in lengths]
    names = ("samples", "seed", "temperature", "vote", "filter", "meta_keep", "orders")
    model = args.model if args.model == "embedded" else Path(args.model).name
    return {
        "first": args.first.name,
        "second": args.second.name,
        **comparison_report([*verdicts, *ties]),
        "identical": len(equal),
        "errors": sum(known[row.key].status == "error" for row in asked),
        "matched_by": matched.by,
        "unmatched": list(matched.unmatched),
        "settings": {"model": model, **{name: getattr(args, name) for name in names if getattr(args, name) is not None}},
    }


def _verdict(row: _Row, request: ScoreRequest) -> Verdict:
    votes = [(s.scores if s.expected is None else s.expected, s.order) for s in row.samples if s.kept and s.scores is not None]
    lengths = (len(request.responses[0]), len(request.responses[1]))
    return verdict_of(row.rewards or (None, None), votes, lengths)


def _request(row: InputRow) -> ScoreRequest:
    assert row.request is not None, "a matched row has a request"
    return row.request

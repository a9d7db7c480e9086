"""`spct rank`: the best of n responses, for a person to read or for every row of a file."""

from __future__ import annotations

import hashlib
import sys
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext

from rich.console import Console
from rich.table import Table

from spct.cli import options
from spct.cli.console import ProgressBar, only_rows_on_stdout, printable, readable_seconds, waiting
from spct.cli.dry_run import dry_run
from spct.cli.exit_codes import EXIT_OK
from spct.cli.jsonl import InputRow, read_rows, row_key
from spct.cli.report import number
from spct.cli.rows import ranking_row, run_parts
from spct.cli.scoring import Scoring, output_mode
from spct.cli.source import Source, open_source
from spct.cli.store import Mode, OutputStore
from spct.config import EngineConfig
from spct.engine import Engine
from spct.errors import ConfigError
from spct.ranking import Ranking
from spct.types import SamplingParams, ScoreRequest, VotingParams

_OF_A_FILE = {
    "output": "--output",
    "include": "--include",
    "resume": "--resume",
    "retry_errors": "--retry-errors",
    "overwrite": "--overwrite",
    "dry_run": "--dry-run",
}
_OF_A_QUESTION = {"responses": "--response", "reference": "--reference", "principles": "--principles", "json": "--json"}


def main(args: Namespace) -> int:
    """Ranks what the flags name. Returns the exit code.

    Raises: ConfigError if flags, input or output can't be used; SpctError or OSError if the run can't go on.
    """
    sampling, voting = options.sampling_params(args), options.voting_params(args)
    options.check_samples(sampling, EngineConfig.create(options.engine_options(args)))
    asks = args.query is not None
    if asks == (args.input is not None):
        got = "both" if asks else "neither"
        raise ConfigError(f'rank: expected either --query with --response, or INPUT.jsonl ("-" for stdin), got {got}')
    if asks and not args.responses:
        raise ConfigError("--response: expected at least one with --query, got none")
    needs = "INPUT.jsonl" if asks else "--query"
    for name, flag in (_OF_A_FILE if asks else _OF_A_QUESTION).items():
        if getattr(args, name) not in (None, False, "-"):
            raise ConfigError(f"{flag}: goes with {needs}, got it without; leave it out")
    return _rank_one(args, sampling, voting) if asks else _rank_file(args, sampling, voting)


def print_ranking(console: Console, request: ScoreRequest, ranking: Ranking) -> None:
    """A line per response from best to worst, ties said plainly, then votes and cost."""
    table = Table(box=None, pad_edge=False, expand=True)
    for heading in ("rank", "response", "reward", "stdev", "votes"):
        table.add_column(heading, justify="right")
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    place = 1
    unranked = tuple(i for i, reward in enumerate(ranking.rewards) if reward is None)
    for group in (*ranking.ranking, unranked):
        for i in group:
            mark = "-" if ranking.rewards[i] is None else f"={place}" if len(group) > 1 else str(place)
            cells = (mark, str(i), number(ranking.rewards[i]), number(ranking.stdev[i]), str(ranking.num_votes[i]))
            table.add_row(*cells, printable(" ".join(request.responses[i].split())))
        place += len(group)
    console.print(table)
    console.print(_verdict(ranking, unranked), markup=False)
    usage = ranking.usage
    console.print(
        f"tokens: {usage.prefilled_tokens} prefilled, {usage.generated_tokens} written in {len(ranking.samples)} samples"
        f"   time: {readable_seconds(ranking.timings.total_ms / 1000)}",
        markup=False,
    )


def _verdict(ranking: Ranking, unranked: tuple[int, ...]) -> str:
    if not ranking.ranking:
        return "no best: no sample gave a valid vote"
    top = ranking.ranking[0]
    told = f"best: {top[0]}" if len(top) == 1 else f"no single best: responses {', '.join(map(str, top))} tie"
    lost = f"; without a valid vote: {', '.join(map(str, unranked))}" if unranked else ""
    return told + lost


def _rank_one(args: Namespace, sampling: SamplingParams, voting: VotingParams) -> int:
    request = ScoreRequest(query=args.query, responses=args.responses, reference=args.reference, principles=args.principles)
    with waiting("loading"), Engine.from_pretrained(args.model, **options.engine_options(args)) as engine:
        with waiting("ranking"):
            ranking = engine.rank(request, group_size=args.group_size, sampling=sampling, voting=voting)
        run = _run_parts(args, engine, sampling, voting, "text")
    if args.json:
        row = InputRow(1, row_key(request), None, request)
        sys.stdout.buffer.write(ranking_row(row, ranking, run, include_text=True, include_expected=voting.method == "soft") + b"\n")
        sys.stdout.flush()
    else:
        print_ranking(Console(file=sys.stdout, highlight=False), request, ranking)
    return EXIT_OK


def _rank_file(args: Namespace, sampling: SamplingParams, voting: VotingParams) -> int:
    mode = output_mode(args)
    with open_source(args.input) as source:
        if args.dry_run:
            return dry_run(source, args.model, options.engine_options(args), sampling, voting, group_size=args.group_size)
        return _rank_rows(args, source, mode, sampling, voting)


def _rank_rows(args: Namespace, source: Source, mode: Mode, sampling: SamplingParams, voting: VotingParams) -> int:
    quiet = only_rows_on_stdout() if args.output == "-" else nullcontext()
    with OutputStore.open(args.output, mode) as store, quiet:
        if store.is_same_file(source.fileno()):
            raise ConfigError(f"{args.output}: is the input too; write to another file")
        with Engine.from_pretrained(args.model, **options.engine_options(args)) as engine:
            run = _run_parts(args, engine, sampling, voting, args.include)
            store.begin(run, retry_errors=args.retry_errors)
            include = {"include_text": args.include == "text", "include_expected": voting.method == "soft"}
            return Scoring(
                rows=read_rows(source),
                store=store,
                run=run,
                judge=lambda requests: engine.rank_batch(requests, group_size=args.group_size, sampling=sampling, voting=voting),
                write=lambda row, ranking: ranking_row(row, ranking, run, **include),
                bar=ProgressBar("ranking", source.count_rows() if sys.stderr.isatty() else None),
                is_ready=source.is_ready,
                done="ranked",
            ).run_all()


def _run_parts(args: Namespace, engine: Engine, sampling: SamplingParams, voting: VotingParams, include: str | None) -> Mapping[str, str]:
    """As of `spct score`, and how responses are grouped; the same file is never a score's and a ranking's."""
    grouping = hashlib.blake2b(repr(("rank", args.group_size)).encode(), digest_size=6).hexdigest()
    return {**run_parts(engine.fingerprints(sampling, voting), include), "grouping": grouping}

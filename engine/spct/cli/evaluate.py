"""`spct eval`: accuracy of a judge against k, as a table, as JSON and as a plot; what was drawn is kept, so that a kill loses nothing."""

from __future__ import annotations

import importlib
import json
import platform
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch

import spct
from spct.baselines.sidecar import read_form
from spct.cli import options
from spct.cli.console import note, waiting
from spct.cli.eval_data import EvalData, read_data
from spct.cli.eval_options import parse_ks
from spct.cli.eval_samples import SAMPLES, Drawn, begin, check_judged, fill, read_drawn
from spct.cli.exit_codes import EXIT_INTERRUPTED, EXIT_OK
from spct.cli.rows import run_parts
from spct.cli.store import Mode, OutputStore
from spct.config import EngineConfig
from spct.engine import Engine
from spct.errors import ConfigError
from spct.evaluation.against import Run, against
from spct.evaluation.benchmark_table import benchmark_table
from spct.evaluation.judging import Pass, Question, judge_items, passes, voting_of
from spct.evaluation.plot import draw_plot
from spct.evaluation.report import accuracy_report, counts
from spct.evaluation.table import table
from spct.types import Judgement, SamplingParams


def main(args: Namespace) -> int:
    """Evaluates as the flags say. Returns the exit code.

    Raises: ConfigError or InputError for flags or rows that make no sense; SpctError or OSError if the run can't go on.
    """
    if args.resume and args.overwrite:
        raise ConfigError("--overwrite: can't be used with --resume; one replaces the samples, the other continues them")
    if args.resume and args.output is None:
        raise ConfigError("--resume: there is nothing to continue without a folder; name it with -o")
    ks = parse_ks(args.samples)
    sampling = SamplingParams(samples=ks[-1], temperature=args.temperature, max_tokens=args.max_tokens, seed=args.seed)
    options.check_samples(sampling, EngineConfig.create(options.engine_options(args)))
    data = read_data(args)
    with ExitStack() as stack:
        folder = args.output
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        if args.dry_run:
            report = counts(data.truths)
        else:
            samples = (folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))) / SAMPLES
            form = None if args.model == "embedded" else read_form(Path(args.model))
            found = _baseline(args, form, data, samples) if form is not None else _judge(args, sampling, ks, data, samples)
            if found is None:
                return EXIT_INTERRUPTED
            report = found
        if folder is not None:
            write_text(folder / "accuracy.json", json.dumps(report, indent=1) + "\n")
            if not args.dry_run and not draw_plot(report, folder / "accuracy.png"):
                note("accuracy.png not drawn: matplotlib is not installed (extra spct[plot])")
    print(table(report), benchmark_table(report), sep="", flush=True)
    return EXIT_OK


def _baseline(args: Namespace, form: str, data: EvalData, samples: Path) -> dict[str, Any] | None:
    """The report of a model that says of itself that it is no ordinary judge; None if interrupted.

    Raises: ConfigError if what it needs is not installed.
    """
    try:
        module = importlib.import_module("spct.cli.eval_baseline")
    except ModuleNotFoundError as error:
        raise ConfigError(f"eval: {args.model} needs the package {error.name!r}; install the extra spct[train]") from None
    report: dict[str, Any] | None = module.evaluate_baseline(args, form, data, samples, _mode(args))
    return report


def _judge(args: Namespace, sampling: SamplingParams, ks: Sequence[int], data: EvalData, samples: Path) -> dict[str, Any] | None:
    """The report of a judge; None if interrupted."""
    ways = passes(sampling, greedy=args.greedy)
    earlier = None if args.against is None else _earlier(args.against, data.items, ways, ks)
    score_range = _draw(args, data.items, ways, samples)
    if score_range is None:
        return None
    drawn = read_drawn(samples, data.items, ways)
    report = {**_report(data, drawn, ks, score_range), "settings": _settings(args, data)}
    if earlier is not None:
        report["against"] = {"run": args.against.name, **against(data.truths, _run(drawn), earlier, ks, score_range)}
    return report


def _report(data: EvalData, drawn: Drawn, ks: Sequence[int], score_range: tuple[int, int]) -> dict[str, Any]:
    """Everything that can be said of what was drawn."""
    check_judged(drawn, len(data.items))
    if drawn.refusals:
        note(
            f"{len(drawn.refusals)} of {len(data.items)} items were not judged and count as without a vote; the first: {drawn.refusals[0]}"
        )
    run = _run(drawn)
    general = accuracy_report(data.truths, run.sampled, ks, score_range, greedy=run.greedy, seconds=drawn.seconds)
    return {**general, "refused": len(drawn.refusals), **data.own_metrics(run.sampled, ks, score_range)}


def _earlier(folder: Path, items: Sequence[Question], ways: Sequence[Pass], ks: Sequence[int]) -> Run:
    """What an earlier run drew. Raises: ConfigError if it did not judge the same items, or drew too few samples of them."""
    if not (folder / SAMPLES).is_file():
        raise ConfigError(f"--against: expected the folder of an earlier `spct eval -o`, got {folder}, which holds no {SAMPLES}")
    try:
        drawn = read_drawn(folder / SAMPLES, items, ways)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--against: {folder / SAMPLES} can't be read ({error}); finish that run with --resume") from None
    if drawn.lacking[0]:
        raise ConfigError(
            f"--against: expected samples of the same {len(items)} items, {folder} lacks {drawn.lacking[0]} of them; "
            "run both with the same data, --limit and --data-seed"
        )
    run = _run(drawn)
    fewest = min(map(len, run.sampled))
    if ks[0] > fewest:
        raise ConfigError(f"--against: {folder} has {fewest} samples of every item; expected a number of --samples up to that, got {ks[0]}")
    return run


def _run(drawn: Drawn) -> Run:
    """The samples that vote, and the greedy ones where they were drawn."""
    return Run(drawn.by_pass[0], drawn.by_pass[1] if len(drawn.by_pass) > 1 and not drawn.lacking[1] else None)


def _draw(args: Namespace, items: Sequence[Question], ways: Sequence[Pass], samples: Path) -> tuple[int, int] | None:
    """Draws what `samples` does not hold yet. Returns the template's score range; None if interrupted."""
    with OutputStore.open(str(samples), _mode(args)) as store:
        with waiting("loading"):
            engine = Engine.from_pretrained(args.model, **options.engine_options(args))
        with engine:
            run = _run_of(engine, ways)
            begin(store, run, items, ways)
            judged = [(way, partial(_judged, engine, items, way)) for way in ways]
            return engine.prompt.score_range(2) if fill(store, run, items, judged, "judging") else None


def _judged(engine: Engine, items: Sequence[Question], way: Pass, places: Sequence[int]) -> Iterator[tuple[int, Judgement]]:
    """What the engine judges of the items at `places`, as they end."""
    for judgement in judge_items(engine, [items[i] for i in places], way):
        yield places[judgement.index], judgement


def _mode(args: Namespace) -> Mode:
    return "resume" if args.resume else "overwrite" if args.overwrite else "new"


def _run_of(engine: Engine, ways: Sequence[Pass]) -> dict[str, str]:
    """A short hash of everything that the samples depend on beside the items, by name."""
    voting = voting_of(engine)
    first, *others = [engine.fingerprints(way.sampling, voting) for way in ways]
    return run_parts({**first, "greedy": "-".join(other["sampling"] for other in others)}, "eval")


def _settings(args: Namespace, data: EvalData) -> dict[str, Any]:
    """What was run, for whoever reads the report later; no path of this machine."""
    names = ("format", "samples", "temperature", "max_tokens", "limit", "domains", "seed", "data_seed", "permute")
    versions = {"spct": spct.__version__, "torch": torch.__version__, "python": platform.python_version()}
    model = args.model if args.model == "embedded" else Path(args.model).name
    return {
        "model": model,
        "data": data.name,
        **{name: getattr(args, name) for name in names},
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step, so that a reader never meets half of it."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)

"""`spct eval`: accuracy of a judge against k, as a table, as JSON and as a plot; what was drawn is kept, so that a kill loses nothing."""

from __future__ import annotations

import importlib
import json
import platform
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

import spct
from spct.baselines.sidecar import read_form
from spct.cli import options
from spct.cli.console import ProgressBar, note, waiting
from spct.cli.eval_data import EvalData, read_data
from spct.cli.eval_options import parse_ks
from spct.cli.exit_codes import EXIT_INTERRUPTED, EXIT_OK
from spct.cli.jsonl import row_key
from spct.cli.rows import drawn_row, run_parts
from spct.cli.store import Mode, OutputStore
from spct.config import EngineConfig
from spct.engine import Engine
from spct.errors import CapacityError, ConfigError
from spct.evaluation.accuracy import DrawnSample
from spct.evaluation.against import Run, against
from spct.evaluation.benchmark_table import benchmark_table
from spct.evaluation.judging import Pass, Question, judge_items, passes, voting_of
from spct.evaluation.plot import draw_plot
from spct.evaluation.report import accuracy_report, counts
from spct.evaluation.table import table
from spct.types import SamplingParams

SAMPLES = "samples.jsonl"


class _DrawnRow(msgspec.Struct):
    """What a report needs of a row of `samples.jsonl`; `seconds`: wall time since the row before, in the same run."""

    key: str
    samples: list[DrawnSample]
    seconds: float
    error: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What was drawn: for each pass and item its samples, the wall time of the first pass, and why items were not judged.

    lacking  for each pass, how many items have no row at all
    """

    by_pass: Sequence[Sequence[Sequence[DrawnSample]]]
    seconds: float
    refusals: Sequence[str]
    lacking: Sequence[int]

    @property
    def run(self) -> Run:
        """The samples that vote, and the greedy ones where they were drawn."""
        return Run(self.by_pass[0], self.by_pass[1] if len(self.by_pass) > 1 and not self.lacking[1] else None)


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
        elif (form := None if args.model == "embedded" else read_form(Path(args.model))) is not None:
            return _evaluate_baseline(args, form, data)
        else:
            samples = (folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))) / SAMPLES
            ways = passes(sampling, greedy=args.greedy)
            earlier = None if args.against is None else _earlier(args.against, data.items, ways, ks)
            score_range = _draw(args, data.items, ways, samples)
            if score_range is None:
                return EXIT_INTERRUPTED
            drawn = _read(samples, data.items, ways)
            report = {**_report(data, drawn, ks, score_range), "settings": _settings(args, data)}
            if earlier is not None:
                report["against"] = {"run": args.against.name, **against(data.truths, drawn.run, earlier, ks, score_range)}
        if folder is not None:
            write_text(folder / "accuracy.json", json.dumps(report, indent=1) + "\n")
            if not args.dry_run and not draw_plot(report, folder / "accuracy.png"):
                note("accuracy.png not drawn: matplotlib is not installed (extra spct[plot])")
    print(table(report), benchmark_table(report), sep="", flush=True)
    return EXIT_OK


def _evaluate_baseline(args: Namespace, form: str, data: EvalData) -> int:
    """A model that says of itself that it is no ordinary judge. Raises: ConfigError if what it needs is not installed."""
    try:
        module = importlib.import_module("spct.cli.eval_baseline")
    except ModuleNotFoundError as error:
        raise ConfigError(f"eval: {args.model} needs the package {error.name!r}; install the extra spct[train]") from None
    report = module.evaluate_baseline(args, form, data)
    if args.output is not None:
        write_text(args.output / "accuracy.json", json.dumps(report, indent=1) + "\n")
    return EXIT_OK


def _report(data: EvalData, drawn: _Drawn, ks: Sequence[int], score_range: tuple[int, int]) -> dict[str, Any]:
    """Everything that can be said of what was drawn."""
    if len(drawn.refusals) == len(data.items):
        raise CapacityError(f"eval: none of the {len(data.items)} items could be judged; the first: {drawn.refusals[0]}")
    if drawn.refusals:
        note(
            f"{len(drawn.refusals)} of {len(data.items)} items were not judged and count as without a vote; the first: {drawn.refusals[0]}"
        )
    run = drawn.run
    general = accuracy_report(data.truths, run.sampled, ks, score_range, greedy=run.greedy, seconds=drawn.seconds)
    return {**general, "refused": len(drawn.refusals), **data.own_metrics(run.sampled, ks, score_range)}


def _earlier(folder: Path, items: Sequence[Question], ways: Sequence[Pass], ks: Sequence[int]) -> Run:
    """What an earlier run drew. Raises: ConfigError if it did not judge the same items, or drew too few samples of them."""
    if not (folder / SAMPLES).is_file():
        raise ConfigError(f"--against: expected the folder of an earlier `spct eval -o`, got {folder}, which holds no {SAMPLES}")
    try:
        drawn = _read(folder / SAMPLES, items, ways)
    except msgspec.DecodeError as error:
        raise ConfigError(f"--against: {folder / SAMPLES} can't be read ({error}); finish that run with --resume") from None
    if drawn.lacking[0]:
        raise ConfigError(
            f"--against: expected samples of the same {len(items)} items, {folder} lacks {drawn.lacking[0]} of them; "
            "run both with the same data, --limit and --data-seed"
        )
    fewest = min(map(len, drawn.run.sampled))
    if ks[0] > fewest:
        raise ConfigError(f"--against: {folder} has {fewest} samples of every item; expected a number of --samples up to that, got {ks[0]}")
    return drawn.run


def _draw(args: Namespace, items: Sequence[Question], ways: Sequence[Pass], samples: Path) -> tuple[int, int] | None:
    """Draws what `samples` does not hold yet. Returns the template's score range; None if interrupted."""
    mode: Mode = "resume" if args.resume else "overwrite" if args.overwrite else "new"
    with OutputStore.open(str(samples), mode) as store:
        with waiting("loading"):
            engine = Engine.from_pretrained(args.model, **options.engine_options(args))
        with engine:
            run = _run_of(engine, ways)
            # What did not fit is asked again: memory and context may have grown, and a refusal costs nothing.
            store.begin(run, retry_errors=True)
            drawing = _Drawing(store, run)
            try:
                with ProgressBar("judging", len(items) * len(ways)) as bar:
                    for way in ways:
                        drawing.draw(engine, items, way, bar.advance)
                    store.commit()
            except KeyboardInterrupt:
                note(f"interrupted; {drawing.num_drawn} items drawn, {drawing.num_kept} were there; the samples stand, --resume continues")
                return None
            return engine.prompt.score_range(2)


@dataclass(slots=True)
class _Drawing:
    """Judges items and writes a row for each as it finishes; items that OUT holds are skipped."""

    store: OutputStore
    run: Mapping[str, str]
    num_drawn: int = 0
    num_kept: int = 0

    def draw(self, engine: Engine, items: Sequence[Question], way: Pass, advance: Callable[[str], None]) -> None:
        keys = _keys(items, way)
        lacking = [i for i, key in enumerate(keys) if key not in self.store.done]
        self.num_kept += len(items) - len(lacking)
        for _ in range(len(items) - len(lacking)):
            advance(way.name)
        last = time.monotonic()
        for judgement in judge_items(engine, [items[i] for i in lacking], way):
            now = time.monotonic()
            key = keys[lacking[judgement.index]]
            self.store.append(drawn_row(key, way.name, judgement, self.run, now - last))
            self.num_drawn += 1
            advance(way.name)
            last = now


def _run_of(engine: Engine, ways: Sequence[Pass]) -> dict[str, str]:
    """A short hash of everything that the samples depend on beside the items, by name."""
    voting = voting_of(engine)
    first, *others = [engine.fingerprints(way.sampling, voting) for way in ways]
    return run_parts({**first, "greedy": "-".join(other["sampling"] for other in others)}, "eval")


def _keys(items: Sequence[Question], way: Pass) -> list[str]:
    """The key of every item's row: a hash of what is asked, and how many equal items came before."""
    seen: Counter[str] = Counter()
    keys = []
    for item in items:
        key = row_key(way.request(item))
        keys.append(f"{way.name}-{row_key(way.request(item), seen[key])}")
        seen[key] += 1
    return keys


def _read(samples: Path, items: Sequence[Question], ways: Sequence[Pass]) -> _Drawn:
    """The samples of every pass, in the order of the items; those of an item that was not judged have no scores."""
    decoder = msgspec.json.Decoder(_DrawnRow)
    places = {key: (p, i) for p, way in enumerate(ways) for i, key in enumerate(_keys(items, way))}
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
    return _Drawn(found, seconds, refusals, [sum(places[key][0] == number for key in lacking) for number in range(len(ways))])


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

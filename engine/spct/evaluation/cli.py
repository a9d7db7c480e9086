"""`spct eval`: accuracy of a judge against k, as a table, as JSON and as a plot."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from spct.errors import ConfigError

MAX_TOKENS = 400


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `spct eval`."""
    parser.add_argument("data", metavar="embedded-test", help="the held-out split of the embedded model's tasks")
    parser.add_argument("--model", default="embedded", metavar="M", help='"embedded" (default), a folder, or a hub id')
    parser.add_argument(
        "--samples", default="1,2,4,8,16,32", metavar="K,…", help="numbers of votes; the largest is drawn (default 1,2,4,8,16,32)"
    )
    parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="default 1")
    parser.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help=f"per sample (default {MAX_TOKENS})")
    parser.add_argument("--limit", type=int, metavar="N", help="items, the domains in turn (default 2000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (default 0)")
    parser.add_argument("--data-seed", type=int, metavar="N", help="draw a fresh split from the same held-out problems")
    parser.add_argument(
        "--permute", action="store_true", help="control: every query gets the responses of another; accuracy must fall to chance"
    )
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="write DIR/accuracy.json and DIR/accuracy.png")
    parser.add_argument("--dry-run", action="store_true", help="load and count the items, without a model")


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `eval` to a command line's subparsers."""
    add_arguments(subparsers.add_parser("eval", help="accuracy of a judge against k"))


def parse_ks(text: str) -> tuple[int, ...]:
    """Read "1,2,4" as increasing numbers of votes.

    Raises: ConfigError if it holds anything else.
    """
    parts = text.split(",")
    if not all(p.strip().isdecimal() and int(p) >= 1 for p in parts):
        raise ConfigError(f"--samples: expected numbers from 1, separated by commas, such as 1,2,4,8, got {text!r}")
    return tuple(sorted({int(p) for p in parts}))


def main(args: argparse.Namespace) -> int:
    """Evaluate as the flags say; return 0.

    Raises: ConfigError for unknown data or flags that make no sense.
    """
    if args.data != "embedded-test":
        raise ConfigError(f"eval: expected embedded-test (other data sets are not built in this version), got {args.data!r}")
    ks = parse_ks(args.samples)
    loader = importlib.import_module("spct.evaluation.embedded_test")
    report_module = importlib.import_module("spct.evaluation.report")
    items = loader.load(args.limit, loader.DATA_SEED if args.data_seed is None else args.data_seed)
    truths = [loader.truth_of(item) for item in items]
    if args.dry_run:
        report = report_module.counts(truths)
    else:
        judging = importlib.import_module("spct.evaluation.judging")
        items = loader.permute_responses(items) if args.permute else items
        report = judging.evaluate(items, ks=ks, args=args)
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / "accuracy.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        if not args.dry_run:
            _plot(report, args.output / "accuracy.png")
    print(table(report), flush=True)
    return 0


def table(report: dict[str, Any]) -> str:
    """Lay a report out as text: a row per subset, a column per k."""
    names = [*report["subsets"], "all"]
    sections = [*report["subsets"].values(), report]
    if "voting" not in report:
        return "\n".join(f"{name:<14}{section['items']:>8}" for name, section in zip(names, sections, strict=True))
    ks = list(report["voting"])
    lines = [f"{'subset':<14}{'items':>7}{'chance':>8}{'valid':>8}" + "".join(f"{'k=' + k:>8}" for k in ks)]
    for name, section in zip(names, sections, strict=True):
        cells = "".join(f"{100 * section['voting'][k]:>8.1f}" for k in ks)
        lines.append(f"{name:<14}{section['items']:>7}{100 * section['chance']:>8.1f}{100 * section['valid_rate']:>8.1f}{cells}")
    return "\n".join(lines)


def _plot(report: dict[str, Any], target: Path) -> None:
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        print(f"spct: {target.name} not drawn: matplotlib is not installed (extra spct[plot])", file=sys.stderr)
        return
    figure, axes = pyplot.subplots()
    for name, section in [*report["subsets"].items(), ("all", report)]:
        axes.plot([int(k) for k in section["voting"]], list(section["voting"].values()), marker="o", label=name)
    axes.set(xlabel="votes (k)", ylabel="accuracy", xscale="log")
    axes.legend()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)

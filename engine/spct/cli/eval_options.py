"""Flags of `spct eval`. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from spct.cli.options import add_model_arguments
from spct.errors import ConfigError

MAX_TOKENS = 400
DEFAULT_KS = "1,2,4,8,16,32"
# Those of `spct.evaluation.datasets`, which is not imported for a help text.
FORMAT_NAMES = (
    "rewardbench", "rewardbench2", "rm-bench", "llmbar", "judgebench", "pandalm", "ppe-preference", "ppe-correctness", "rmb-pairs",
    "rmb-best-of-n", "realmistake", "helpsteer", "helpsteer-preference", "spct",
)  # fmt: skip


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of `spct eval`."""
    parser.add_argument(
        "data",
        nargs="+",
        metavar="DATA",
        help="embedded-test (the held-out split of the embedded model's tasks), or files of benchmarks: JSON lines or arrays, also gzip",
    )
    add_model_arguments(parser)
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples", default=DEFAULT_KS, metavar="K,…", help=f"numbers of votes; the largest is drawn ({DEFAULT_KS})")
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="of the samples that vote (1)")
    group.add_argument("--max-tokens", type=int, default=MAX_TOKENS, metavar="N", help=f"per sample ({MAX_TOKENS})")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the sampling (0)")
    group.add_argument("--no-greedy", dest="greedy", action="store_false", help="leave out the samples at temperature 0, one per order")
    group = parser.add_argument_group("data")
    group.add_argument(
        "--format", default="auto", metavar="NAME", help=f"of the files: auto (told by their first row), {', '.join(FORMAT_NAMES)}"
    )
    group.add_argument("--limit", type=int, metavar="N", help="items at most, the domains in turn (embedded-test: 2000; files: all)")
    group.add_argument("--domains", nargs="+", metavar="D", help="of embedded-test: only these, in turn (default: all)")
    group.add_argument("--data-seed", type=int, metavar="N", help="draw a fresh split of embedded-test from the same held-out problems")
    group.add_argument(
        "--permute", action="store_true", help="control: every query gets the responses of another; accuracy must fall to chance"
    )
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o", "--output", type=Path, metavar="DIR", help="write accuracy.json, accuracy.png and samples.jsonl (what was drawn) there"
    )
    group.add_argument("--resume", action="store_true", help="continue DIR: keep what it holds of the same model, settings and data")
    group.add_argument("--overwrite", action="store_true", help="replace the samples in DIR")
    group.add_argument(
        "--against", type=Path, metavar="DIR", help="folder of an earlier run on the same items: also report the paired differences from it"
    )
    group.add_argument("--dry-run", action="store_true", help="load and count the items, without a model")


def parse_ks(text: str) -> tuple[int, ...]:
    """Read "1,2,4" as increasing numbers of votes.

    Raises: ConfigError if it holds anything else.
    """
    parts = text.split(",")
    if not all(p.strip().isdecimal() and int(p) >= 1 for p in parts):
        raise ConfigError(f"--samples: expected numbers from 1, separated by commas, such as 1,2,4,8, got {text!r}")
    return tuple(sorted({int(p) for p in parts}))

"""Flags of `spct rank`. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser

from spct.cli.options import add_model_arguments, add_output_arguments, add_sampling_arguments
from spct.ranking import MAX_TOGETHER


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of `spct rank`: one question on the command line, or a file of them."""
    parser.add_argument("input", nargs="?", metavar="INPUT.jsonl", help='requests, one JSON object per line; "-": stdin')
    group = parser.add_argument_group("one question, for a person to read")
    group.add_argument("--query", help="what the responses answer; takes the place of INPUT")
    group.add_argument("--response", action="append", dest="responses", metavar="TEXT", help="a response to rank; repeat the flag")
    group.add_argument("--reference", help="a known good answer, shown to the judge")
    group.add_argument("--principles", help="criteria to judge by, instead of the judge's own")
    group.add_argument("--json", action="store_true", help="one JSON object, as a row of OUT")
    parser.add_argument(
        "--group-size",
        type=int,
        default=MAX_TOGETHER,
        metavar="N",
        help=f"responses shown together at most; more are dealt into groups; 1: every response alone ({MAX_TOGETHER})",
    )
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    group = add_output_arguments(parser)
    group.add_argument("-o", "--output", default="-", metavar="OUT.jsonl", help='rankings of a file, one per line ("-", stdout)')
    group.add_argument("--dry-run", action="store_true", help="check every row of a file; print tokens, KV memory and time; rank nothing")

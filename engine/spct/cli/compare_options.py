"""Flags of `spct compare`. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from spct.cli.options import add_model_arguments, add_output_arguments, add_sampling_arguments


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of `spct compare`."""
    row = 'rows {"query", "response"} (or "responses": [one]), with "id", "reference", "principles" where wanted'
    parser.add_argument("first", type=Path, metavar="A.jsonl", help=f"a model's responses: {row}")
    parser.add_argument("second", type=Path, metavar="B.jsonl", help="another model's responses to the same prompts")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    group = add_output_arguments(parser, "DIR")
    group.add_argument("-o", "--output", type=Path, metavar="DIR", help="write compare.json and judgements.jsonl (a row per prompt) there")
    group.add_argument("--json", action="store_true", help="print the report as JSON instead of the table")

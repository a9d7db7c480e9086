"""Flags of `spct convert`. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

DTYPES = ("fp32", "bf16", "fp16")


def add_arguments(parser: ArgumentParser) -> None:
    """Flags of `spct convert`."""
    parser.add_argument("source", type=Path, metavar="FILE.gguf", help="a model in llama.cpp's format, quantised or not")
    parser.add_argument("output", type=Path, metavar="OUT", help="the Hugging Face folder to write; it must be missing or empty")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="of the weights written (fp32: exactly the file's values)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, if it is a model folder")

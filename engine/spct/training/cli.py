"""`spct train`: flags of the training commands. Imports nothing heavy before a run begins."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from spct.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `spct train`; each sets `args.train` to the module that runs it."""
    commands = parser.add_subparsers(dest="method", required=True, metavar="METHOD")
    sft = commands.add_parser("sft", help="supervised cold start on the project's judging tasks", allow_abbrev=False)
    sft.set_defaults(train="spct.training.sft_cli")
    add_sft_arguments(sft)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` to a command line's subparsers."""
    add_arguments(subparsers.add_parser("train", help="train a judge"))


def main(args: argparse.Namespace) -> int:
    """Run the chosen training command; return the exit code.

    Raises: ConfigError if what training needs is not installed.
    """
    try:
        module = importlib.import_module(args.train)
    except ModuleNotFoundError as error:
        raise ConfigError(f"train: expected the package {error.name!r}, which is not installed; install the extra spct[train]") from None
    return int(module.main(args))


def add_sft_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `spct train sft`."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the model; an interrupted run resumes there"
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="Llama-family folder to start from (default: a fresh small model)")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder whose tokenizer a fresh model takes (default: trained on the tasks)"
    )
    parser.add_argument("--template", type=Path, metavar="FILE", help="judge template of a fresh model (default: the embedded model's)")
    run = parser.add_argument_group("length")
    run.add_argument("--steps", type=int, default=6000, metavar="N", help="steps of the whole run (default 6000)")
    run.add_argument("--warmup", type=int, default=100, metavar="N", help="steps of rising learning rate (default 100)")
    run.add_argument("--decay", type=int, default=1500, metavar="N", help="steps of falling learning rate at the end (default 1500)")
    run.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop resumably after so long")
    run.add_argument("--tokens", type=int, metavar="N", help="stop resumably after so many tokens")
    learning = parser.add_argument_group("learning")
    learning.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and the data (default 0)")
    learning.add_argument("--lr", type=float, default=1.5e-3, metavar="R", help="highest learning rate (default 1.5e-3)")
    learning.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="default: muon for the layers' matrices")
    learning.add_argument(
        "--domains", nargs="+", default=(), metavar="D", help="domains in turn; name one twice for a larger share (default: all)"
    )
    learning.add_argument("--prompts", type=int, default=8, metavar="N", help="prompts per step (default 8)")
    learning.add_argument("--group", type=int, default=4, metavar="G", help="demonstrations under each prompt (default 4)")
    learning.add_argument("--easy-steps", type=int, default=250, metavar="N", help="steps with two responses at most (default 250)")
    learning.add_argument(
        "--small-steps", type=int, default=700, metavar="N", help="steps of small warm-up prompts for a fresh model (default 700)"
    )
    learning.add_argument(
        "--mixed-steps",
        type=int,
        default=250,
        metavar="N",
        help="steps after these in which half of the prompts are still small (default 250)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--workers", type=int, default=2, metavar="N", help="threads (default 2)")
    machine.add_argument("--micro-batches", type=int, default=4, metavar="N", help="batches that a step is cut into (default 4)")
    machine.add_argument("--fp32", action="store_true", help="compute in fp32 (default: bfloat16 products, fp32 weights and sums)")
    machine.add_argument("--save-every", type=float, default=60.0, metavar="SECONDS", help="between checkpoints (default 60)")
    parser.add_argument("--plot", action="store_true", help="also draw DIR/loss.png (needs matplotlib)")

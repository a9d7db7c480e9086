"""Flags of `spct train baseline`. Imports nothing heavy; its body is `spct.baselines.train_cli`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_baseline_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags; what is not given is None, and the configuration's default holds."""
    parser.add_argument(
        "--form", required=True, choices=("scalar", "pairwise", "semi-scalar", "judge", "no-principles"),
        help="scalar: a number per response; pairwise: per pair; semi-scalar: a critique, then a number; judge: picks the best one's "
        "place; no-principles: scores without naming principles first",
    )  # fmt: skip
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the model, for `spct eval`; an interrupted run resumes there",
    )
    parser.add_argument("--model", metavar="M", help='weights and tokenizer to start from: "embedded" (default), a folder, or a hub id')
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="FILE", help='rows as of `spct score`, with "best": index or null (default: own tasks)')
    data.add_argument("--domains", nargs="+", metavar="D", help="domains of the own tasks in turn (default: all)")
    data.add_argument("--data-seed", type=int, metavar="N", help="of the items, or of the rows' order (default 4)")
    data.add_argument("--critiqued", type=int, metavar="N", help="semi-scalar: items with critiques (default 2000)")
    data.add_argument("--max-tokens", type=int, metavar="N", help="semi-scalar: of a critique (default 400)")
    learning = parser.add_argument_group("learning")
    learning.add_argument("--steps", type=int, metavar="N", help="gradient steps of the whole run (default 400)")
    learning.add_argument("--prompts", type=int, metavar="N", help="items per step (default 16)")
    learning.add_argument("--group", type=int, metavar="G", help="forms that write: demonstrations under each prompt (default 2)")
    learning.add_argument("--lr", type=float, metavar="R", help="highest learning rate of the body (default 5e-4)")
    learning.add_argument("--head-lr", type=float, metavar="R", help="that of a value's head (default 2e-3)")
    learning.add_argument("--weight-decay", type=float, metavar="W", help="of AdamW (default 0.01)")
    learning.add_argument(
        "--prompt-weight", type=float, metavar="W", help="forms that write: of a prompt's tokens in the loss (default 0.1)"
    )
    learning.add_argument("--seed", type=int, metavar="N", help="of the demonstrations (default 0)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:N (default auto)")
    machine.add_argument("--micro-tokens", type=int, metavar="N", help="tokens of one forward and backward pass (default 4096)")
    machine.add_argument("--workers", type=int, metavar="N", help="threads (default 2)")
    machine.add_argument("--save-every", type=float, metavar="SECONDS", help="between states on disk (default 60)")
    machine.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop resumably after so long")

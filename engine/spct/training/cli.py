"""`spct train`: the training commands. Imports nothing heavy before a run begins."""

from __future__ import annotations

import argparse
import importlib

from spct.errors import ConfigError
from spct.training.baseline_flags import add_baseline_arguments
from spct.training.flags import add_rft_arguments, add_rl_arguments, add_sft_arguments
from spct.training.meta_cli import add_meta_arguments

METHODS = {
    "sft": ("supervised cold start on the project's judging tasks or given demonstrations", add_sft_arguments),
    "rft": ("rejective fine-tuning: learn from those of its own samples that were right", add_rft_arguments),
    "rl": ("rule-based online reinforcement learning (GRPO)", add_rl_arguments),
    "meta": ("the meta RM: learn which samples of the judge to trust", add_meta_arguments),
    "baseline": ("what a generative reward model is compared with: scalar, pairwise, and others", add_baseline_arguments),
}
# Bodies that lie in a layer above.
ELSEWHERE = {"baseline": "spct.baselines.train_cli"}
SEVERAL = "on several GPUs or processes: torchrun --nproc-per-node N -m spct train %s ...; the run is the same, N times shared"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `spct train`; each sets `args.train` to the module that runs it."""
    commands = parser.add_subparsers(dest="method", required=True, metavar="METHOD")
    for name, (summary, add_flags) in METHODS.items():
        epilog = None if name in ELSEWHERE else SEVERAL % name
        described = summary[0].upper() + summary[1:] + "."
        method = commands.add_parser(name, help=summary, description=described, epilog=epilog, allow_abbrev=False)
        method.set_defaults(train=ELSEWHERE.get(name, f"spct.training.{name}_cli"))
        add_flags(method)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` to a command line's subparsers."""
    add_arguments(subparsers.add_parser("train", help="train a judge"))


def main(args: argparse.Namespace) -> int:
    """Run the chosen training command; return the exit code.

    Raises: ConfigError if what training needs is not installed, or the method trains in one process and a launcher started more; what
    the method does.
    """
    try:
        launch = importlib.import_module("spct.training.launch")
        module = importlib.import_module(args.train)
    except ModuleNotFoundError as error:
        raise ConfigError(f"train: expected the package {error.name!r}, which is not installed; install the extra spct[train]") from None
    with launch.join() as ranks:
        if ranks.size > 1 and args.method in ELSEWHERE:
            raise ConfigError(f"train {args.method}: expected one process, got {ranks.size} of a launcher; start it without one")
        return int(module.main(args))

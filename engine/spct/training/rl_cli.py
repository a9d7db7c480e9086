"""The body of `spct train rl`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from spct.training.flags import RL, given
from spct.training.plots import plot_metrics, require_matplotlib
from spct.training.ranks import current
from spct.training.rl import RlConfig, run

PANELS = {
    "share of samples": ["accuracy", "valid_rate", "zero_variance"],
    "KL to the start": ["kl"],
    "entropy": ["entropy"],
    "tokens per sample": ["length"],
}


def main(args: argparse.Namespace) -> int:
    """Train as the flags say; return 0.

    Raises: SpctError as `run` does; ConfigError if a plot is wanted and can't be drawn.
    """
    if args.plot:
        require_matplotlib()
    settings: dict[str, Any] = given(args, RL)
    config = RlConfig(**settings)
    result = run(config)
    if not current().is_first:
        return 0
    state = "finished" if result.finished else "stopped, resumable with the same command"
    skipped = f", {result.skipped} skipped because of NaN" if result.skipped else ""
    print(
        f"spct: {state} at step {result.step} of {config.steps}{skipped}, accuracy {result.accuracy:.3f} per sample; {config.output}",
        file=sys.stderr,
    )
    if args.plot and result.step:
        plot_metrics(config.output / "metrics.jsonl", config.output / "metrics.png", PANELS)
    return 0

"""The body of `spct train rft`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from spct.training.flags import RFT, given
from spct.training.plots import plot_metrics, require_matplotlib
from spct.training.ranks import current
from spct.training.rft import RftConfig, run

PANELS = {"loss per token": ["loss"], "gradient norm": ["norm"]}


def main(args: argparse.Namespace) -> int:
    """Train as the flags say; return 0.

    Raises: SpctError as `run` does; ConfigError if a plot is wanted and can't be drawn.
    """
    if args.plot:
        require_matplotlib()
    settings: dict[str, Any] = given(args, RFT)
    config = RftConfig(**settings)
    result = run(config)
    if not current().is_first:
        return 0
    for row in result.statistics:
        print(table(row), file=sys.stderr)
    state = "finished" if result.finished else "stopped, resumable with the same command"
    skipped = f", {result.skipped} skipped because of NaN" if result.skipped else ""
    print(f"spct: {state} after {result.step} steps{skipped}; {config.output}", file=sys.stderr)
    if args.plot and result.step:
        plot_metrics(config.output / "metrics.jsonl", config.output / "metrics.png", PANELS)
    return 0


def table(row: dict[str, Any]) -> str:
    """Lay out the statistics of one round: a line per domain."""
    columns = ("requests", "all_correct", "none_correct", "samples", "correct", "invalid", "kept", "hinted", "hinted_kept")
    lines = [f"{'round ' + str(row['round']):<14}" + "".join(f"{name.replace('_', ' '):>13}" for name in columns)]
    for name, counts in [*row["domains"].items(), ("all", row)]:
        lines.append(f"{name:<14}" + "".join(f"{counts[column]:>13}" for column in columns))
    return "\n".join(lines)

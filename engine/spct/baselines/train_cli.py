"""The body of `spct train baseline`."""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields

from spct.baselines.config import BaselineConfig
from spct.baselines.training import train


def main(args: argparse.Namespace) -> int:
    """Train as the flags say; return 0.

    Raises: ConfigError, CheckpointError, InputError as `train` does.
    """
    given = {field.name: value for field in fields(BaselineConfig) if (value := getattr(args, field.name)) is not None}
    if "domains" in given:
        given["domains"] = tuple(given["domains"])
    config = BaselineConfig(**given)
    result = train(config)
    state = "finished" if result.finished else "stopped, resumable with the same command"
    print(f"spct: {state} at step {result.step} of {result.steps}, loss {result.loss:.4f}; {config.output}", file=sys.stderr)
    return 0

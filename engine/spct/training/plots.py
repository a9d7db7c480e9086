"""Plots of a training run from its metrics.jsonl; matplotlib is optional."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from spct.errors import ConfigError


def require_matplotlib() -> None:
    """Refuse early what would fail after a long run.

    Raises: ConfigError if matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise ConfigError(
            "--plot: expected matplotlib, which is not installed; install the extra spct[plot] or leave the flag out"
        ) from None


def plot_metrics(metrics: Path, target: Path, panels: Mapping[str, Sequence[str]]) -> None:
    """Draw fields of metrics.jsonl against the step.

    panels  label of each panel, and the fields in it; a step without a value leaves a gap

    Raises: ConfigError if matplotlib is not installed.
    """
    require_matplotlib()
    pyplot = importlib.import_module("matplotlib.pyplot")
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots(len(panels), 1, sharex=True, squeeze=False, figsize=(6.4, 2.4 * len(panels)), layout="constrained")
    for axis, (label, fields) in zip(axes[:, 0], panels.items(), strict=True):
        for field in fields:
            values = [float("nan") if row[field] is None else row[field] for row in rows]
            axis.plot([row["step"] for row in rows], values, label=field.replace("_", " "))
        axis.set(ylabel=label)
        axis.grid(alpha=0.3)
        if len(fields) > 1:
            axis.legend()
    axes[-1, 0].set(xlabel="step")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)

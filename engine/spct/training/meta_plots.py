"""The picture of a meta RM's report: what it adds to the vote, and whether its probabilities are true."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spct.training.plots import plot_metrics, require_matplotlib

PANELS = {"loss": ["loss"], "its parts": ["correctness", "within", "anchor"], "gradient norm": ["norm"]}
RULES = {"voting": "all samples", "meta": "half kept by the meta RM", "logprob": "half kept by log-probability"}


def plot_report(report: Mapping[str, Any], target: Path) -> None:
    """Draw accuracy against k with 95% intervals for every form, and its calibration.

    report  as `meta_report.write_report` returns it

    Raises: ConfigError if matplotlib is not installed.
    """
    require_matplotlib()
    pyplot = importlib.import_module("matplotlib.pyplot")
    forms = [form for form in ("fused", "scalar") if form in report]
    figure, axes = pyplot.subplots(2, len(forms), squeeze=False, figsize=(5.6 * len(forms), 7.2), layout="constrained")
    for column, form in enumerate(forms):
        told, votes, truth = report[form], axes[0, column], axes[1, column]
        for rule, label in RULES.items():
            ks = [int(k) for k in told["accuracy"][rule]]
            mean, low, high = zip(*told["accuracy"][rule].values(), strict=True)
            votes.plot(ks, [100 * x for x in mean], marker="o", label=label)
            votes.fill_between(ks, [100 * x for x in low], [100 * x for x in high], alpha=0.15)
        votes.set_xscale("log", base=2)
        votes.set_xticks(ks, [str(k) for k in ks])
        votes.set(title=f"{form} meta RM, {told['items']} held-out items", xlabel="samples per item", ylabel="accuracy in %")
        truth.plot([0, 1], [0, 1], linestyle=":", color="gray")
        truth.plot([b["predicted"] for b in told["bins"]], [b["correct"] for b in told["bins"]], marker="o")
        truth.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability given", ylabel="share of correct samples")
        truth.set_title(f"expected calibration error {told['ece']:.3f}")
        for axis in (votes, truth):
            axis.grid(alpha=0.3)
    axes[0, 0].legend()
    figure.savefig(target, dpi=120)
    pyplot.close(figure)


def plot_training(folder: Path) -> None:
    """Draw FOLDER/metrics.png where a form was trained by gradient steps; a head fitted on a frozen judge has none."""
    if (folder / "metrics.jsonl").exists():
        plot_metrics(folder / "metrics.jsonl", folder / "metrics.png", PANELS)

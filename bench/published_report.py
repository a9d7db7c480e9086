"""The tables of docs/published-model.md, from what `published_model.py` has written."""

from __future__ import annotations

import math
from typing import Any

from spct.evaluation.intervals import paired_difference

NAMES = {
    "before": "as published",
    "after-sft": "demonstrations",
    "after-rft": "demonstrations, RFT",
}
KS = ("1", "2", "4")


def wilson(count: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share by Wilson's score, which says something at 0 of n too."""
    share, spread = count / total, z * z / total
    middle, half = share + spread / 2, z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def _share(value: float, low: float, high: float) -> str:
    return f"{100 * value:.1f} ({100 * max(0.0, low):.1f} to {100 * high:.1f})"


def _seconds(value: float | None) -> str:
    return "not kept" if value is None else f"{value:.0f}"


def _difference(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.1f} ({100 * low:.1f} to {100 * high:.1f})"


def published_table(report: dict[str, Any]) -> str:
    """Held-out accuracy after each stage and what the stage added; then what each stage of training cost, rejected and learnt."""
    stages, lines = report["stages"], []
    lines.append("| judge | valid samples | " + " | ".join(f"{k} sample{'s' * (k != '1')}" for k in KS) + " | tokens a sample |")
    lines.append("|---" * (len(KS) + 3) + "|")
    judged = [name for name in NAMES if name in stages]
    for name in judged:
        told = stages[name]
        cells = [_share(told["valid_rate"], *wilson(told["valid"], told["samples"]))]
        cells += [_share(told["voting"][k], *told["intervals"][k]) for k in KS]
        lines.append(f"| {NAMES[name]} | " + " | ".join([*cells, f"{told['tokens'] / told['samples']:.0f}"]) + " |")
    for name in judged[1:]:
        told, before = stages[name], stages[name]["against_run"]
        cells = [_difference(*paired_difference(told["valid_by_item"], stages[before]["valid_by_item"]))]
        cells += [_difference(*told["against"][k]) for k in KS]
        lines.append(f"| {NAMES[name]} - {NAMES[before]} | " + " | ".join(cells) + " | |")
    for domain in sorted(stages[judged[-1]]["subsets"]):
        told = stages[judged[-1]]["subsets"][domain]
        cells = [f"{100 * told['valid_rate']:.1f}", *(f"{100 * told['voting'][k]:.1f}" for k in KS)]
        lines.append(f"| {NAMES[judged[-1]]}: {domain} alone (chance {100 * told['chance']:.1f}) | " + " | ".join(cells) + " | |")
    first = stages[judged[0]]
    lines += [
        "",
        f"{first['items']} held-out items, {first['samples']} samples of each judge; chance {100 * first['chance']:.1f}. An invalid",
    ]
    lines[-1] += (
        " sample does not vote, and an item without a vote counts 0. Intervals: bootstrap over items; valid samples: Wilson over samples."
    )
    lines += ["", "| stage | steps | tokens | loss, first to last | CPU seconds | wall seconds |", "|---|---|---|---|---|---|"]
    for name, told in stages.items():
        shown = {"tokens": told.get("tokens"), "steps": told.get("steps")}
        loss = f"{told['first_loss']:.2f} to {told['last_loss']:.2f}" if "first_loss" in told else ""
        cells = [str(shown["steps"] or ""), f"{shown['tokens']:,}" if shown["tokens"] else "", loss]
        lines.append(f"| {name} | " + " | ".join(cells) + f" | {_seconds(told['cpu_seconds'])} | {_seconds(told['seconds'])} |")
    if "rft" in stages:
        lines += ["", *_rejection("rft", stages["rft"]["rejection"])]
    if "meta" in stages:
        lines += ["", *_meta(stages["meta"])]
    note = report["measured"]
    return "\n".join([*lines, "", f"{note['date']}, {note['machine']}: `{note['command']}`."]) + "\n"


def _rejection(stage: str, told: dict[str, Any]) -> list[str]:
    columns = ("requests", "all_correct", "none_correct", "mixed", "samples", "correct", "incorrect", "invalid", "trained")
    lines = [f"| {stage} | " + " | ".join(name.replace("_", " ") for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, counts in [*told["domains"].items(), ("all", told)]:
        lines.append(f"| {name} | " + " | ".join(str(counts[column]) for column in columns) + " |")
    return lines


def _meta(told: dict[str, Any]) -> list[str]:
    names = {"voting": "all samples", "meta": "half, by the meta head", "logprob": "half, by log-probability"}
    ks = [k for k in told["accuracy"]["voting"] if k != "1"]
    lines = ["| votes | " + " | ".join(f"{k} samples" for k in ks) + " |", "|---" * (len(ks) + 1) + "|"]
    for name, label in names.items():
        lines.append(f"| {label} | " + " | ".join(_share(*told["accuracy"][name][k]) for k in ks) + " |")
    for name in ("meta-voting", "meta-logprob"):
        lines.append(f"| {name.replace('-', ' - ')} | " + " | ".join(_difference(*told["paired"][name][k]) for k in ks) + " |")

    def shown(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.2f}"

    lines += ["", f"Meta head: AUC {shown(told['auc'])}, within items {shown(told['auc_within'])} (mean log-probability:"]
    lines[-1] += f" {shown(told['logprob_auc_within'])}) on {told['mixed_items']} of {told['items']} items with right and wrong samples."
    return lines

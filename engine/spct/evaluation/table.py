"""A report as text: a row per subset, a column per k, and what the whole set says besides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spct.evaluation.report import curve_names


def table(report: Mapping[str, Any]) -> str:
    """Lay a report out for a terminal; of a dry run, the items alone."""
    sections = {**report["subsets"], "all": report}
    wide = max(14, *(len(name) + 1 for name in sections))
    if "voting" not in report:
        return "\n".join(f"{name:<{wide}}{section['items']:>8}" for name, section in sections.items())
    ks = list(report["voting"])
    greedy = "greedy" in report
    head = f"{'subset':<{wide}}{'items':>7}{'chance':>8}{'valid':>8}" + (f"{'greedy':>8}" if greedy else "")
    lines = [head + "".join(f"{'k=' + k:>8}" for k in ks)]
    for name, section in sections.items():
        own = [section["chance"], section["valid_rate"], *([section["greedy"]] if greedy else [])]
        lines.append(f"{name:<{wide}}{section['items']:>7}" + _cells([*own, *section["voting"].values()]))
    indent = len(head)
    others = [name for name in curve_names(report) if name != "voting"]
    lines += ["", "accuracy in %, all items, by what votes", *(f"{name:<{indent}}" + _cells(report[name].values()) for name in others)]
    lines += [f"{'tokens per item':<{indent}}" + "".join(f"{report['tokens'][k]:>8.0f}" for k in ks)]
    if "seconds" in report:
        lines.append(f"{'seconds per item':<{indent}}" + "".join(f"{report['seconds'][k]:>8.3f}" for k in ks))
    if "several" in report:
        low, high = report["several"]["intervals"]["greedy"]
        lines += [
            "",
            f"greedy, items with several responses: {100 * report['several']['greedy']:.1f}% ({100 * low:.1f} to {100 * high:.1f})",
        ]
    return "\n".join([*lines, "", *_differences(report)])


def _differences(report: Mapping[str, Any]) -> list[str]:
    """The paired differences at the largest k, with their intervals, and position bias."""
    last = list(report["voting"])[-1]
    rows = []
    for name, found in report["paired"].items():
        if isinstance(found, Mapping):
            rows.append((f"{name} @{last}", found[last]))
        else:
            rows.append((name, found))
    earlier = report.get("against", {})
    for name in ("greedy", "voting", "meta"):
        found = earlier.get(name)
        if isinstance(found, Mapping):
            rows += [(f"{name} @{k} - {earlier['run']}", row) for k, row in found.items()]
        elif found is not None:
            rows.append((f"{name} - {earlier['run']}", found))
    position = report["position"]
    rows += [("best shown first - last", position["first-last"])] if "first-last" in position else []
    agreement = position.get("agreement", {})
    rows += [("agreement between - within orders", agreement["between-within"])] if "between-within" in agreement else []
    return [
        "paired differences in points, 95% interval",
        *(f"{name:<36}{100 * d:>8.1f} ({100 * a:.1f} to {100 * b:.1f})" for name, (d, a, b) in rows),
    ]


def _cells(values: Any) -> str:
    return "".join(f"{100 * value:>8.1f}" for value in values)

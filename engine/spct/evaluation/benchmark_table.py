"""What benchmarks say of a judge, as text: a row per metric, a column per k."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_WIDTH = 36


def benchmark_table(report: Mapping[str, Any]) -> str:
    """Lay out the keys `benchmarks` and `spread` of a report, to follow its table; "" where there is neither."""
    lines: list[str] = []
    for name, own in report.get("benchmarks", {}).items():
        ks = list(own["abstained"])
        lines += ["", f"{name + ', its own metrics in %':<{_WIDTH}}" + "".join(f"{'k=' + k:>8}" for k in ks) + "   95% at the last k"]
        for key, suffix in (("metrics", ""), ("meta", ", meta")):
            intervals = own.get("intervals" if key == "metrics" else "meta_intervals", {})
            lines += [_line(metric + suffix, by_k, ks, intervals[metric]) for metric, by_k in own.get(key, {}).items()]
        lines += [_line(key, own[key], ks) for key in ("tied", "abstained") if key in own]
        if own["truth_ties"]:
            lines.append(f"{'ties by the annotators':<{_WIDTH}}{own['truth_ties']:>8} of {own['items']} items")
    if "spread" in report:
        found = report["spread"]
        lines += ["", "spread of accuracy between subsets, in points"]
        lines += [_line(name, found[name], list(found[name]), found["intervals"][name]) for name in ("range", "stdev")]
    return "".join(f"\n{line}" for line in lines)


def _line(name: str, by_k: Mapping[str, float], ks: list[str], intervals: Mapping[str, Any] | None = None) -> str:
    cells = "".join(f"{100 * by_k[k]:>8.1f}" if k in by_k else f"{'-':>8}" for k in ks)
    if intervals is None or ks[-1] not in intervals:
        return f"{name:<{_WIDTH}}{cells}"
    low, high = intervals[ks[-1]]
    return f"{name:<{_WIDTH}}{cells}   {100 * low:.1f} to {100 * high:.1f}"

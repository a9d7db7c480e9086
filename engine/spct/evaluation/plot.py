"""`accuracy.png`: accuracy against votes and tokens, what each way of counting them adds, and every domain."""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Report = Mapping[str, Any]
_GREY = "#6b6b6b"


@dataclass(frozen=True, slots=True)
class Style:
    """How one curve looks; `band`: with its 95% interval. Colours are Okabe and Ito's, told apart by colour-blind readers too."""

    name: str
    label: str
    color: str
    line: str = "-"
    width: float = 2.0
    marker: str = "o"
    band: bool = True


STYLES = (
    Style("meta", "meta RM keeps 50%", "#009e73", width=2.4),
    Style("meta@0.25", "meta RM keeps 25%", "#009e73", ":", 1.4, "v", band=False),
    Style("meta@0.75", "meta RM keeps 75%", "#009e73", "--", 1.4, "^", band=False),
    Style("meta+soft", "meta RM keeps 50%, soft votes", "#56b4e9", "-.", 1.6, "D", band=False),
    Style("soft", "soft votes", "#d55e00", "--", 1.6, "s"),
    Style("voting", "plain votes", "#0b0b0b", width=2.4),
    Style("logprob", "log-probability keeps 50%", "#cc79a7", "-", 1.6, "s"),
)
_MAIN = ("meta", "meta@0.25", "meta@0.75", "soft", "voting", "logprob")
_GAINS = ("meta", "meta@0.25", "meta@0.75", "meta+soft", "soft", "logprob")
_SMALL = ("meta", "soft", "voting")


def draw_plot(report: Report, target: Path, *, dpi: int = 110, metadata: Mapping[str, str] | None = None) -> bool:
    """Draw a report as PNG. Returns False, and draws nothing, without matplotlib (an extra).

    metadata  texts for the file; nothing that changes from run to run is written, so that equal reports give equal files
    """
    try:
        figure_module = importlib.import_module("matplotlib.figure")
        matplotlib = importlib.import_module("matplotlib")
        image_module, png_module = (importlib.import_module(f"PIL.{name}") for name in ("Image", "PngImagePlugin"))
    except ModuleNotFoundError:
        return False
    drawn = io.BytesIO()
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        _figure(figure_module.Figure, report).savefig(drawn, dpi=dpi, format="png")
    texts = png_module.PngInfo()
    for key, text in (metadata or {}).items():
        texts.add_text(key, text)
    # A palette: a third of the size, and no difference that an eye would see.
    image_module.open(drawn).convert("RGB").quantize(192, dither=0).save(target, format="PNG", optimize=True, pnginfo=texts)
    return True


def _figure(figure_class: Any, report: Report) -> Any:
    subsets = report["subsets"] if len(report["subsets"]) > 1 else {}
    columns = min(max(len(subsets), 1), 5)
    rows = math.ceil(len(subsets) / columns)
    figure = figure_class(figsize=(11, 4.8 + 1.85 * rows), layout="constrained")
    top, *below = figure.subfigures(2 if rows else 1, 1, height_ratios=[4.8, 1.85 * rows] if rows else None, squeeze=False).ravel()
    has_gains = any(f"{name}-voting" in report["paired"] for name in _GAINS)
    axes = top.subplots(1, 1 + has_gains, squeeze=False, width_ratios=[3, 2] if has_gains else None).ravel()
    _main_panel(axes[0], report)
    if has_gains:
        _gain_panel(axes[1], report)
    top.suptitle(_title(report), fontsize=10.5, x=0.01, ha="left")
    if below:
        panels = below[0].subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for panel, (name, section) in zip(panels, subsets.items(), strict=False):
            _small_panel(panel, name, section)
        for panel in panels[max(len(subsets) - columns, 0) : len(subsets)]:
            panel.tick_params(labelbottom=True)
        for panel in panels[len(subsets) :]:
            panel.set_axis_off()
        below[0].supylabel("accuracy, %", fontsize=9)
        below[0].supxlabel("samples per item (k)", fontsize=9)
    return figure


def _title(report: Report) -> str:
    largest = max(report["voting"], key=int)
    parts = [f"{100 * report['voting']['1']:.1f}% with one sample"] if "1" in report["voting"] else []
    parts += [f"{100 * report['voting'][largest]:.1f}% with {largest} plain votes"] if largest != "1" else []
    title = f"{report['items']:,} items: {', '.join(parts)}"
    if "meta" in report:
        title += f", {100 * report['meta'][largest]:.1f}% with the half of them that the meta RM keeps"
    return title + " (bands: 95% intervals)"


def _main_panel(axes: Any, report: Report) -> None:
    """Accuracy against k, and against the tokens that k samples take."""
    ks = _ks(report)
    for style in (s for s in STYLES if s.name in _MAIN and s.name in report):
        _curve(axes, report, style)
    _levels(axes, report, ks)
    _axis(axes, ks, list(map(str, ks)))
    axes.set(xlabel="samples per item (k)", ylabel="accuracy, %")
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.08), frameon=False, fontsize=8.5)
    if "tokens" in report:
        above = axes.secondary_xaxis("top")
        _axis(above, ks, [f"{report['tokens'][str(k)]:,.0f}" for k in ks])
        above.set_xlabel("generated tokens per item", fontsize=8, color=_GREY)
        above.tick_params(length=0, labelsize=8, labelcolor=_GREY)
        above.spines["top"].set_visible(False)


def _gain_panel(axes: Any, report: Report) -> None:
    """What each way of counting adds to plain votes on the same items, against tokens (or k, where they were not counted)."""
    ks = _ks(report)
    places = [report["tokens"][str(k)] for k in ks] if "tokens" in report else ks
    for style in (s for s in STYLES if s.name in _GAINS and f"{s.name}-voting" in report["paired"]):
        rows = [[100 * value for value in report["paired"][f"{style.name}-voting"][str(k)]] for k in ks]
        axes.plot(places, [row[0] for row in rows], color=style.color, linestyle=style.line, linewidth=style.width, marker=style.marker,
                  markersize=4, label=style.label)  # fmt: skip
        if style.band:
            axes.fill_between(places, [row[1] for row in rows], [row[2] for row in rows], color=style.color, alpha=0.13, linewidth=0)
    axes.axhline(0, color="#0b0b0b", linewidth=1.4, label="plain votes")
    _axis(axes, places, [f"{place:,.0f}" for place in places])
    axes.set(xlabel="generated tokens per item" if "tokens" in report else "samples per item (k)", ylabel="gain over plain votes, points")
    axes.legend(loc="best", frameon=False, fontsize=8)


def _small_panel(axes: Any, name: str, section: Report) -> None:
    """One domain: the three curves that matter most."""
    for style in (s for s in STYLES if s.name in _SMALL and s.name in section):
        _curve(axes, section, style, scale=0.6)
    if "greedy" in section:
        axes.axhline(100 * section["greedy"], color=_GREY, linestyle=(0, (5, 3)), linewidth=0.8)
    axes.axhline(100 * section["chance"], color=_GREY, linestyle=":", linewidth=0.8)
    ks = _ks(section)
    _axis(axes, ks, [str(k) if i % 2 == 0 or len(ks) < 4 else "" for i, k in enumerate(ks)])
    axes.set_title(f"{name} ({section['items']:,})", fontsize=8.5, pad=3)
    axes.tick_params(labelsize=7.5)


def _curve(axes: Any, report: Report, style: Style, scale: float = 1.0) -> None:
    ks = _ks(report)
    values = [100 * report[style.name][str(k)] for k in ks]
    axes.plot(ks, values, color=style.color, linestyle=style.line, linewidth=style.width * scale, marker=style.marker,
              markersize=4 * scale, label=style.label)  # fmt: skip
    ranges = report["intervals"].get(style.name)
    if style.band and ranges is not None:
        low, high = ([100 * ranges[str(k)][side] for k in ks] for side in (0, 1))
        if len(ks) == 1:
            # A band of one k has no width, and a logarithmic axis no middle.
            axes.set_xlim(ks[0] / 2, 2 * ks[0])
            axes.errorbar(ks, values, [[values[0] - low[0]], [high[0] - values[0]]], color=style.color, linewidth=1.0, capsize=4 * scale)
        axes.fill_between(ks, low, high, color=style.color, alpha=0.13, linewidth=0)


def _levels(axes: Any, report: Report, ks: Sequence[int]) -> None:
    """Horizontal lines with their names on them: one greedy sample, and chance."""
    levels: list[tuple[str, str, Any]] = [("chance", "chance", ":")]
    levels += [("greedy", "one greedy sample", (0, (5, 3)))] if "greedy" in report else []
    for name, label, line in levels:
        value = 100 * report[name]
        axes.axhline(value, color=_GREY, linestyle=line, linewidth=1.1)
        _name_level(axes, ks[-1], value, f"{label} {value:.1f}")


def _name_level(axes: Any, right: float, value: float, text: str) -> None:
    """Write on a horizontal line, at its right end."""
    offset = {"xytext": (0, 2), "textcoords": "offset points"}
    axes.annotate(text, (right, value), **offset, color=_GREY, fontsize=8, va="bottom", ha="right")


def _axis(axes: Any, places: Sequence[float], labels: Sequence[str]) -> None:
    """A logarithmic axis with a tick at every k and nowhere else."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(places), labels=list(labels))
    axes.minorticks_off()
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)


def _ks(report: Report) -> list[int]:
    return sorted(map(int, report["voting"]))

"""Tables of `bench/best_of_n.py` and `bench/baselines.py` for the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RESPONSES = (1, 2, 3, 4, 6)
VOTES = (1, 2, 4, 8)
# Domains of the tasks without one exact result: what counts there are the wishes.
OPEN = ("constraints", "passage")


def best_of_n_table(told: dict[str, Any]) -> str:
    """The table for the documentation: a row per n, a column per k, then the winners by budget."""
    cells = {(row["n"], row["k"]): row for row in told["splits"]}
    lines = ["| responses (n) | " + " | ".join(f"k = {k}" for k in VOTES) + " | best of the n |", "|---" * (len(VOTES) + 2) + "|"]
    for n in RESPONSES:
        shown = []
        for k in VOTES:
            row = cells[n, k] if n > 1 else cells[1, 0]
            low, high = row["interval"]
            shown.append(f"{100 * row['value']:.1f} ({100 * low:.1f} to {100 * high:.1f}), {row['tokens']:.0f} tokens")
        if n == 1:
            shown = [f"{shown[0]}, no judge", *[""] * (len(VOTES) - 1)]
        oracle = 100 * cells[n, VOTES[0] if n > 1 else 0]["oracle"]
        lines.append(f"| {n} | " + " | ".join(shown) + f" | {oracle:.1f} |")
    lines += ["", "| budget in tokens written | best split | value | not worse with 95% confidence |", "|---|---|---|---|"]
    for row in told["budgets"]:
        level = ", ".join(f"{n} × {k}" for n, k in row["level_with"]) or "-"
        lines.append(f"| {row['budget']} | {row['n']} × {row['k']} | {100 * row['value']:.1f} | {level} |")
    note = told["measured"]
    lines += [
        "",
        f"True quality of the response that was picked, in % of the item's points, {told['items']} items with 95% intervals (bootstrap "
        "over items; budgets compare splits on the same items); tokens: n responses and k samples. Best of the n: a judge that is "
        "always right. One of an item's six responses is always good, and the first n stand in random order, so a policy's luck is drawn "
        "without replacement.",
        f"{note['date']}, {note['machine']}: `{note['command']}`.",
    ]
    return "\n".join(lines) + "\n"


def baselines_table(told: dict[str, Any]) -> str:
    """The tables for the documentation: a row per model, then its differences from the reference."""

    def percent(values: Sequence[float], sign: str = "") -> str:
        return f"{100 * values[0]:{sign}.1f} ({100 * values[1]:.1f} to {100 * values[2]:.1f})"

    domains = list(next(iter(told["models"].values()))["domains"])
    head = ["model", "all", "open", "checkable", "spread", *domains, "single", "tokens"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, own in told["models"].items():
        cells = [name, *(percent(own[key]) for key in ("accuracy", "open", "checkable", "spread"))]
        cells += [f"{100 * own['domains'][domain][0]:.1f}" for domain in domains]
        cells += [
            "-" if own["single"] is None or name in ("pairwise", "judge") else f"{100 * own['single']:.1f}",
            f"{own['tokens']:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    kinds = {"all": "difference", "open": "difference_open", "checkable": "difference_checkable", "spread": "difference_spread"}
    lines += ["", f"| less {told['reference']} | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for name, own in told["models"].items():
        if "difference" in own:
            lines.append("| " + " | ".join([name, *(percent(own[key], "+") for key in kinds.values())]) + " |")
    trained = {name: own["training"] for name, own in told["models"].items() if "training" in own}
    if trained:
        lines += ["", "| training | steps | loss in its four quarters |", "|---|---|---|"]
        lines += [f"| {name} | {own['steps']} | {', '.join(f'{loss:.3f}' for loss in own['loss'])} |" for name, own in trained.items()]
    note = told["measured"]
    lines += [
        "",
        f"Accuracy in % on {told['items']} items of `embedded-test` with two responses and more, with 95% intervals, greedy but for votes; "
        f"chance is {100 * told['chance']:.1f}. Open: mean of {' and '.join(OPEN)}; checkable: of the other domains; spread: best less "
        f"worst domain; single: {told['single_items']} other items with one response; tokens: written per verdict. Differences in points, "
        "paired over the same items (of spreads: over the same resamples).",
        f"{note['date']}, {note['machine']}: `{note['command']}`.",
    ]
    return "\n".join(lines) + "\n"

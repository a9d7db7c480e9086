"""Which of two models' responses a judge prefers: win rate, position bias and length bias over prompts that both answered.

The outcome of a prompt is 1 where the first model's response has the higher reward, 0 where the second's, a half on a tie. All intervals
are 95%, bootstrap over prompts (`spct.evaluation.intervals`). Prompts without a valid vote are counted apart, never as ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spct.evaluation.intervals import interval

TIE = 0.5


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the votes on one prompt say.

    outcome       1.0 the first model, 0.0 the second, 0.5 a tie; None without a valid vote
    first_shown   the outcome of the samples that showed the first model's response first; None where none of these voted
    second_shown  that of the samples that showed the second model's response first
    lengths       characters of the two responses
    """

    outcome: float | None
    first_shown: float | None
    second_shown: float | None
    lengths: tuple[int, int]


def outcome_of(totals: Sequence[float | None]) -> float | None:
    """The outcome of two rewards; None where there is none."""
    first, second = totals
    if first is None or second is None:
        return None
    return TIE if first == second else float(first > second)


def verdict_of(
    rewards: Sequence[float | None], votes: Sequence[tuple[Sequence[float], Sequence[int]]], lengths: tuple[int, int]
) -> Verdict:
    """The verdict of a judgement on two responses.

    votes  (scores in the request's order, order shown) of every sample that voted
    """
    by_first: list[float | None] = []
    for shown in (0, 1):
        ballots = [scores for scores, order in votes if order[0] == shown]
        by_first.append(outcome_of([sum(column) for column in zip(*ballots, strict=True)]) if ballots else None)
    return Verdict(outcome_of(rewards), by_first[0], by_first[1], lengths)


def comparison_report(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Everything that can be said of the verdicts; what can't (no such prompt) is None."""
    told = [v for v in verdicts if v.outcome is not None]
    outcomes = [v.outcome for v in told if v.outcome is not None]
    return {
        "prompts": len(verdicts),
        "wins": sum(outcome == 1 for outcome in outcomes),
        "losses": sum(outcome == 0 for outcome in outcomes),
        "ties": sum(outcome == TIE for outcome in outcomes),
        "no_vote": len(verdicts) - len(told),
        "win_rate": _mean(outcomes),
        "win_rate_without_ties": _mean([outcome for outcome in outcomes if outcome != TIE]),
        "position": _position(told),
        "length": _length(told),
    }


def comparison_table(report: dict[str, Any], first: str, second: str) -> str:
    """The report for a terminal."""
    length, position = report["length"], report["position"]
    rows = [
        (f"{first} wins", str(report["wins"])),
        (f"{second} wins", str(report["losses"])),
        ("ties", str(report["ties"]) + (f", {report['identical']} of them equal texts" if report.get("identical") else "")),
        ("without a valid vote", str(report["no_vote"])),
        (f"win rate of {first}, ties half", _percent(report["win_rate"])),
        ("  of decided prompts", _percent(report["win_rate_without_ties"])),
        ("both orders agree", _percent(position["agreement"])),
        ("response shown first wins", _percent(position["first_shown"])),
        ("longer response wins", _percent(length["longer_wins"])),
        ("mean length in characters", "-" if length["means"] is None else "{:.0f} and {:.0f}".format(*length["means"])),
    ]
    wide = max(len(name) for name, _ in rows) + 2
    return "\n".join([f"{report['prompts']} prompts", *(f"{name:<{wide}}{value}" for name, value in rows)])


def _position(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Of prompts with votes in both orders: how often these agree, and how often what is shown first wins (a half: no bias)."""
    both = [(v.first_shown, v.second_shown) for v in verdicts if v.first_shown is not None and v.second_shown is not None]
    return {
        "prompts": len(both),
        "agreement": _mean([float(a == b) for a, b in both]),
        "first_shown": _mean([(a + 1 - b) / 2 for a, b in both]),
    }


def _length(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Of decided prompts with responses of unequal length: how often the longer one wins (a half: no bias, or no true link)."""
    decided = [v for v in verdicts if v.outcome != TIE and v.lengths[0] != v.lengths[1]]
    longer = [float((v.lengths[0] > v.lengths[1]) == (v.outcome == 1)) for v in decided]
    means = np.mean([v.lengths for v in verdicts], axis=0).round(1).tolist() if verdicts else None
    return {"prompts": len(longer), "longer_wins": _mean(longer), "means": means}


def _mean(values: Sequence[float]) -> list[float] | None:
    """[mean, low, high]."""
    if not values:
        return None
    return [round(float(x), 5) for x in (np.mean(values), *interval(values))]


def _percent(value: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    mean, low, high = (100 * x for x in value)
    return f"{mean:.1f}% ({low:.1f} to {high:.1f})"

"""Co-scaling of n and k: for a budget of tokens, is it better to write more responses or to draw more votes?

A policy is played by the generator of the embedded model's tasks: every item of the held-out split with six responses of random quality.
Its first n are what the policy wrote; the judge ranks them with k votes, and what counts is the true quality of the one that it puts
first (the importance-weighted share of the criteria that it meets, 0 .. 1; the mean over a tie).

    python bench/best_of_n.py [-o bench/results/best-of-n.json] [--items 600] [--resume FILE]

Values at k average over all disjoint blocks of k of the 8 votes. Tokens are those written: n responses and k samples; what is prefilled
is told beside them. Intervals: bootstrap over items.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from judge_report import RESPONSES, VOTES, best_of_n_table

from spct import Engine, SamplingParams, ScoreRequest, VotingParams
from spct.evaluation.intervals import intervals
from spct.training.tasks import DOMAINS, Item, core, draw_item

DATA_SEED = 20_261_124
BUDGETS = (50, 100, 200, 300, 400, 600, 800, 1200, 1600)


def draw_pools(count: int) -> list[Item]:
    """Items of the held-out split, all with six responses, the domains in turn; their responses stand in random order."""
    names = tuple(DOMAINS)
    odds = [int(number == max(RESPONSES)) for number in core.RESPONSE_COUNTS]
    # Few items have six responses; waiting for them would take minutes.
    with mock.patch.object(core, "RESPONSE_ODDS", odds):
        return [draw_item("embedded-test", DATA_SEED, i, domain=names[i % len(names)]) for i in range(count)]


def shares(item: Item) -> list[float]:
    """The quality of each response, as a share of what all criteria together are worth."""
    total = sum(item.weights) if item.weights else sum(c.importance for c in item.criteria)
    return [quality / total for quality in item.quality]


def picked(values: Sequence[float], scores: Sequence[Sequence[int] | None]) -> float:
    """The true value of what these votes put first: the mean over a tie; without a valid vote that of a response drawn at random."""
    valid = [s for s in scores if s is not None]
    if not valid:
        return float(np.mean(values))
    totals = [sum(column) for column in zip(*valid, strict=True)]
    top = max(totals)
    return float(np.mean([value for value, total in zip(values, totals, strict=True) if total == top]))


def judge(engine: Engine, items: Sequence[Item], rows: Path) -> dict[tuple[int, int], dict[str, Any]]:
    """Draws what `rows` does not hold yet: 8 votes on the first n responses of every item; gives them by (item, n)."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    if rows.exists():
        found = {(row["item"], row["n"]): row for row in map(json.loads, rows.read_text().splitlines())}
    wanted = [(i, n) for i in range(len(items)) for n in RESPONSES if n > 1 and (i, n) not in found]
    requests = [
        ScoreRequest(items[i].query, items[i].responses[:n], reference=items[i].reference, principles=items[i].principles)
        for i, n in wanted
    ]
    sampling, voting = SamplingParams(samples=max(VOTES), max_tokens=700), VotingParams(filter="none")
    with rows.open("a", encoding="utf-8") as file:
        for judgement in engine.score_batch(requests, sampling=sampling, voting=voting):
            if judgement.error is not None:
                raise judgement.error
            i, n = wanted[judgement.index]
            row = {
                "item": i,
                "n": n,
                "scores": [sample.scores for sample in judgement.samples],
                "tokens": [sample.num_tokens for sample in judgement.samples],
                "prefilled": judgement.usage.prefilled_tokens,
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            found[i, n] = json.loads(json.dumps(row))
    return found


def columns(engine: Engine, items: Sequence[Item], found: dict[tuple[int, int], dict[str, Any]]) -> dict[tuple[int, int], np.ndarray]:
    """By (n, k): [items, 2], the value of the response that was picked and the tokens written. n = 1 needs no judge."""
    lengths = [[len(engine.prompt.tokenizer.encode_user(r)) for r in item.responses] for item in items]
    values = [shares(item) for item in items]
    table: dict[tuple[int, int], np.ndarray] = {(1, 0): np.array([(v[0], t[0]) for v, t in zip(values, lengths, strict=True)])}
    for n in RESPONSES[1:]:
        for k in VOTES:
            cells = []
            for i in range(len(items)):
                row = found[i, n]
                blocks = [slice(start, start + k) for start in range(0, max(VOTES), k)]
                value = np.mean([picked(values[i][:n], row["scores"][block]) for block in blocks])
                cells.append((value, sum(lengths[i][:n]) + np.mean([sum(row["tokens"][block]) for block in blocks])))
            table[n, k] = np.array(cells)
        table[n, -1] = np.array([(max(v[:n]), 0) for v in values])
    return table


def report(table: dict[tuple[int, int], np.ndarray], found: dict[tuple[int, int], dict[str, Any]]) -> dict[str, Any]:
    """Means with intervals for every split, and for each budget the split that wins, with its paired lead over the others."""
    splits = [key for key in table if key[1] >= 0]
    bounds = intervals(np.stack([table[key][:, 0] for key in splits], axis=1))
    rows = [
        {
            "n": n,
            "k": k,
            "value": round(float(table[n, k][:, 0].mean()), 5),
            "interval": [round(float(x), 5) for x in bound],
            "tokens": round(float(table[n, k][:, 1].mean()), 1),
            "oracle": round(float(table[n, -1 if n > 1 else 0][:, 0].mean()), 5),
        }
        for (n, k), bound in zip(splits, bounds, strict=True)
    ]
    for row in rows:
        drawn = [cell["prefilled"] for (_, n), cell in found.items() if n == row["n"]]
        row["prefilled_all_votes"] = round(float(np.mean(drawn)), 1) if drawn else 0.0
    return {
        "bench": "best-of-n",
        "items": len(table[1, 0]),
        "splits": rows,
        "budgets": [won for budget in BUDGETS if (won := _winner(rows, table, budget))],
    }


def _winner(rows: Sequence[dict[str, Any]], table: dict[tuple[int, int], np.ndarray], budget: int) -> dict[str, Any] | None:
    """The affordable split of the highest mean, and those that it is not better than with 95% confidence (paired)."""
    able = [row for row in rows if row["tokens"] <= budget]
    if not able:
        return None
    best = max(able, key=lambda row: row["value"])
    chosen = table[best["n"], best["k"]][:, 0]
    others = [row for row in able if row is not best]
    if not others:
        return {"budget": budget, "n": best["n"], "k": best["k"], "value": best["value"], "level_with": []}
    gaps = intervals(np.stack([chosen - table[row["n"], row["k"]][:, 0] for row in others], axis=1))
    level = [[row["n"], row["k"]] for row, (low, _) in zip(others, gaps, strict=True) if low <= 0]
    return {"budget": budget, "n": best["n"], "k": best["k"], "value": best["value"], "tokens": best["tokens"], "level_with": level}


def main() -> int:
    """Draws, computes, writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "best-of-n.json")
    parser.add_argument("--items", type=int, default=602)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--rows", type=Path, default=Path("best-of-n.rows.jsonl"), help="what was drawn; an interrupted run resumes there")
    parser.add_argument("--machine", default="", help="what to say of this machine in the result")
    args = parser.parse_args()
    items = draw_pools(args.items)
    print(f"{len(items)} items", file=sys.stderr)
    with Engine.from_pretrained(args.model) as engine:
        found = judge(engine, items, args.rows)
        told = report(columns(engine, items, found), found)
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    told["measured"] = {"date": date, "machine": args.machine, "command": f"python bench/best_of_n.py --items {args.items}"}
    args.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(best_of_n_table(told))
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())

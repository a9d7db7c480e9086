"""What `bench/best_of_n.py` and `bench/baselines.py` make of scores: picks, winners of a budget, spreads; and their tables."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from spct.evaluation.accuracy import DrawnSample, Truth

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def best_of_n():
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("best_of_n")
    sys.path.remove(str(BENCH))


@pytest.fixture(scope="module")
def baselines(best_of_n):
    return importlib.import_module("baselines")


def test_pools_have_six_responses_and_one_with_every_point(best_of_n):
    pools = best_of_n.draw_pools(7)
    assert all(len(item.responses) == 6 for item in pools) and len({item.domain for item in pools}) == 7
    for item in pools:
        shares = best_of_n.shares(item)
        assert all(0 <= share <= 1 for share in shares) and shares.index(max(shares)) == item.best


@pytest.mark.parametrize(
    ("scores", "value"),
    [([[5, 9, 1]], 0.2), ([[9, 5, 1], [1, 9, 1]], 0.2), ([[9, 1, 9]], 0.75), ([None, [1, 1, 9]], 0.5), ([None, None], 1.7 / 3)],
)
def test_what_is_picked_is_worth_its_true_quality(best_of_n, scores, value):
    assert best_of_n.picked([1.0, 0.2, 0.5], scores) == pytest.approx(value)


def test_a_budget_is_won_by_the_best_split_that_it_pays_for(best_of_n):
    rng = np.random.default_rng(0)
    rows, table = [], {}
    for n, k, value, tokens in ((1, 0, 0.5, 20), (2, 1, 0.6, 100), (2, 4, 0.6, 300), (4, 1, 0.8, 200)):
        table[n, k] = np.stack([value + 0.01 * rng.standard_normal(200), np.full(200, tokens)], axis=1)
        rows.append({"n": n, "k": k, "value": float(table[n, k][:, 0].mean()), "tokens": tokens})
    rows[2]["value"] = rows[1]["value"] + 1e-4
    table[2, 4][:, 0] = table[2, 1][:, 0] + 1e-4 * rng.choice([-9, 11], 200)
    won = {budget: best_of_n._winner(rows, table, budget) for budget in (10, 50, 150, 250)}
    assert won[10] is None and (won[50]["n"], won[50]["k"], won[50]["level_with"]) == (1, 0, [])
    assert (won[150]["n"], won[150]["k"]) == (2, 1) and (won[250]["n"], won[250]["k"], won[250]["level_with"]) == (4, 1, [])


def test_the_spread_is_between_domains(baselines):
    truths = [Truth(name, 2, 0) for name in ("passage", "sorting", "units") for _ in range(50)]
    told = baselines.section(np.repeat([1.0, 0.5, 0.7], 50), truths)
    assert told["spread"] == [0.5, 0.5, 0.5] and told["open"] == [1.0, 1.0, 1.0] and told["checkable"][0] == pytest.approx(0.6)


def test_the_table_compares_on_items_with_several_responses(baselines):
    truths = [Truth("passage", 2, 0), Truth("sorting", 3, 1), Truth("sorting", 1, 0)] * 20
    credits = {"scalar": (np.tile([1.0, 1.0, 0.0], 20), 0.0), "GRM": (np.tile([1.0, 0.5, 1.0], 20), 61.0)}
    told = baselines.report(credits, truths, "GRM")
    assert (told["items"], told["single_items"]) == (40, 20) and told["models"]["scalar"]["difference"][0] == 0.25
    assert told["models"]["scalar"]["difference_open"] == [0, 0, 0] and told["models"]["scalar"]["single"] == 0
    # The reference's domains lie 50 points apart, the other's not at all.
    assert told["models"]["scalar"]["difference_spread"] == [-0.5, -0.5, -0.5] and "difference" not in told["models"]["GRM"]
    table = baselines.baselines_table(json.loads(json.dumps(told | {"measured": {"date": "d", "machine": "m", "command": "c"}})))
    assert "| scalar | 100.0 (100.0 to 100.0) |" in table and "| 61 |" in table and "40 items" in table
    assert "| scalar | +25.0 (" in table and "| -50.0 (-50.0 to -50.0) |" in table


def test_a_model_is_named_with_its_votes(baselines):
    assert baselines.parsed("embedded") == ("embedded", 0, 1.0)
    assert baselines.parsed("folder@8") == ("folder", 8, 1.0)
    assert baselines.parsed("folder@8/0.5") == ("folder", 8, 0.5)


def test_a_curve_is_told_in_quarters(baselines, tmp_path):
    assert baselines.curve(tmp_path) is None
    rows = "".join(json.dumps({"step": i, "loss": loss}) + "\n" for i, loss in enumerate([4.0, 2.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.0]))
    (tmp_path / "metrics.jsonl").write_text(rows)
    assert baselines.curve(tmp_path) == {"steps": 8, "loss": [3.0, 2.0, 1.0, 0.25]}
    told = baselines.report({"scalar": (np.ones(2), 0.0)}, [Truth("passage", 2, 0), Truth("units", 2, 0)], "scalar")
    told["models"]["scalar"]["training"] = baselines.curve(tmp_path)
    table = baselines.baselines_table(told | {"measured": {"date": "d", "machine": "m", "command": "c"}})
    assert "| scalar | 8 | 3.000, 2.000, 1.000, 0.250 |" in table


def test_votes_are_counted_together_and_greedy_verdicts_one_by_one(baselines, tmp_path, monkeypatch):
    drawn = [[DrawnSample((9, 1), num_tokens=10), DrawnSample((1, 4), num_tokens=20)]]
    asked = []

    def judged(name, model, items, votes=0):
        asked.append((model, votes))
        return drawn, 5.5

    monkeypatch.setattr(baselines, "_judged", judged)
    truths = [Truth("passage", 2, 0)]
    assert baselines.credits_of("greedy", "embedded", ["item"], truths, tmp_path) == (np.array([0.5]), 15.0)
    assert baselines.credits_of("two", "embedded@2", ["item"], truths, tmp_path) == (np.array([1.0]), 30.0)
    assert asked == [("embedded", 0), ("embedded", 2)]
    assert baselines.credits_of("two", "embedded@2", ["item"], truths, tmp_path) == (np.array([1.0]), 30.0) and len(asked) == 2

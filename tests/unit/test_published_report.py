"""The tables of the recipe on a published checkpoint say what its figures say, and every command of it is one that exists."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

from spct.cli import eval_options
from spct.training.cli import add_arguments

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module("published_model"), importlib.import_module("published_report")
    sys.path.remove(str(BENCH))


def test_every_stage_is_a_command_that_exists(bench):
    model, _ = bench
    args = argparse.Namespace(domains=["table"], items=9, steps=8, requests=7, meta_items=6, meta_validation=5, max_tokens=4)
    told = model.commands(args)
    assert tuple(told) == model.STAGES
    for name, (command, *words) in told.items():
        parser = argparse.ArgumentParser(exit_on_error=False)
        {"eval": eval_options.add_arguments, "train": add_arguments}[command](parser)
        parsed = parser.parse_args(words)
        assert (
            parsed.domains == ["table"] and str(parsed.output) == name and parsed.max_tokens == 4
            if name not in ("sft", "longer")
            else parsed.steps == 8
        )


def judged(valid, voting, **more):
    intervals = {k: [value - 0.1, value + 0.1] for k, value in voting.items()}
    told = {
        "items": 100,
        "chance": 0.45,
        "samples": 400,
        "valid": valid,
        "valid_rate": valid / 400,
        "voting": voting,
        "intervals": intervals,
    }
    return (
        told
        | {"subsets": {"table": told}, "tokens": 40_000, "valid_by_item": [valid / 400] * 100, "cpu_seconds": 10.0, "seconds": 12.0}
        | more
    )


def test_the_tables_say_what_was_measured(bench):
    _, report = bench
    rejection = {name: number for number, name in enumerate(("requests", "all_correct", "none_correct", "mixed", "samples", "correct"))}
    rejection |= {"incorrect": 6, "invalid": 7, "trained": 8}
    trained = {"cpu_seconds": 5.4, "seconds": 9.0, "steps": 3, "tokens": 12_345, "first_loss": 3.0, "last_loss": 0.5}
    accuracy = {name: {"1": [0.5, 0.4, 0.6], "4": [0.625, 0.5, 0.75]} for name in ("voting", "meta", "logprob")}
    paired = {name: {"1": [0.0, 0.0, 0.0], "4": [-0.05, -0.1, 0.0]} for name in ("meta-voting", "meta-logprob")}
    stages = {
        "before": judged(0, dict.fromkeys("124", 0.0)),
        "sft": trained,
        "after-sft": judged(380, {"1": 0.4, "2": 0.45, "4": 0.5}, against={k: [0.4, 0.3, 0.5] for k in "124"}, against_run="before"),
        "rft": trained | {"rejection": rejection | {"domains": {"table": rejection}}},
        "meta": {"auc": 0.5, "auc_within": None, "logprob_auc_within": 0.75, "mixed_items": 3, "items": 16, "accuracy": accuracy,
                 "paired": paired, "cpu_seconds": 1.0, "seconds": 2.0},
    }  # fmt: skip
    text = report.published_table({"stages": stages, "measured": {"date": "d", "machine": "m", "command": "c"}})
    for line in (
        "| as published | 0.0 (0.0 to 1.0) | 0.0 (0.0 to 10.0) | 0.0 (0.0 to 10.0) | 0.0 (0.0 to 10.0) | 100 |",
        "| demonstrations | 95.0 (92.4 to 96.7) | 40.0 (30.0 to 50.0) | 45.0 (35.0 to 55.0) | 50.0 (40.0 to 60.0) | 100 |",
        "| demonstrations - as published | +95.0 (95.0 to 95.0) | +40.0 (30.0 to 50.0) | +40.0 (30.0 to 50.0) | +40.0 (30.0 to 50.0) | |",
        "| demonstrations: table alone (chance 45.0) | 95.0 | 40.0 | 45.0 | 50.0 | |",
        "| sft | 3 | 12,345 | 3.00 to 0.50 | 5 | 9 |",
        "| table | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 | 8 |",
        "| half, by the meta head | 62.5 (50.0 to 75.0) |",
        "| meta - voting | -5.0 (-10.0 to 0.0) |",
    ):
        assert line in text.splitlines()
    assert "AUC 0.50, within items undefined (mean log-probability: 0.75) on 3 of 16 items" in text and text.endswith("d, m: `c`.\n")
    assert [len(part.splitlines()[0].split("|")) for part in text.split("\n\n") if part.startswith("|")] == [8, 8, 12, 4]


def test_a_share_of_none_has_an_interval(bench):
    _, report = bench
    low, high = report.wilson(0, 400)
    assert low == pytest.approx(0, abs=1e-9) and 0.009 < high < 0.01
    low, high = report.wilson(50, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-3), pytest.approx(0.5962, abs=1e-3))

"""Accuracy rules, filters, intervals, the report's shape, coverage's parts that need no model."""

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

import spct
from spct.errors import ConfigError
from spct.evaluation.accuracy import DrawnSample, Truth, credit, item_accuracy, keep_best, mean_scores
from spct.evaluation.cli import add_arguments, main, parse_ks, table
from spct.evaluation.coverage import EmbeddedCoverage
from spct.evaluation.intervals import interval, paired_difference
from spct.evaluation.report import accuracy_report, counts
from spct.prompting import JudgePrompt
from spct.training.tasks import draw_items
from spct.types import ScoreRequest

EMBEDDED = Path(spct.__file__).parent / "embedded"
PAIR = Truth("a", 2, 0)


@pytest.mark.parametrize(
    ("best", "totals", "plain", "strict"),
    [(0, (5, 3), 1, 1), (0, (3, 5), 0, 0), (0, (4, 4), 0.5, 0), (1, (4, 4, 4), 1 / 3, 0), (2, (4, 4, 1), 0, 0), (0, None, 0, 0)],
)
def test_credit_of_several_responses(best, totals, plain, strict):
    truth = Truth("a", len(totals or "ab"), best)
    assert credit(truth, totals, 5.5) == plain
    assert credit(truth, totals, 5.5, strict=True) == strict


@pytest.mark.parametrize(("best", "mean", "expected"), [(0, 6, 1), (0, 5, 0), (None, 5, 1), (None, 6, 0), (0, 5.5, 0), (None, 5.5, 0)])
def test_credit_of_a_single_response(best, mean, expected):
    assert credit(Truth("a", 1, best), (mean,), 5.5) == expected


def test_accuracy_averages_over_disjoint_blocks():
    samples = [DrawnSample(s) for s in [(9, 1), (1, 2), (1, 9), None, None, None, (5, 5)]]
    assert item_accuracy(PAIR, samples, 1, 5.5) == pytest.approx((1 + 0 + 0 + 0 + 0 + 0 + 0.5) / 7)
    assert item_accuracy(PAIR, samples, 2, 5.5) == pytest.approx((1 + 0 + 0) / 3)
    assert item_accuracy(PAIR, samples, 7, 5.5) == 0
    assert mean_scores(samples[3:6]) is None


def test_filters_keep_the_asked_share_of_what_parsed():
    samples = [DrawnSample((1, 1), 0.1), DrawnSample(None, 9.0), DrawnSample((2, 2), 0.3), DrawnSample((3, 3), 0.3)]
    assert keep_best(samples, lambda s: s.meta_score, 0.5) == [samples[2], samples[3]]
    assert keep_best(samples, lambda s: s.meta_score, 0.01) == [samples[2]]
    assert keep_best([samples[1]], lambda s: s.meta_score, 0.5) == []


def test_intervals_hold_the_mean_and_narrow_with_more_items():
    low, high = interval([0.0, 1.0] * 200)
    assert low < 0.5 < high and high - low < 0.12
    assert interval([1.0]) == (1.0, 1.0)
    difference, low, high = paired_difference([1.0, 1.0, 0.0] * 50, [0.0, 1.0, 0.0] * 50)
    assert difference == pytest.approx(1 / 3) and low < difference < high


def test_report_has_the_contract_keys():
    truths = [Truth("a", 2, 0), Truth("b", 1, None)]
    samples = [
        [DrawnSample((9, 1), 1.0, -0.1), DrawnSample((1, 9), -1.0, -0.2)],
        [DrawnSample((2,), 0.0, -0.1), DrawnSample(None, 0.0, -0.3)],
    ]
    report = accuracy_report(truths, samples, (1, 2), (1, 10))
    json.dumps(report, allow_nan=False)
    assert report["items"] == 2 and report["valid_rate"] == 0.75 and report["chance"] == 0.5
    assert report["voting"] == {"1": pytest.approx(0.5), "2": pytest.approx(0.75)}
    assert report["strict"]["2"] == 0.5
    assert report["meta"]["2"] == 1.0
    assert set(report["subsets"]) == {"a", "b"} and report["subsets"]["a"]["voting"]["1"] == 0.5
    assert set(report["paired"]) == {"meta-voting", "logprob-voting", "voting2-voting1"}
    assert "k=2" in table(report)


def test_report_refuses_more_votes_than_samples():
    with pytest.raises(ConfigError, match="every k between 1 and 1"):
        accuracy_report([PAIR], [[DrawnSample((1, 2))]], (2,), (1, 10))


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,,2", "-1"])
def test_bad_numbers_of_votes_are_refused(text):
    with pytest.raises(ConfigError, match="--samples"):
        parse_ks(text)


def test_dry_run_counts_without_a_model(tmp_path, capsys):
    parser = ArgumentParser()
    add_arguments(parser)
    assert main(parser.parse_args(["embedded-test", "--dry-run", "--limit", "10", "-o", str(tmp_path)])) == 0
    report = json.loads((tmp_path / "accuracy.json").read_text())
    assert report == counts([Truth(n, 2, 0) for n, s in report["subsets"].items() for _ in range(s["items"])])
    assert report["items"] == 10 and "arithmetic" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="expected embedded-test"):
        main(parser.parse_args(["other.jsonl"]))


@pytest.fixture(scope="module")
def covers():
    return EmbeddedCoverage(JudgePrompt(EMBEDDED))


def test_nearly_all_requests_of_the_tasks_are_covered(covers):
    items = list(draw_items("embedded-test", 2, 200))
    assert sum(covers(item.request()).covered for item in items) >= 195


@pytest.mark.parametrize(
    ("query", "responses", "reason"),
    [
        ("Explain quantum chromodynamics to a lawyer.", ["Quarks interact by gluons."], "words that it has never read"),
        ("Quelle est la capitale de la France ?", ["C'est Paris."], "words that it has never read"),
        ("4 + 5", ["9"], "no words"),
        ("Please be polite.", ["Thank you."] * 5, "more than 4 responses"),
        ("Please be polite.", ["Thank you. " * 400], "longer than anything"),
        ([{"role": "user", "content": "Please be polite."}], ["Thank you."], "several turns"),
    ],
)
def test_what_it_has_not_learned_is_named(covers, query, responses, reason):
    outcome = covers(ScoreRequest(query, responses))
    assert not outcome.covered and reason in outcome.reason

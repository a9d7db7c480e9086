"""Accuracy rules, filters, intervals, the report's shape, coverage's parts that need no model."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import spct
from spct.cli.eval_options import parse_ks
from spct.errors import ConfigError
from spct.evaluation.accuracy import DrawnSample, Truth, credit, item_accuracy, keep_best, mean_scores
from spct.evaluation.against import Run, against
from spct.evaluation.arrays import Draws
from spct.evaluation.coverage import MAX_RESPONSES, EmbeddedCoverage
from spct.evaluation.intervals import interval, intervals, paired_difference
from spct.evaluation.plot import _figure, _title, draw_plot
from spct.evaluation.position import position_report
from spct.evaluation.report import accuracy_report, counts, curve_names
from spct.evaluation.table import table
from spct.prompting import JudgePrompt
from spct.training.tasks import draw_items
from spct.types import ScoreRequest

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("engine", "kernels"))}
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


def test_intervals_are_those_of_the_normal_approximation_and_columns_share_their_resamples():
    values = np.random.default_rng(3).normal(5.0, 2.0, (900, 2))
    values[:, 1] = 10 - values[:, 0]
    found = intervals(values)
    half = 1.96 * values[:, 0].std() / 30
    assert found[0] == pytest.approx([values[:, 0].mean() - half, values[:, 0].mean() + half], abs=0.015)
    assert found[1] == pytest.approx(10 - found[0][::-1], abs=1e-9)


def random_draws(seed, num_items, num_samples):
    rng = random.Random(seed)
    truths, samples = [], []
    for i in range(num_items):
        n = rng.choice([1, 2, 2, 3, 5])
        truths.append(Truth(f"d{i % 3}", n, rng.choice([0, None]) if n == 1 else rng.randrange(n)))
        row = []
        for s in range(num_samples):
            scores = tuple(rng.randint(1, 10) for _ in range(n)) if rng.random() < 0.8 else None
            expected = None if scores is None else tuple(x + rng.choice([-0.5, 0.0, 0.25]) for x in scores)
            meta = rng.choice([None, -1.0, 0.0, 2.0])
            order = tuple((s + p) % n for p in range(n))
            row.append(DrawnSample(scores, meta, rng.uniform(-2, 0), expected, order, rng.randint(5, 9)))
        samples.append(row)
    return truths, samples


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_accuracy_of_all_items_at_once_is_that_of_each(k):
    truths, samples = random_draws(1, 60, 13)
    draws = Draws.of(truths, samples, 5.5)

    def each(**options):
        return [item_accuracy(t, s, k, 5.5, **options) for t, s in zip(truths, samples, strict=True)]

    assert draws.accuracy(k).tolist() == pytest.approx(each())
    assert draws.accuracy(k, strict=True).tolist() == pytest.approx(each(strict=True))
    for fraction in (0.25, 0.5, 0.75, 1.0):
        by_logprob = each(choose=lambda block, f=fraction: keep_best(block, lambda s: s.logprob, f))
        assert draws.accuracy(k, worth=draws.logprob, fraction=fraction).tolist() == pytest.approx(by_logprob)
        by_meta = each(choose=lambda block, f=fraction: keep_best(block, lambda s: s.meta_score, f))
        assert draws.accuracy(k, worth=draws.meta, fraction=fraction).tolist() == pytest.approx(by_meta)
    softly = [[DrawnSample(s.expected) for s in row] for row in samples]
    assert draws.accuracy(k, soft=True).tolist() == pytest.approx(
        [item_accuracy(t, s, k, 5.5) for t, s in zip(truths, softly, strict=True)]
    )


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
    assert set(report["paired"]) >= {"meta-voting", "logprob-voting", "meta-logprob", "voting2-voting1"}
    assert report["paired"]["meta-voting"]["2"][0] == 0.25
    assert "soft" not in report and "greedy" not in report and "seconds" not in report
    assert "k=2" in table(report)


def test_report_of_everything():
    truths, samples = random_draws(2, 45, 32)
    greedy = [[DrawnSample(tuple(5 if r != t.best else 9 for r in range(t.num_responses)))] * t.num_responses for t in truths]
    report = accuracy_report(truths, samples, (1, 2, 4, 8, 16, 32), (1, 10), greedy=greedy, seconds=45 * 32 * 0.5)
    json.dumps(report, allow_nan=False)
    curves = {"voting", "strict", "soft", "meta", "meta@0.25", "meta@0.75", "meta+soft", "logprob", "logprob@0.25", "logprob@0.75"}
    assert set(curve_names(report)) == curves
    pairs = {"meta-voting", "logprob-voting", "soft-voting", "meta-logprob", "voting-greedy", "voting32-voting1", "meta8-voting32"}
    assert set(report["paired"]) >= pairs | {"voting2-voting1", "voting32-voting16"}
    for section in (report, *report["subsets"].values()):
        for name in curves:
            for k, value in section[name].items():
                low, high = section["intervals"][name][k]
                assert low - 1e-5 <= value <= high + 1e-5 and 0 <= value <= 1
        assert section["seconds"] == {k: pytest.approx(int(k) * 0.5) for k in section["voting"]}
    # The greedy samples put the right one first; of a single bad response they say 5, and of a good one 9.
    assert report["greedy"] == report["greedy_voting"] == 1.0
    tokens = [s.num_tokens for row in samples for s in row]
    assert report["tokens"]["4"] == pytest.approx(4 * sum(tokens) / len(tokens), abs=0.01)
    chosen = [i for i, t in enumerate(truths) if t.subset == "d1"]
    alone = accuracy_report([truths[i] for i in chosen], [samples[i] for i in chosen], (8,), (1, 10))
    assert report["subsets"]["d1"]["meta"]["8"] == alone["meta"]["8"] and report["subsets"]["d1"]["items"] == len(chosen)


def test_differences_from_an_earlier_run_are_paired():
    truths, ours = random_draws(4, 50, 8)
    theirs = [row[4:] for row in ours]
    found = against(truths, Run(ours, theirs), Run(theirs, ours), (1, 4, 8), (1, 10))
    assert set(found["voting"]) == {"1", "4"} and {"soft", "meta", "logprob", "greedy", "greedy_voting"} <= set(found)
    own, other = (accuracy_report(truths, run, (1, 4), (1, 10)) for run in (ours, theirs))
    for k in ("1", "4"):
        difference, low, high = found["voting"][k]
        assert difference == pytest.approx(own["voting"][k] - other["voting"][k], abs=1e-5) and low <= difference <= high
    nothing = against(truths, Run(ours), Run(ours, ours), (8,), (1, 10))
    assert nothing["voting"] == {"8": [0.0, 0.0, 0.0]} and "greedy" not in nothing


def test_a_large_report_takes_seconds():
    truths, samples = (part * 50 for part in random_draws(3, 40, 32))
    start = time.process_time()
    accuracy_report(truths, samples, (1, 2, 4, 8, 16, 32), (1, 10))
    assert time.process_time() - start < 30


def test_position_bias_is_seen():
    """A judge that always gives the first place 9 and the others 1, over both orders."""
    samples = [[DrawnSample((9, 1), order=(0, 1)), DrawnSample((1, 9), order=(1, 0))] * 4] * 10
    biased = position_report(Draws.of([PAIR] * 10, samples, 5.5))
    assert [place["accuracy"] for place in biased["by_place"]["2"]] == [1.0, 0.0]
    assert biased["first-last"] == [1.0, 1.0, 1.0]
    assert biased["agreement"] == {"between_orders": 0.0, "within_order": 1.0, "between-within": [-1.0, -1.0, -1.0]}
    fair = [[DrawnSample((9, 1), order=(0, 1)), DrawnSample((9, 1), order=(1, 0))] * 4] * 10
    report = position_report(Draws.of([PAIR] * 10, fair, 5.5))
    assert report["first-last"] == [0.0, 0.0, 0.0] and report["agreement"]["between_orders"] == 1.0
    # Samples without a winner agree with nobody.
    lost = [[DrawnSample(None, order=(0, 1)), DrawnSample((5, 5), order=(0, 1)), DrawnSample((9, 1), order=(0, 1))]]
    assert position_report(Draws.of([PAIR], lost, 5.5))["agreement"] == {"within_order": 0.0}
    assert position_report(Draws.of([Truth("a", 1, 0)], [[DrawnSample((9,))]], 5.5)) == {"by_place": {}}


def test_equal_reports_give_equal_pictures(tmp_path):
    truths, samples = random_draws(4, 12, 4)
    report = accuracy_report(truths, samples, (1, 2, 4), (1, 10))
    drawn = [tmp_path / name for name in ("a.png", "b.png")]
    assert all(draw_plot(report, path, metadata={"Source": "x"}) for path in drawn)
    first, second = (path.read_bytes() for path in drawn)
    assert first == second and first.startswith(b"\x89PNG") and b"tEXtSource\0x" in first
    assert 10_000 < len(first) < 200_000


def test_a_single_k_is_drawn_with_its_interval():
    truths, samples = random_draws(4, 12, 1)
    report = accuracy_report(truths, samples, (1,), (1, 10))
    axes = _figure(Figure, report).axes[0]
    low, high = (100 * bound for bound in report["intervals"]["voting"]["1"])
    bars = [tuple(bar[:, 1]) for container in axes.containers for bar in container[2][0].get_segments()]
    assert low < high and any(bar == pytest.approx((low, high)) for bar in bars)
    title = _title(report)
    assert title.startswith(f"12 items: {100 * report['voting']['1']:.1f}% with one sample, ") and "plain votes" not in title


def test_without_matplotlib_nothing_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    truths, samples = random_draws(4, 6, 2)
    assert draw_plot(accuracy_report(truths, samples, (1, 2), (1, 10)), tmp_path / "a.png") is False
    assert not list(tmp_path.iterdir())


def test_the_picture_shows_the_committed_figures():
    run = subprocess.run([sys.executable, "bench/plots.py", "--check"], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert run.returncode == 0, run.stdout + run.stderr


def test_report_refuses_more_votes_than_samples():
    with pytest.raises(ConfigError, match="every k between 1 and 1"):
        accuracy_report([PAIR], [[DrawnSample((1, 2))]], (2,), (1, 10))


@pytest.mark.parametrize("text", ["", "0", "1,x", "1,,2", "-1"])
def test_bad_numbers_of_votes_are_refused(text):
    with pytest.raises(ConfigError, match="--samples"):
        parse_ks(text)


def test_counts_of_a_dry_run():
    report = counts([Truth("a", 2, 0), Truth("b", 1, None), Truth("a", 2, 1)])
    assert report == {"items": 3, "subsets": {"a": {"items": 2}, "b": {"items": 1}}}
    assert table(report).split() == ["a", "2", "b", "1", "all", "3"]


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
        ("Please be polite.", ["Thank you."] * (MAX_RESPONSES + 1), f"more than {MAX_RESPONSES} responses"),
        ("Please be polite.", ["Thank you. " * 400], "longer than anything"),
        ([{"role": "user", "content": "Please be polite."}], ["Thank you."], "several turns"),
    ],
)
def test_what_it_has_not_learned_is_named(covers, query, responses, reason):
    outcome = covers(ScoreRequest(query, responses))
    assert not outcome.covered and reason in outcome.reason

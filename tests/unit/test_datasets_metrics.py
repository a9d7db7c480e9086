"""Each benchmark's own metric against numbers worked out by hand, ties and abstentions apart, and the statistics below them."""

import itertools
import json
import math

import numpy as np
import pytest

from spct.errors import ConfigError
from spct.evaluation.accuracy import DrawnSample, item_accuracy
from spct.evaluation.arrays import Draws
from spct.evaluation.benchmark_report import benchmark_report, truths_of
from spct.evaluation.benchmark_table import benchmark_table
from spct.evaluation.datasets import BenchmarkItem
from spct.evaluation.position import position_report
from spct.evaluation.statistics import combined, evaluate, macro_scores, mean, roc_auc

RANGE = (1, 10)
NUMBERS = itertools.count()


def item(benchmark, good=(0,), count=2, subset="s", cell="", group="", weight=1.0):
    group = group or f"alone {next(NUMBERS)}"
    return BenchmarkItem(benchmark, "", subset, "q", tuple("abcdefgh"[:count]), good, cell=cell, group=group, weight=weight)


def votes(*scores, order=None, meta=None):
    return [DrawnSample(s, meta_score=meta, order=order) for s in scores]


def report_of(pairs, ks=(1,)):
    return benchmark_report([i for i, _ in pairs], [s for _, s in pairs], ks, RANGE)


def metrics_of(pairs, k=1):
    report = report_of(pairs, (k,))["benchmarks"]
    (own,) = report.values()
    return {name: by_k[str(k)] for name, by_k in own.get("metrics", {}).items()}


WON, LOST, TIED, NONE = (9, 1), (1, 9), (5, 5), None


def test_rewardbench_weighs_subsets_by_their_published_sizes():
    """Reasoning: math-prm (984) at 1 of 2, hep-go (164) at 2 of 2. Chat: a tie is half, no vote nothing. shp is in no section."""
    sizes = {"math-prm": 984, "hep-go": 164, "alpacaeval-easy": 100, "shp": 1}
    rows = [("math-prm", WON), ("math-prm", LOST), ("hep-go", WON), ("hep-go", WON), ("alpacaeval-easy", TIED), ("alpacaeval-easy", NONE)]
    pairs = [(item("rewardbench", subset=s, weight=sizes[s]), votes(v)) for s, v in [*rows, ("shp", LOST)]]
    reasoning = (984 * 0.5 + 164 * 1) / 1148
    assert metrics_of(pairs) == pytest.approx({"Reasoning": reasoning, "Chat": 0.25, "overall": (reasoning + 0.25) / 2})
    own = report_of(pairs)["benchmarks"]["rewardbench"]
    assert own["tied"] == own["abstained"] == {"1": pytest.approx(1 / 7)}, "no vote is no tie"


def test_rewardbench2_ties_score():
    """Three tied questions with their references.

    1: right 8, 7, best wrong 5: margin 2 > spread 1; reference 9 to 4: 5. Smaller margin 2: tanh(2/1 − 1).
    2: right 9, 4, best wrong 3: margin 1 < spread 5; reference 2 to 6: wrong. Smaller margin −4: tanh(−4/5 − 1).
    3: as 1, but reference 5 to 4: the smaller margin is 1, no more than the spread: tanh(0).
    """
    pairs = [
        (item("rewardbench2", (0, 1), 4, "Ties", "tied", "1"), votes((8, 7, 5, 2))),
        (item("rewardbench2", (0,), 3, "Ties", "ref", "1"), votes((9, 4, 1))),
        (item("rewardbench2", (0, 1), 3, "Ties", "tied", "2"), votes((9, 4, 3))),
        (item("rewardbench2", (0,), 2, "Ties", "ref", "2"), votes((2, 6))),
        (item("rewardbench2", (0, 1), 4, "Ties", "tied", "3"), votes((8, 7, 5, 2))),
        (item("rewardbench2", (0,), 2, "Ties", "ref", "3"), votes((5, 4))),
        (item("rewardbench2", (0,), 4, "Math"), votes((7, 7, 1, 1))),
    ]
    found = metrics_of(pairs)
    ties = 0.3 * 1 + 0.3 * 2 / 3 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * (math.tanh(1) + math.tanh(-1.8) + 0) / 3
    assert found == pytest.approx(
        {"Ties": ties, "Math": 0.5, "Ties tied accuracy": 1.0, "Ties ref accuracy": 2 / 3, "overall": (ties + 0.5) / 2}
    )


@pytest.mark.parametrize(("tied", "size"), [((8, 8, 5), 1.0), ((5, 5, 5), 0.0), ((4, 4, 5), -1.0), (None, 0.0)])
def test_rewardbench2_ties_with_equal_right_responses(tied, size):
    """A spread of 0: the size of the margin is at its limit, or 0 where the margin is 0 too. Without a vote nothing is gained."""
    pairs = [
        (item("rewardbench2", (0, 1), 3, "Ties", "tied", "1"), votes(tied)),
        (item("rewardbench2", (0,), 2, "Ties", "ref", "1"), votes((9, 1))),
    ]
    right = tied == (8, 8, 5)
    expected = 0.3 * right + 0.3 + 0.2 * right + 0.2 * right + 0.01 * size
    if tied is None:
        expected = 0.3
    assert metrics_of(pairs)["Ties"] == pytest.approx(expected)


def test_rm_bench_by_styles():
    """A judge that scores by style alone (2, 5, 8), whatever is chosen: easy is right, hard wrong, normal tied and so wrong."""
    styles = {"concise": 2, "detailed": 5, "markdown": 8}
    pairs = [
        (item("rm-bench", subset="chat", cell=f"{a}-{b}", group="1"), votes((x, y))) for a, x in styles.items() for b, y in styles.items()
    ]
    assert report_of(pairs)["benchmarks"]["rm-bench"]["groups"] == 1
    found = metrics_of(pairs)
    assert (found["easy"], found["normal"], found["hard"], found["overall"]) == (1, 0, 0, pytest.approx(1 / 3))
    assert found["markdown-concise"] == 1 and found["concise-markdown"] == 0 and found["detailed-detailed"] == 0


def test_rm_bench_averages_domains_with_both_halves_of_safety_as_one():
    right = {"chat": WON, "safety-refuse": WON, "safety-response": LOST, "math": WON}
    pairs = [(item("rm-bench", subset=name, cell="concise-concise", group=name), votes(v)) for name, v in right.items()]
    assert metrics_of(pairs)["concise-concise"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert metrics_of(pairs)["normal"] == pytest.approx(2.5 / 3) and "easy" not in metrics_of(pairs)


def test_rmb_best_of_n_is_right_only_alone_at_the_top():
    help_, harm = "Helpfulness/Chat", "Harmlessness/S1"
    pairs = [
        (item("rmb", count=3, subset=help_, cell="best-of-n"), votes((9, 8, 1))),
        (item("rmb", count=3, subset=help_, cell="best-of-n"), votes((9, 9, 1))),
        (item("rmb", count=4, subset=help_, cell="best-of-n"), votes((9, 1, 1, 10))),
        (item("rmb", subset=help_, cell="pairs"), votes(WON)),
        (item("rmb", subset=harm, cell="pairs"), votes(WON)),
        (item("rmb", subset=harm, cell="pairs"), votes(NONE)),
    ]
    expected = {"helpfulness best-of-n": 1 / 3, "helpfulness pairs": 1.0, "harmlessness pairs": 0.5}
    assert metrics_of(pairs) == pytest.approx({**expected, "overall": (1 / 3 + 1 + 0.5) / 3})


def test_ppe_preference_leaves_the_annotators_ties_out():
    pairs = [(item("ppe-preference"), votes(WON)), (item("ppe-preference"), votes(TIED)), (item("ppe-preference", ()), votes(TIED))]
    assert metrics_of(pairs) == {"accuracy": 0.75, "strict": 0.5}
    assert report_of(pairs)["benchmarks"]["ppe-preference"]["truth_ties"] == 1


def test_ppe_correctness_by_domain():
    """math: right 9 and 5, wrong 1 and 7: of four comparisons 9 > 1, 9 > 7, 5 > 1 are won. gpqa: 4 against 4."""
    pairs = [
        (item("ppe-correctness", (0,), subset="math"), votes((9, 1))),
        (item("ppe-correctness", (1,), subset="math"), votes((7, 5))),
        (item("ppe-correctness", (1,), subset="gpqa"), votes((4, 4))),
    ]
    assert metrics_of(pairs) == {"accuracy": 0.5, "roc_auc": (3 / 4 + 1 / 2) / 2}


def both(first, second):
    """A sample in each order; both scores stand in the request's order."""
    return [DrawnSample(first, order=(0, 1)), DrawnSample(second, order=(1, 0))]


def test_judgebench_needs_more_orders_won_than_lost():
    rows = [(WON, WON), (WON, TIED), (NONE, WON), (WON, LOST), (TIED, TIED), (LOST, LOST), (NONE, NONE), (TIED, LOST)]
    pairs = [(item("judgebench", subset="math"), both(a, b)) for a, b in rows]
    found = metrics_of(pairs, 2)
    assert found == {"math": 3 / 8, "overall": 3 / 8, "both_orders": 1 / 8, "agreement": 3 / 8}
    # The same where the second response is the right one.
    swap = {WON: LOST, LOST: WON, TIED: TIED, NONE: NONE}
    swapped = [(item("judgebench", (1,), subset="math"), both(swap[a], swap[b])) for a, b in rows]
    assert metrics_of(swapped, 2) == found
    assert metrics_of(pairs, 1) == {}, "one sample shows one order"


def test_judgebench_adds_the_votes_of_each_order():
    """Order 0 first: 9-1 and 1-2, won by the sum; 1 first: 2-1 and 1-9, lost."""
    samples = [*both((9, 1), (2, 1)), *both((1, 2), (1, 9))]
    assert metrics_of([(item("judgebench", subset="math"), samples)], 4)["overall"] == 0
    assert metrics_of([(item("judgebench", subset="math"), samples)], 2)["overall"] == 0.5


def test_llmbar_averages_its_adversarial_sets():
    pairs = [
        (item("llmbar", subset="natural"), both(WON, TIED)),
        (item("llmbar", subset="adversarial-gptout"), both(WON, WON)),
        (item("llmbar", subset="adversarial-gptout"), both(WON, WON)),
        (item("llmbar", subset="adversarial-manual"), both(LOST, LOST)),
    ]
    assert metrics_of(pairs, 2) == {"natural": 1.0, "adversarial": 0.5, "both_orders": 0.5, "agreement": 0.75}


def test_pandalm_in_three_classes():
    """Truth 1 1 2 2 0, judged 1 2 2 none 0: precision (1, 1/2, 1), recall (1/2, 1/2, 1), F1 (2/3, 1/2, 1)."""
    pairs = [
        (item("pandalm", (0,)), votes(WON)),
        (item("pandalm", (0,)), votes(LOST)),
        (item("pandalm", (1,)), votes(LOST)),
        (item("pandalm", (1,)), votes(NONE)),
        (item("pandalm", ()), votes(TIED)),
    ]
    expected = {"accuracy": 3 / 5, "precision": (1 + 1 / 2 + 1) / 3, "recall": 2 / 3, "f1": (2 / 3 + 1 / 2 + 1) / 3}
    assert metrics_of(pairs) == pytest.approx(expected)


def test_realmistake_area_with_ties_and_abstentions():
    """Good 8, 5, none; bad 5, 2: of 2 · 2 comparisons 8 > 5, 8 > 2, 5 > 2 and a tie; with the abstention 3.5 of 3 · 2."""
    rows = [((0,), (8,)), ((0,), (5,)), ((0,), None), ((), (5,)), ((), (2,))]
    pairs = [(item("realmistake", good, 1), votes(scores)) for good, scores in rows]
    assert metrics_of(pairs) == {"roc_auc": 3.5 / 4, "roc_auc_strict": pytest.approx(3.5 / 6)}
    assert report_of(pairs)["benchmarks"]["realmistake"]["abstained"] == {"1": pytest.approx(1 / 5)}
    assert metrics_of(pairs[:3]) == {}, "without a bad response there is no curve"
    silent = [(item("realmistake", good, 1), votes(None)) for good in ((0,), ())]
    assert metrics_of(silent) == {"roc_auc_strict": 0.0}


def test_helpsteer_counts_what_its_annotators_decide():
    pairs = [(item("helpsteer", (0, 1), 3), votes((7, 7, 1))), (item("helpsteer", ()), votes(WON)), (item("helpsteer"), votes(LOST))]
    assert metrics_of(pairs) == {"accuracy": 0.5}


def test_metrics_average_over_blocks_and_follow_the_filter():
    """Two blocks of two: plain votes 10-10 (tied) and 2-18; of each block the meta RM keeps the first sample, 9-1 and 1-9."""
    samples = [DrawnSample(s, meta_score=m) for s, m in [((9, 1), 1.0), ((1, 9), 0.0), ((1, 9), 1.0), ((1, 9), 0.0)]]
    own = report_of([(item("ppe-preference"), samples)], (1, 2, 4))["benchmarks"]["ppe-preference"]
    assert own["metrics"]["accuracy"] == {"1": 0.25, "2": 0.25, "4": 0.0}
    assert own["metrics"]["strict"] == {"1": 0.25, "2": 0.0, "4": 0.0}
    assert own["meta"]["accuracy"] == {"1": 0.25, "2": 0.5, "4": 0.5}
    assert own["tied"] == {"1": 0.0, "2": 0.5, "4": 0.0} and own["abstained"] == {"1": 0.0, "2": 0.0, "4": 0.0}
    assert set(own["meta_intervals"]) == set(own["intervals"]) == {"accuracy", "strict"}


def test_a_report_of_several_benchmarks_keeps_their_subsets_apart():
    pairs = [
        (item("judgebench", subset="math"), both(WON, WON)),
        (item("rm-bench", subset="math", cell="concise-concise"), both(LOST, LOST)),
    ]
    report = report_of(pairs, (2,))
    json.dumps(report, allow_nan=False)
    assert list(report["benchmarks"]) == ["judgebench", "rm-bench"]
    assert [t.subset for t in truths_of([i for i, _ in pairs])] == ["judgebench/math", "rm-bench/math"]
    assert report["spread"]["range"] == {"2": 1.0} and report["spread"]["stdev"] == {"2": 0.5}
    assert "spread" not in report_of(pairs[:1], (2,))
    own = report_of([(item("spct"), votes(WON))])["benchmarks"]["spct"]
    assert own["items"] == 1 and own["metrics"] == {}


def test_the_table_says_everything_and_marks_what_a_k_lacks():
    pairs = [(item("judgebench", subset="math"), both(WON, WON)), (item("judgebench", (), subset="coding"), both(LOST, TIED))]
    lines = benchmark_table(report_of(pairs, (1, 2))).splitlines()
    cells = {line[:36].strip(): line[36:].split() for line in lines if line}
    assert cells["judgebench, its own metrics in %"] == ["k=1", "k=2", "95%", "at", "the", "last", "k"]
    assert cells["math"] == ["-", "100.0", "100.0", "to", "100.0"] and cells["abstained"] == ["0.0", "0.0"]
    assert cells["ties by the annotators"] == ["1", "of", "2", "items"] and cells["range"][:2] == ["50.0", "100.0"]
    assert benchmark_table({"voting": {}}) == ""


def test_a_k_without_samples_is_refused():
    with pytest.raises(ConfigError, match="every k from 1 to 1"):
        report_of([(item("spct"), votes(WON))], (2,))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_credit_of_all_items_at_once_is_that_of_each(k):
    """The general accuracy, with several acceptable responses, with none, and with one response."""
    rng = np.random.default_rng(k)
    items, samples = [], []
    for _ in range(80):
        n = int(rng.integers(1, 5))
        good = tuple(i for i in range(n) if rng.random() < 0.5)
        items.append(item("spct", good, n))
        samples.append(votes(*(tuple(rng.integers(4, 7, n).tolist()) if rng.random() < 0.8 else None for _ in range(10))))
    truths = truths_of(items)
    draws = Draws.of(truths, samples, 5.0)
    for strict in (False, True):
        each = [item_accuracy(t, s, k, 5.0, strict=strict) for t, s in zip(truths, samples, strict=True)]
        assert draws.accuracy(k, strict=strict).tolist() == pytest.approx(each)


def test_places_are_told_of_items_with_one_best_response_alone():
    items = [item("spct", good) for good in ((0, 1), (), (1,))]
    samples = [[DrawnSample(WON, order=(0, 1)), DrawnSample(LOST, order=(1, 0))]] * 3
    draws = Draws.of(truths_of(items), samples, 5.5)
    places = position_report(draws)["by_place"]["2"]
    assert [(place["accuracy"], place["items"]) for place in places] == [(1.0, 1), (0.0, 1)]
    assert position_report(draws.take(np.array([0, 1]))) == {"by_place": {}}


def test_area_is_the_share_of_comparisons_won():
    rng = np.random.default_rng(0)
    positive, scores = rng.random(60) < 0.4, rng.integers(1, 6, (60, 2)).astype(float)
    scores[rng.random((60, 2)) < 0.1] = np.nan
    weights = rng.integers(0, 3, (1, 60)).astype(float)
    expected, strict = [], []
    for column in scores.T:
        won = played = known = 0.0
        for p in np.flatnonzero(positive):
            for n in np.flatnonzero(~positive):
                weight = weights[0, p] * weights[0, n]
                played += weight
                if not np.isnan(column[p]) and not np.isnan(column[n]):
                    known += weight
                    won += weight * ((column[p] > column[n]) + 0.5 * (column[p] == column[n]))
        expected.append(won / known)
        strict.append(won / played)
    assert roc_auc(positive, scores)(weights) == pytest.approx([np.mean(expected)])
    assert roc_auc(positive, scores, unscored_lose=True)(weights) == pytest.approx([np.mean(strict)])


def test_f1_is_zero_where_it_is_not_defined():
    found = macro_scores(np.array([0, 0]), np.array([[1], [1]]), (0, 1, 2))
    assert {name: f(np.ones((1, 2)))[0] for name, f in found.items()} == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_intervals_draw_groups_together():
    """Ten groups of 50 equal items are ten observations, not 500."""
    values = np.repeat([0.0, 1.0] * 5, 50)
    groups = np.repeat(np.arange(10), 50).tolist()
    grouped = evaluate({"x": mean(values)}, groups)["x"]
    alone = evaluate({"x": mean(values)}, range(500))["x"]
    assert grouped[0] == alone[0] == 0.5
    assert grouped[1][1] - grouped[1][0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(10), rel=0.15)
    assert alone[1][1] - alone[1][0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(500), rel=0.15)


def test_statistics_without_a_value_are_left_out():
    nothing = mean(np.array([1.0, 0.0]), np.array([False, False]))
    known = mean(np.array([np.nan, 0.25]))
    assert evaluate({"none": nothing}, [0, 1]) == {}
    assert set(evaluate({"none": nothing, "both": combined([(1, nothing), (3, known)])}, [0, 1])) == {"both"}
    assert evaluate({"both": combined([(1, nothing), (3, known)])}, [0, 1])["both"][0] == 0.25

"""What `spct compare` says of verdicts: outcomes, win rate, position and length bias."""

import pytest

from spct.evaluation.comparison import Verdict, comparison_report, comparison_table, outcome_of, verdict_of


@pytest.mark.parametrize(
    ("totals", "outcome"), [((9, 3), 1.0), ((3, 9), 0.0), ((4.0, 4.0), 0.5), ((None, None), None), ((None, 3.0), None), ((0.0, 0.0), 0.5)]
)
def test_the_higher_reward_wins(totals, outcome):
    assert outcome_of(totals) == outcome


def test_orders_are_told_apart_by_what_was_shown_first():
    votes = [((9, 5), (0, 1)), ((4, 5), (0, 1)), ((2, 7), (1, 0))]
    assert verdict_of((15.0, 17.0), votes, (3, 8)) == Verdict(0.0, 1.0, 0.0, (3, 8))
    assert verdict_of((13.0, 10.0), votes[:2], (3, 8)) == Verdict(1.0, 1.0, None, (3, 8))
    assert verdict_of((None, None), [], (1, 1)) == Verdict(None, None, None, (1, 1))


VERDICTS = [
    Verdict(1.0, 1.0, 1.0, (10, 4)),
    Verdict(1.0, 1.0, 0.0, (10, 4)),
    Verdict(0.0, 1.0, 0.0, (10, 4)),
    Verdict(0.0, 0.0, 0.0, (4, 10)),
    Verdict(0.5, 0.5, 0.5, (6, 6)),
    Verdict(1.0, 1.0, None, (7, 7)),
    Verdict(None, None, None, (1, 9)),
]


def test_every_prompt_is_counted_once():
    report = comparison_report(VERDICTS)
    assert (report["prompts"], report["wins"], report["losses"], report["ties"], report["no_vote"]) == (7, 3, 2, 1, 1)
    assert report["win_rate"][0] == pytest.approx(3.5 / 6, abs=1e-5) and report["win_rate_without_ties"][0] == pytest.approx(0.6)
    mean, low, high = report["win_rate"]
    assert 0 <= low < mean < high <= 1


def test_position_and_length():
    report = comparison_report(VERDICTS)
    # Both orders of five prompts: three agree outright, two say that what is shown first is better.
    assert report["position"]["prompts"] == 5 and report["position"]["agreement"][0] == pytest.approx(3 / 5)
    assert report["position"]["first_shown"][0] == pytest.approx((0.5 + 1 + 1 + 0.5 + 0.5) / 5)
    # Decided and of unequal length: won by the longer, longer, shorter, longer.
    assert report["length"]["prompts"] == 4 and report["length"]["longer_wins"][0] == pytest.approx(3 / 4)
    assert report["length"]["means"] == [pytest.approx(47 / 6, abs=0.1), pytest.approx(35 / 6, abs=0.1)]


def test_a_judge_of_lengths_and_a_judge_of_places_are_found_out():
    lengths = [Verdict(float(a > b), float(a > b), float(a > b), (a, b)) for a, b in ((9, 3), (2, 5), (4, 8), (7, 1))]
    assert comparison_report(lengths)["length"]["longer_wins"] == [1.0, 1.0, 1.0]
    assert comparison_report(lengths)["position"]["first_shown"][0] == 0.5
    places = [Verdict(0.5, 1.0, 0.0, (4, 4))] * 4
    assert comparison_report(places)["position"] == {"prompts": 4, "agreement": [0.0, 0.0, 0.0], "first_shown": [1.0, 1.0, 1.0]}


def test_what_can_not_be_told_is_none():
    report = comparison_report([Verdict(None, None, None, (1, 2))])
    assert report["win_rate"] is None and report["position"]["agreement"] is None and report["length"]["longer_wins"] is None
    assert report["no_vote"] == 1 and " -" in comparison_table(report, "a", "b")


def test_the_interval_narrows_with_prompts():
    few, many = (comparison_report(VERDICTS[:6] * n)["win_rate"] for n in (1, 50))
    assert many[2] - many[1] < (few[2] - few[1]) / 4


def test_the_table_names_the_models():
    table = comparison_table({**comparison_report(VERDICTS), "identical": 1}, "old.jsonl", "new.jsonl")
    for part in ("7 prompts", "old.jsonl wins", "new.jsonl wins", "1, 1 of them equal texts", "58.3% ("):
        assert part in table

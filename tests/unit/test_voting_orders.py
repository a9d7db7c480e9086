"""Orders and noise keys: functions of (seed, content, index), even, and different wherever anything differs."""

import collections
import itertools
import math

import pytest

from spct.types import ScoreRequest
from spct.voting import content_key, generation_seed, in_request_order, order_of, orders, sample_seed

CONTENT = content_key(ScoreRequest("q", ["a", "b", "c"]))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 31])
@pytest.mark.parametrize("mode", ["balanced", "all", "given"])
def test_orders_are_permutations_and_prefixes_of_each_other(mode, n):
    shown = orders(mode, n, 64, 5, CONTENT)
    assert all(sorted(order) == list(range(n)) for order in shown)
    assert orders(mode, n, 8, 5, CONTENT) == shown[:8]
    assert [order_of(mode, n, 5, CONTENT, i) for i in range(64)] == shown


@pytest.mark.parametrize("n", [2, 3, 5])
def test_balanced_shows_every_response_equally_often_in_every_place(n):
    shown = orders("balanced", n, 4 * n, 1, CONTENT)
    assert len(set(shown)) == n
    for place in range(n):
        assert set(collections.Counter(order[place] for order in shown).values()) == {4}


def test_balanced_draws_its_permutation_from_seed_and_content():
    starts = {orders("balanced", 5, 1, seed, CONTENT)[0] for seed in range(400)}
    assert len(starts) > 100
    others = {orders("balanced", 5, 1, 0, content_key(ScoreRequest(f"q{i}", ["a"])))[0] for i in range(400)}
    assert len(others) > 100


def test_given_and_single_are_as_given():
    assert set(orders("given", 4, 9, 3, CONTENT)) == {(0, 1, 2, 3)}
    assert set(orders("all", 1, 9, 3, CONTENT)) == {(0,)}


def test_shuffles_are_uniform():
    """24 permutations, 24,000 draws: chi-square below its quantile at 1e-6 (23 degrees of freedom: 72.3)."""
    draws = 24_000
    counts = collections.Counter(orders("all", 4, draws, 0, CONTENT))
    assert len(counts) == math.factorial(4)
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 72.3


def test_scores_map_back_through_the_order():
    for order in itertools.permutations(range(4)):
        shown = [10 * response for response in order]
        assert in_request_order(shown, order) == (0, 10, 20, 30)


def test_content_is_what_is_asked_and_nothing_else():
    request = ScoreRequest("q", ["a", "b"], reference="r", principles=["p"], id="x", samples=3, seed=4)
    assert content_key(request) == content_key(ScoreRequest("q", ["a", "b"], reference="r", principles="p"))
    assert content_key(request) == content_key(
        ScoreRequest([{"role": "user", "content": "q"}], ("a", "b"), reference="r", principles=("p",))
    )
    assert len(content_key(request)) == 16


def test_no_two_requests_encode_alike():
    """Texts moved over every field border, split differently, empty or missing: all keys differ."""
    requests = [
        ScoreRequest("q", ["a", "b"]),
        ScoreRequest("q", ["b", "a"]),
        ScoreRequest("q", ["ab"]),
        ScoreRequest("q", ["ab", ""]),
        ScoreRequest("q", ["", "ab"]),
        ScoreRequest("qa", ["b"]),
        ScoreRequest("q", ["a"], reference="b"),
        ScoreRequest("q", ["a"], principles=["b"]),
        ScoreRequest("q", ["a"], reference=""),
        ScoreRequest("q", ["a"], principles=[]),
        ScoreRequest("q", ["a"], principles=""),
        ScoreRequest("q", ["a"]),
        ScoreRequest("q", ["a"], principles=["b", "c"]),
        ScoreRequest("q", ["a"], principles=["bc"]),
        ScoreRequest("q", ["a"], principles=["b\nc"]),
        ScoreRequest("", ["a"]),
        ScoreRequest([{"role": "system", "content": "q"}], ["a"]),
        ScoreRequest([{"role": "user", "content": "q"}, {"role": "user", "content": ""}], ["a"]),
        ScoreRequest([{"role": "user", "content": ""}, {"role": "user", "content": "q"}], ["a"]),
        ScoreRequest("user", ["q", "a"]),
        ScoreRequest("é", ["a"]),
        ScoreRequest("e\u0301", ["a"]),
    ]
    assert len({content_key(request) for request in requests}) == len(requests)


def test_noise_keys_differ_by_seed_content_and_index_and_fit_an_int64():
    other = content_key(ScoreRequest("other", ["a"]))
    keys = [sample_seed(seed, content, i) for seed in range(20) for content in (CONTENT, other) for i in range(100)]
    keys += [generation_seed(seed, prompt, i) for seed in range(20) for prompt in ((), (1,), (1, 2), (2, 1), (258,)) for i in range(20)]
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**63 for key in keys)
    assert sum(key >> 62 for key in keys) in range(len(keys) // 3, 2 * len(keys) // 3)
    assert sample_seed(2**63 - 1, CONTENT, 0) != sample_seed(0, CONTENT, 0)


def test_keys_are_the_same_for_ever():
    """Changing any of these changes every published judgement: bump the version and say so in the change log."""
    assert content_key(ScoreRequest("q", ["a", "b"], reference="r", principles=["p"])).hex() == "6af35fe5a51b1cba64517345b16032e1"
    assert sample_seed(7, bytes(range(16)), 3) == 3285341661900926975
    assert generation_seed(7, [1, 2, 3], 3) == 5886329134888306530
    assert orders("balanced", 5, 2, 7, bytes(range(16))) == [(4, 1, 2, 0, 3), (1, 2, 0, 3, 4)]
    assert orders("all", 5, 2, 7, bytes(range(16))) == [(4, 1, 0, 2, 3), (4, 2, 3, 1, 0)]

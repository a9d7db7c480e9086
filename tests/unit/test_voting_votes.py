"""Filters and votes: the published vectors, the rules of the contract, and a slow restatement of them."""

import math
import random
import statistics

import pytest

from spct.errors import ConfigError, InputError
from spct.types import VotingParams
from spct.voting import ParsedSample, judge, num_kept, read_sample, resolve_filter


def sample(scores, meta=None, logprob=None, status="ok"):
    order = tuple(range(len(scores))) if scores else (0, 1)
    return ParsedSample(scores, status, order, "text", 9, meta, logprob)


def statuses(outcome):
    return [s.status for s in outcome.samples]


def test_the_papers_figure_3():
    """Four samples, sums 17 and 25; the meta RM keeps the first and the third: 5 and 13."""
    scores = [(1, 5), (5, 6), (4, 8), (7, 6)]
    plain = judge([sample(s) for s in scores], 2, VotingParams(), has_meta_head=False)
    assert (plain.rewards, plain.best, plain.num_votes) == ((17.0, 25.0), 1, 4)
    guided = judge([sample(s, meta) for s, meta in zip(scores, (2.0, -1.0, 1.0, 0.0), strict=True)], 2, VotingParams(), has_meta_head=True)
    assert (guided.rewards, guided.best, guided.num_votes) == ((5.0, 13.0), 1, 2)
    assert statuses(guided) == ["ok", "filtered", "ok", "filtered"]
    assert [s.kept for s in guided.samples] == [True, False, True, False]
    assert [s.scores for s in guided.samples] == scores


def test_the_papers_table_17():
    """Three samples, two of them with the responses reversed, from the judges' texts on; the meta RM distrusts the first."""
    texts = [
        ("...\n**Scores:** \\boxed{8, 8}", (0, 1), -15.7781),
        ("### Output: \\boxed{9, 5}", (1, 0), 1.3126),
        ("Scores: \\boxed{9, 9}\nScores: \\boxed{10, 7}", (1, 0), 1.6739),
    ]
    parsed = [read_sample(text, "eos", order, (1, 10), num_tokens=3, meta_score=meta) for text, order, meta in texts]
    assert [s.scores for s in parsed] == [(8, 8), (5, 9), (7, 10)]
    outcome = judge(parsed, 2, VotingParams(filter="none"), has_meta_head=True)
    assert (outcome.rewards, outcome.best) == ((20.0, 27.0), 1)
    guided = judge(parsed, 2, VotingParams(meta_keep=0.5), has_meta_head=True)
    assert (guided.rewards, statuses(guided)) == ((12.0, 19.0), ["filtered", "ok", "ok"])


@pytest.mark.parametrize(
    ("parsed", "fraction", "kept"),
    [
        (0, 0.5, 0),
        (1, 0.5, 1),
        (2, 0.5, 1),
        (3, 0.5, 2),
        (32, 0.5, 16),
        (31, 0.5, 16),
        (100, 0.07, 7),
        (10, 0.3, 3),
        (10, 0.31, 4),
        (7, 1.0, 7),
        (7, 1e-9, 1),
        (3, 1 / 3, 1),
        (49, 1 / 49, 1),
    ],
)
def test_how_many_a_filter_keeps(parsed, fraction, kept):
    assert num_kept(parsed, fraction) == kept


def test_the_filter_counts_parsed_samples_only_and_ties_go_to_the_lower_index():
    samples = [sample(None, 9.0, status="parse_error"), *(sample((i, 1), 1.0) for i in (5, 6, 7)), sample(None, 8.0, status="truncated")]
    outcome = judge(samples, 2, VotingParams(meta_keep=0.5), has_meta_head=True)
    assert statuses(outcome) == ["parse_error", "ok", "ok", "filtered", "truncated"]
    assert (outcome.rewards, outcome.num_votes) == ((11.0, 2.0), 2)
    assert [s.scores for s in outcome.samples] == [None, (5, 1), (6, 1), (7, 1), None]


def test_logprob_filter():
    samples = [sample((1, 2), 9.0, -2.0), sample((3, 4), 1.0, -1.0), sample((5, 6), 5.0, -3.0), sample((7, 8), 0.0, None)]
    outcome = judge(samples, 2, VotingParams(filter="logprob"), has_meta_head=True)
    assert (outcome.rewards, statuses(outcome)) == ((4.0, 6.0), ["ok", "ok", "filtered", "filtered"])


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf])
def test_a_sample_without_a_finite_measure_is_trusted_least(bad):
    samples = [sample((9, 1), bad), sample((2, 3), -50.0)]
    assert statuses(judge(samples, 2, VotingParams(), has_meta_head=True)) == ["filtered", "ok"]
    assert judge(samples, 2, VotingParams(meta_keep=1.0), has_meta_head=True).num_votes == 2
    assert statuses(judge([sample((9, 1), bad)] * 2, 2, VotingParams(), has_meta_head=True)) == ["ok", "filtered"]


def test_which_filter_auto_is():
    assert resolve_filter("auto", True) == "meta"
    assert resolve_filter("auto", False) == "none"
    assert [resolve_filter(f, False) for f in ("none", "logprob")] == ["none", "logprob"]
    with pytest.raises(ConfigError, match="needs a checkpoint with meta_head"):
        judge([sample((1, 2))], 2, VotingParams(filter="meta"), has_meta_head=False)


def test_mean_and_majority():
    scores = [(7, 7), (3, 9), (9, 8), (2, 4)]
    mean = judge([sample(s) for s in scores], 2, VotingParams(method="mean"), has_meta_head=False)
    assert (mean.rewards, mean.best, mean.stdev) == ((5.25, 7.0), 1, (math.sqrt(8.1875), math.sqrt(3.5)))
    majority = judge([sample(s) for s in scores], 2, VotingParams(method="majority"), has_meta_head=False)
    assert (majority.rewards, majority.best, majority.num_votes) == ((1.0, 2.0), 1, 4)
    assert statuses(majority) == ["ok"] * 4
    ties = judge([sample((5, 5))] * 3, 2, VotingParams(method="majority"), has_meta_head=False)
    assert (ties.rewards, ties.best, ties.num_votes) == ((0.0, 0.0), None, 3)


@pytest.mark.parametrize("method", ["sum", "mean", "majority"])
def test_without_a_vote_there_is_no_reward(method):
    samples = [sample(None, 1.0, status=s) for s in ("parse_error", "truncated", "numeric_error", "cancelled", "pruned")]
    for given in (samples, []):
        outcome = judge(given, 3, VotingParams(method=method), has_meta_head=True)
        assert (outcome.rewards, outcome.best, outcome.num_votes, outcome.stdev) == ((None,) * 3, None, 0, (None,) * 3)
        assert statuses(outcome) == [s.status for s in given]
        assert not any(s.kept for s in outcome.samples)


@pytest.mark.parametrize("method", ["sum", "mean", "majority"])
def test_one_response_is_the_best_if_it_has_a_vote(method):
    outcome = judge([sample((1,)), sample((4,))], 1, VotingParams(method=method), has_meta_head=False)
    assert outcome.best == 0
    assert outcome.rewards == {"sum": (5.0,), "mean": (2.5,), "majority": (2.0,)}[method]


def test_best_is_strict():
    assert judge([sample((3, 9, 9))], 3, VotingParams(), has_meta_head=False).best is None
    assert judge([sample((9, 3, 3))], 3, VotingParams(), has_meta_head=False).best == 0
    assert judge([sample((0, 0))], 2, VotingParams(), has_meta_head=False).best is None


def test_samples_keep_what_they_carried():
    given = ParsedSample((1, 2), "ok", (1, 0), "text", 7, 0.25, -0.5)
    made = judge([given], 2, VotingParams(), has_meta_head=True).samples[0]
    assert (made.scores, made.order, made.text, made.num_tokens, made.meta_score, made.logprob) == ((1, 2), (1, 0), "text", 7, 0.25, -0.5)


@pytest.mark.parametrize("scores", [None, (1,), (1, 2, 3)])
def test_a_sample_with_the_wrong_number_of_scores_is_refused(scores):
    with pytest.raises(InputError, match=r"samples\[1\]\.scores: expected 2"):
        judge([sample((1, 2)), ParsedSample(scores, "ok", (0, 1), "", 1)], 2, VotingParams(), has_meta_head=False)


def test_against_a_slow_restatement():
    rng = random.Random(8)
    for _ in range(400):
        n, k = rng.randint(1, 5), rng.randint(0, 12)
        method, keep = rng.choice(["sum", "mean", "majority"]), rng.choice([0.1, 0.25, 0.5, 0.9, 1.0])
        samples = []
        for _ in range(k):
            ok = rng.random() < 0.7
            scores = tuple(rng.randint(1, 10) for _ in range(n)) if ok else None
            samples.append(ParsedSample(scores, "ok" if ok else "parse_error", tuple(range(n)), "", 1, float(rng.randint(-3, 3))))
        outcome = judge(samples, n, VotingParams(method=method, meta_keep=keep), has_meta_head=True)
        ok = [i for i in range(k) if samples[i].status == "ok"]
        count = 0 if not ok else max(1, math.ceil(keep * len(ok) - 1e-9))
        votes = []
        for i in ok:
            better = [j for j in ok if (samples[j].meta_score, -j) > (samples[i].meta_score, -i)]
            assert outcome.samples[i].kept == (len(better) < count)
            if outcome.samples[i].kept:
                s = samples[i].scores
                strict = [int(all(s[r] > s[o] for o in range(n) if o != r)) for r in range(n)]
                votes.append(strict if method == "majority" else list(s))
        assert outcome.num_votes == len(votes) == count
        if votes:
            columns = list(zip(*votes, strict=True))
            assert outcome.rewards == tuple(statistics.fmean(c) if method == "mean" else float(sum(c)) for c in columns)
            assert outcome.stdev == pytest.approx([statistics.pstdev(c) for c in columns], abs=1e-12)

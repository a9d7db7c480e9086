"""`Engine.rank`: how responses are dealt into prompts, how votes are pooled, and what comes of it with a real judge."""

import asyncio
import statistics
from collections import Counter
from dataclasses import replace

import pytest
from scripted_engine import ScriptedEngine

from spct import CapacityError, ConfigError, Engine, InputError, Ranking, SamplingParams, ScoreRequest, VotingParams
from spct.ranking import RankPlan, combine, rank_stream

QUERY = "What is 3 plus 4? Above all, give the exact result. Please name the unit."
RESPONSES = ["7 apples", "8", "7", "8 apples"]


class Judge(ScriptedEngine):
    """One that draws as many samples as a request asks for."""

    def _judge(self, request, sampling, voting, index=0):
        sampling = sampling or SamplingParams()
        return super()._judge(request, replace(sampling, samples=request.samples or sampling.samples), voting, index)


def plan(size, votes=8, *, check=lambda request: None, **voting):
    return RankPlan(SamplingParams(samples=votes, seed=5), VotingParams(**voting), size, check)


def asking(count, **fields):
    return ScoreRequest("q", [f"r{i} {1 + i % 10}" for i in range(count)], **fields)


def ranked(request, size=6, votes=4, **voting):
    """The ranking by a judge that reads its scores out of the responses."""
    engine, own = Judge(), plan(size, votes, **voting)
    stream = rank_stream(
        [request], own, lambda item: item, lambda parts: engine.score_batch(parts, sampling=own.sampling, voting=own.voting)
    )
    (ranking,) = stream
    return ranking


def test_what_fits_one_prompt_is_one_request_of_all_votes():
    request = asking(6, id="a", seed=9)
    (part,) = plan(6).divide(request)
    assert part.places == tuple(range(6)) and part.request == ScoreRequest("q", request.responses, id="a", seed=9, samples=8)
    assert plan(6).divide(asking(6, samples=3))[0].request.samples == 3


@pytest.mark.parametrize(("count", "size"), [(7, 6), (9, 3), (12, 6), (13, 6), (16, 4), (25, 6)])
def test_every_response_has_all_its_votes_in_groups_of_like_size(count, size):
    parts = plan(size, votes=9).divide(asking(count))
    votes = Counter()
    for part in parts:
        assert list(part.request.responses) == [f"r{i} {1 + i % 10}" for i in part.places]
        votes.update(dict.fromkeys(part.places, part.request.samples))
    assert votes == dict.fromkeys(range(count), 9)
    sizes = {len(part.places) for part in parts}
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1
    assert len(parts) == 2 * -(-count // size)


@pytest.mark.parametrize(("count", "size"), [(9, 3), (16, 4), (36, 6), (12, 3)])
def test_who_met_in_the_first_deal_is_apart_in_the_second(count, size):
    parts = plan(size).divide(asking(count))
    near, apart = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    assert all(len(set(a.places) & set(b.places)) <= 1 for a in near for b in apart)


def test_groups_are_drawn_from_seed_and_content():
    def groups(request, seed=5):
        own = RankPlan(SamplingParams(samples=8, seed=seed), VotingParams(), 3, lambda request: None)
        return [part.places for part in own.divide(request)]

    first = groups(asking(9))
    assert groups(asking(9, id="other")) == first
    assert groups(asking(9), seed=6) != first and groups(asking(9, reference="r")) != first
    assert sorted(i for group in first[:3] for i in group) == list(range(9)) and first[0] != (0, 1, 2)


def test_one_vote_and_given_orders_need_one_deal():
    assert len(plan(3, votes=1).divide(asking(9))) == 3
    assert [part.places for part in plan(3, orders="given").divide(asking(7))] == [(0, 1), (2, 3), (4, 5, 6)]


def test_alone_each_response_has_a_prompt_of_its_own():
    parts = plan(1).divide(asking(4))
    assert sorted(part.places for part in parts) == [(0,), (1,), (2,), (3,)]
    assert all(part.request.samples == 8 for part in parts)


def test_groups_that_do_not_fit_are_halved_and_the_rest_of_the_request_goes_along():
    def check(request):
        if len(request.responses) > 2:
            raise CapacityError("too long")

    parts = plan(6, check=check).divide(asking(6, reference="r", principles="p", seed=3))
    assert max(len(part.places) for part in parts) == 2
    assert all((p.request.reference, p.request.principles, p.request.seed) == ("r", "p", 3) for p in parts)

    def never(request):
        raise CapacityError("too long")

    with pytest.raises(CapacityError, match="too long"):
        plan(6, check=never).divide(asking(6))


def test_a_template_for_single_responses_judges_each_alone():
    def check(request):
        if len(request.responses) > 1:
            raise InputError("one response only")

    assert {len(part.places) for part in plan(6, check=check).divide(asking(5))} == {1}

    def never(request):
        raise InputError("no such character")

    with pytest.raises(InputError, match="character"):
        plan(6, check=never).divide(asking(5))


@pytest.mark.parametrize("size", [0, -1, True, 2.0])
def test_a_group_size_that_makes_no_sense_is_refused(size):
    with pytest.raises(ConfigError, match="group_size"):
        plan(size)


def test_ties_stand_together_and_the_best_is_strict():
    ranking = ranked(ScoreRequest("q", ["a 5", "b 9", "c 5", "d 2"]))
    assert ranking.ranking == ((1,), (0, 2), (3,)) and ranking.order == (1, 0, 2, 3)
    assert ranking.best == 1 and ranking.rewards == (5.0, 9.0, 5.0, 2.0) and ranking.num_votes == (4, 4, 4, 4)
    tied = ranked(ScoreRequest("q", ["a 9", "b 9", "c 1"]))
    assert tied.best is None and tied.ranking == ((0, 1), (2,))


def test_rewards_are_means_whatever_the_votes_are_called():
    request = ScoreRequest("q", ["a 5 6", "b 9 2"])
    assert ranked(request).rewards == ranked(request, method="mean").rewards == (5.5, 5.5)
    assert ranked(request, method="majority").rewards == (0.5, 0.5)


def test_votes_of_all_groups_are_pooled():
    """The same marks in a prompt of nine and in groups of three: equal means, spreads and votes."""
    request = ScoreRequest("q", [f"r{i} {1 + i} {1 + (i * 7) % 10}" for i in range(9)])
    together, dealt = ranked(request, size=9), ranked(request, size=3)
    assert dealt.rewards == together.rewards and dealt.ranking == together.ranking
    assert dealt.stdev == pytest.approx(together.stdev) and dealt.num_votes == together.num_votes
    assert len(dealt.samples) == 6 * 2 and len(dealt.parts) == 6
    assert dealt.usage.generated_tokens == sum(judgement.usage.generated_tokens for judgement in dealt.judgements)


def test_means_over_unequal_votes_are_compared_exactly_and_no_vote_is_no_number():
    # "?" spoils the samples of odd index, of everyone in its group.
    request = ScoreRequest("q", ["a 7", "b 7 ?", "c ?", "d 3"])
    ranking = ranked(request, size=1, votes=3)
    assert ranking.num_votes == (3, 2, 0, 3) and ranking.rewards == (7.0, 7.0, None, 3.0)
    assert ranking.ranking == ((0, 1), (3,)) and ranking.best is None and ranking.stdev[2] is None
    nothing = ranked(ScoreRequest("q", ["a ?", "b ?"]))
    assert nothing.ranking == () and nothing.order == () and nothing.best is None and nothing.rewards == (None, None)


def test_the_spread_is_that_of_all_votes():
    request = ScoreRequest("q", [f"r{i} 1 2 4 9" for i in range(4)])
    ranking = ranked(request, size=2, votes=8)
    scores = [1, 2, 4, 9, 1, 2, 4, 9]
    # Each deal draws half of the votes: samples 0 to 3, twice.
    assert ranking.stdev == pytest.approx([statistics.pstdev(scores)] * 4)


def test_a_majority_is_not_counted_over_groups():
    with pytest.raises(ConfigError, match="majority"):
        plan(3, method="majority").divide(asking(9))


def too_long(request):
    if sum(map(len, request.responses)) > 30:
        raise CapacityError("the prompt does not fit")


def test_a_stream_goes_on_past_what_can_not_be_ranked():
    engine, own = Judge(context=60), plan(2, votes=2, check=too_long)
    requests = [
        asking(3, id="a"),
        "nonsense",
        ScoreRequest("q", ["x" * 31 + " 5"], id="long"),
        ScoreRequest("q", ["☃ 5", "b 1"], id="snow"),
        asking(5, id="b"),
    ]

    def request_of(item):
        if isinstance(item, str):
            raise InputError("no request")
        return item

    outcomes = {r.index: r for r in rank_stream(requests, own, request_of, lambda parts: engine.score_batch(parts, sampling=own.sampling))}
    assert sorted(outcomes) == [0, 1, 2, 3, 4]
    assert outcomes[0].best == 2 and outcomes[0].id == "a" and outcomes[4].order == (4, 3, 2, 1, 0)
    assert isinstance(outcomes[1].error, InputError) and isinstance(outcomes[2].error, CapacityError) and outcomes[2].id == "long"
    assert isinstance(outcomes[3].error, InputError) and outcomes[3].rewards == (None, None)


@pytest.fixture(scope="module")
def engine():
    with Engine.from_pretrained("embedded", kv_memory="64MiB") as engine:
        yield engine


FEW = SamplingParams(samples=4, max_tokens=200, seed=1)


def test_one_prompt_ranks_as_score_judges(engine):
    ranking, judgement = engine.rank(QUERY, RESPONSES, sampling=FEW), engine.score(QUERY, RESPONSES, sampling=FEW)
    assert ranking.samples == judgement.samples and judgement.num_votes > 0
    assert ranking.rewards == tuple(reward / judgement.num_votes for reward in judgement.rewards)
    assert ranking.best == judgement.best and ranking.stdev == judgement.stdev
    assert engine.rank(QUERY, RESPONSES, votes=2, sampling=FEW).samples == judgement.samples[:2]


def test_groups_share_the_prefix_and_all_ways_to_ask_agree(engine):
    request = ScoreRequest(QUERY, RESPONSES, id="x")
    ranking = engine.rank(request, group_size=2, sampling=FEW)
    assert isinstance(ranking, Ranking) and len(ranking.parts) == 4 and ranking.id == "x" and len(ranking.samples) == 8
    assert 0 in ranking.order[:2]
    lone = sum(engine.score(QUERY, [RESPONSES[i] for i in part], sampling=FEW).usage.prompt_tokens for part in ranking.parts)
    assert ranking.usage.prefilled_tokens < lone
    batch = list(engine.rank_batch([{"query": QUERY}, request], group_size=2, sampling=FEW))
    assert [(r.index, r.error is None) for r in sorted(batch, key=lambda r: r.index)] == [(0, False), (1, True)]
    alike = [next(r for r in batch if r.index == 1), asyncio.run(engine.rank_async(request, group_size=2, sampling=FEW))]
    assert all((r.rewards, r.parts, r.samples) == (ranking.rewards, ranking.parts, ranking.samples) for r in alike)


def test_errors_are_raised_as_they_are(engine):
    with pytest.raises(InputError, match="responses"):
        engine.rank(QUERY)
    for rank in (engine.rank, lambda *words, **flags: asyncio.run(engine.rank_async(*words, **flags))):
        with pytest.raises(CapacityError):
            rank("word " * 5000, RESPONSES, sampling=FEW)
        with pytest.raises(ConfigError, match="group_size"):
            rank(QUERY, RESPONSES, group_size=0)
    with pytest.raises(ConfigError, match="filter"):
        engine.rank_batch([], voting=VotingParams(filter="meta"))


def test_parts_are_combined_by_their_place():
    request = ScoreRequest("q", ["a 1", "b 9", "c 5"])
    parts = plan(1, votes=1).divide(request)
    engine = Judge()
    judgements = {j.index: j for j in engine.score_batch([part.request for part in parts])}
    assert combine(request, parts, [judgements[i] for i in range(3)], index=7).order == (1, 2, 0)

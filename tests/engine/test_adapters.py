"""From judgements to rewards: shapes, groups, what is missing and what is wrong; one engine a process."""

import asyncio
import os
import threading
from collections import UserList
from types import MappingProxyType

import pytest
from scripted_engine import ScriptedEngine

from spct import BackendError, ConfigError, Engine, InputError, SamplingParams, ScoreRequest, VotingParams
from spct.adapters import MissingRewardError, Reward, RewardJudge, engines
from spct.adapters.core import judge_of
from spct.adapters.options import check_on_missing
from spct.adapters.texts import query_of, reference_of, response_of, runs

FOUR = {"samples": 4}


def rewards_of(responses, engine=None, **options):
    """The rewards of one request's responses, which are the same from a loop and from an event loop."""
    judge = RewardJudge(engine or ScriptedEngine(), **{"sampling": FOUR, **options})
    request = ScoreRequest("q", responses)
    (rewards,) = judge.score([request])
    assert asyncio.run(judge.score_async([request])) == [rewards]
    return rewards


def values(*args, **options):
    return [reward.value for reward in rewards_of(*args, **options)]


def test_shapes():
    shown = ["a 4 6", "b 10", "c 1"]
    assert values(shown, shape="raw") == [5.0, 10.0, 1.0]
    assert values(shown) == pytest.approx([4 / 9, 1.0, 0.0])
    assert values(shown, group_size=3, shape="centred") == pytest.approx([4 / 9 - 13 / 27, 1 - 13 / 27, -13 / 27])
    assert values(shown, shape="raw", engine=ScriptedEngine(score_range=(0, 100))) == [5.0, 10.0, 1.0]
    assert values(shown, engine=ScriptedEngine(score_range=(0, 100))) == pytest.approx([0.05, 0.1, 0.01])


def test_unit_stands_beside_every_shape():
    for shape in ("raw", "unit", "centred"):
        rewards = rewards_of(["a 4 6", "b 10"], group_size=2, shape=shape)
        assert [reward.unit for reward in rewards] == pytest.approx([4 / 9, 1.0])


@pytest.mark.parametrize("method", ["sum", "mean"])
def test_nobody_is_paid_for_the_number_of_valid_votes(method):
    rewards = rewards_of(["a 7", "b 7 ? ? ?"], voting={"method": method}, shape="raw")
    assert [(reward.value, reward.num_votes) for reward in rewards] == [(7.0, 4), (7.0, 1)]


def test_majority_is_a_share():
    # Sample by sample: a, b, tie, b.
    assert values(["a 9 1 5 1", "b 2 8 5 8"], group_size=2, voting={"method": "majority"}) == [0.25, 0.5]


def test_a_failed_parse_is_missing_and_says_so():
    good, bad = rewards_of(["a 3", "b ?"])
    assert good.value is not None and good.reason is None
    assert (bad.value, bad.unit, bad.num_votes) == (None, None, 0)
    assert bad.reason == "no valid vote: 4 parse_error"
    assert [r.value for r in rewards_of(["a 3", "b ?"], group_size=2)] == [None, None]


def test_missing_rewards_are_logged(caplog):
    RewardJudge(ScriptedEngine(), sampling=FOUR).score([ScoreRequest("q", ["a 3", "b ?", "c ?"])])
    assert "2 of 3 responses have no reward" in caplog.text


def test_groups_are_divided_evenly_and_stay_in_order():
    engine = ScriptedEngine()
    assert values([f"r{i} {i + 1}" for i in range(10)], engine, group_size=4, shape="raw") == [float(i + 1) for i in range(10)]
    sizes = [len(request.responses) for request in engine.asked]
    assert sorted(sizes[:3]) == [3, 3, 4]
    with pytest.raises(InputError, match="5 responses can't be judged in parts of 2 to 2"):
        rewards_of([f"r 1 {i}" for i in range(5)], group_size=2, shape="centred")


def test_requests_keep_their_places():
    judge = RewardJudge(ScriptedEngine(), sampling=FOUR, shape="raw", group_size=2)
    requests = [ScoreRequest("one", ["a 1", "b 2", "c 3"]), ScoreRequest("two", ["d 4"]), ScoreRequest("three", ["e 5", "f 6"])]
    expected = [[1.0, 2.0, 3.0], [4.0], [5.0, 6.0]]
    assert [[r.value for r in rewards] for rewards in judge.score(requests)] == expected
    assert [[r.value for r in rewards] for rewards in asyncio.run(judge.score_async(requests))] == expected
    assert judge.score([]) == asyncio.run(judge.score_async([])) == []


def test_what_does_not_fit_is_halved_then_missing():
    engine = ScriptedEngine(context=20)
    long = "x" * 30 + " 9"
    assert values(["a 2", "b 3", long, "d 5"], engine, group_size=4, shape="raw") == [2.0, 3.0, None, 5.0]
    halved = rewards_of(["a 2", "b 3", long, "d 5"], ScriptedEngine(context=20), group_size=4, shape="centred")
    assert [reward.value is None for reward in halved] == [False, False, True, True]
    assert halved[2].reason == "the prompt does not fit"


def test_half_of_a_list_may_be_what_the_template_refuses():
    engine = ScriptedEngine(context=5, refuses=(1,))
    found = rewards_of(["aa 2", "bb 3"], engine, group_size=2)
    assert [reward.reason for reward in found] == ["template: not for so many responses"] * 2


def test_a_response_that_the_judge_cannot_read_is_missing():
    assert values(["a 2", "☃ 3"], shape="raw") == [2.0, None]


def test_wrong_use_and_failing_engines_raise():
    request = ScoreRequest("q", ["a 1"])
    for engine, error in [(ScriptedEngine(refuses=(1,)), InputError), (ScriptedEngine(error=BackendError("gone")), BackendError)]:
        judge = RewardJudge(engine, sampling=FOUR)
        with pytest.raises(error):
            judge.score([request])
        with pytest.raises(error):
            asyncio.run(judge.score_async([request]))
    with pytest.raises(ConfigError, match="max_samples=4096, got 5000"):
        RewardJudge(ScriptedEngine(), sampling={"samples": 5000}).score([request])


def test_cancelling_cancels_what_the_engine_was_asked():
    engine, events = ScriptedEngine(), []

    async def score_async(request, **_):
        try:
            events.append("asked")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise

    engine.score_async = score_async

    async def give_up():
        waiting = asyncio.create_task(RewardJudge(engine).score_async([ScoreRequest("q", ["a 1", "b 2"])]))
        while len(events) < 2:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(asyncio.wait_for(give_up(), 10))
    assert events == ["asked", "asked", "cancelled", "cancelled"]


def test_equal_requests_are_judged_once():
    engine = ScriptedEngine()
    judge = RewardJudge(engine, sampling=FOUR)
    judge.score([ScoreRequest("q", ["a 1", "a 1", "b 2"], id=1), ScoreRequest("q", ["a 1"], id=2), ScoreRequest("other", ["a 1"])])
    assert [(request.query, request.responses) for request in engine.asked] == [("other", ("a 1",)), ("q", ("b 2",)), ("q", ("a 1",))]


@pytest.mark.parametrize(
    "options",
    [
        {"shape": "z-score"},
        {"group_size": 0},
        {"group_size": True},
        {"shape": "centred"},
        {"voting": {"method": "majority"}},
        {"sampling": {"sample": 8}},
        {"sampling": {"samples": 0}},
        {"voting": VotingParams},
        {"engine_options": {"device": "cpu"}},
    ],
)
def test_bad_options_raise_at_once(options):
    with pytest.raises(ConfigError):
        RewardJudge(ScriptedEngine(), **options)


def test_options_as_plain_data():
    judge = judge_of({"model": "somewhere", "sampling": {"samples": 2, "stop_token_ids": [3]}, "group_size": 2, "shape": "centred"})
    assert judge.sampling == SamplingParams(samples=2, stop_token_ids=(3,))
    # The mappings and lists of a configuration library are none of Python's own.
    sampling = MappingProxyType({"samples": 2, "stop_token_ids": UserList([3])})
    assert judge_of(MappingProxyType({"sampling": sampling})).sampling == judge.sampling
    assert judge_of({}).sampling.samples == 8
    with pytest.raises(ConfigError, match="unknown option 'modle'; known options: model"):
        judge_of({"modle": "x"})


def test_stand_ins():
    assert Reward(0.25).or_else("raise") == 0.25
    assert Reward(None, reason="why").or_else(-1.0) == -1.0
    with pytest.raises(MissingRewardError, match="no reward: why"):
        Reward(None, reason="why").or_else("raise")
    for bad in ("remove", None, True, float("nan"), float("inf")):
        with pytest.raises(ConfigError):
            check_on_missing(bad, "raise")


@pytest.fixture
def loads(monkeypatch):
    """The models that were loaded, slowly, instead of being loaded."""
    found = []

    def load(model, **options):
        found.append((model, options))
        threading.Event().wait(0.05)
        return ScriptedEngine()

    monkeypatch.setattr(Engine, "from_pretrained", staticmethod(load))
    monkeypatch.setattr(engines, "_engines", {})
    return found


def test_one_engine_a_process_and_options(loads):
    judges = [RewardJudge("model", engine_options={"device": "cpu", "max_batch": 8}) for _ in range(4)]
    judges.append(RewardJudge("model", engine_options={"max_batch": 8, "device": "cpu"}, group_size=3))
    assert not loads
    threads = [threading.Thread(target=lambda judge=judge: judge.score([ScoreRequest("q", ["a 1"])])) for judge in judges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [("model", {"device": "cpu", "max_batch": 8})]
    assert RewardJudge("model").engine is not judges[0].engine


def test_a_forked_child_forgets_engines_and_their_lock(loads):
    RewardJudge("model").score([ScoreRequest("q", ["a 1"])])
    with engines._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if not engines._engines and engines._lock.acquire(timeout=1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engines._engines


def test_queries_and_responses_of_messages():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    turns = query_of([{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts, "name": "x"}])
    assert [(turn.role, turn.content) for turn in turns] == [("system", "be brief"), ("user", "ab")]
    calls = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4!"},
    ]
    assert response_of(calls) == "4!"
    assert response_of([]) == ""
    assert (query_of("plain"), response_of("plain")) == ("plain", "plain")
    image = [{"role": "user", "content": [{"type": "image"}]}]
    for bad, message in [(3, "got int"), ([3], r"p\[0\]"), ([{"content": "x"}], "role"), (image, r"p\[0\].content.*'image'")]:
        with pytest.raises(InputError, match=message):
            query_of(bad, "p")


def test_references():
    assert [reference_of(value, "r") for value in (None, "", "four", 4, 2.5)] == [None, None, "four", "4", "2.5"]
    for bad in ({"answer": 4}, ["4"], True):
        with pytest.raises(InputError, match="r: expected a text or a number"):
            reference_of(bad, "r")


def test_runs():
    assert runs(["a", "a", "b", "a"]) == [range(0, 2), range(2, 3), range(3, 4)]
    assert runs([]) == []

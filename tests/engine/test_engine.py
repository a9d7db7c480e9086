"""The engine as a whole, on a tiny random model: prefill once, the same tokens whatever runs beside, nothing lost."""

import asyncio
import random
import threading

import pytest
import torch

from spct import BackendError, CapacityError, ConfigError, Engine, InputError, SamplingParams, ScoreRequest, VotingParams

SAMPLING = SamplingParams(samples=6, max_tokens=40, seed=3)


def requests(count, seed=0, max_responses=3):
    rng = random.Random(seed)
    words = ["alpha", "beta", "gamma", "42", "seven", "é", "no"]

    def text(limit):
        return " ".join(rng.choice(words) for _ in range(rng.randrange(1, limit)))

    return [ScoreRequest(text(12), [text(8) for _ in range(rng.randrange(1, max_responses + 1))], id=i) for i in range(count)]


def essence(judgement):
    """All that must not depend on what ran beside."""
    return [(s.text, s.status, s.num_tokens, s.logprob, s.meta_score, s.order) for s in judgement.samples]


@pytest.fixture(scope="module")
def engine(tiny_folder):
    with Engine.from_pretrained(tiny_folder) as engine:
        yield engine


@pytest.fixture(scope="module")
def alone(tiny_folder):
    """Every request judged by an engine of its own."""
    found = []
    for request in requests(12):
        with Engine.from_pretrained(tiny_folder) as single:
            found.append(essence(single.score(request, sampling=SAMPLING)))
    return found


def test_one_prefill_for_all_samples_and_none_for_a_known_prompt(tiny_folder):
    with Engine.from_pretrained(tiny_folder) as engine:
        first = engine.score("what is it?", ["this one"], sampling=SAMPLING)
        assert first.usage.prefilled_tokens == first.usage.prompt_tokens
        assert first.usage.generated_tokens == sum(s.num_tokens for s in first.samples)
        again = engine.score("what is it?", ["this one"], sampling=SAMPLING)
        assert again.usage.prefilled_tokens == 0
        assert essence(again) == essence(first)


def test_orders_prefill_only_what_differs(tiny_folder):
    with Engine.from_pretrained(tiny_folder) as engine:
        j = engine.score("a long common query " * 5, ["xxxx", "yyyy"], sampling=SAMPLING)
        assert {s.order for s in j.samples} == {(0, 1), (1, 0)}
        different = len("xxxx\nR2: yyyy\nS:")
        assert j.usage.prefilled_tokens == j.usage.prompt_tokens + different


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_batch": 3},
        {"max_prefill_tokens": 5},
        {"kv_memory": 100 * 16 * 512},
        {"kv_memory": 24 * 16 * 512, "max_batch": 16},
        {"num_threads": 2},
    ],
    ids=str,
)
def test_the_same_tokens_alone_in_a_crowd_and_under_pressure(tiny_folder, alone, options):
    shuffled = requests(12)
    random.Random(1).shuffle(shuffled)
    threads = torch.get_num_threads()
    try:
        with Engine.from_pretrained(tiny_folder, **options) as engine:
            found = {j.id: essence(j) for j in engine.score_batch(shuffled, sampling=SAMPLING)}
            if options.get("kv_memory") == 24 * 16 * 512:
                assert engine.stats.num_preemptions > 0, "the test means to preempt"
    finally:
        torch.set_num_threads(threads)
    assert [found[i] for i in range(12)] == alone


def test_backends_agree(tiny_folder, alone):
    with Engine.from_pretrained(tiny_folder, backend="reference") as engine:
        for request, expected in zip(requests(3), alone, strict=False):
            found = essence(engine.score(request, sampling=SAMPLING))
            assert [(s[0], s[1], s[2]) for s in found] == [(s[0], s[1], s[2]) for s in expected]


def test_the_first_samples_of_many_are_those_of_few(engine):
    many = engine.score("query", ["a", "b"], sampling=SamplingParams(samples=12, max_tokens=8))
    few = engine.score("query", ["a", "b"], sampling=SamplingParams(samples=5, max_tokens=8))
    assert essence(many)[:5] == essence(few)
    other = engine.score("query", ["a", "b"], sampling=SamplingParams(samples=5, max_tokens=8, seed=1))
    assert [s.text for s in other.samples] != [s.text for s in few.samples]


def test_greedy_gives_as_many_samples_as_asked_for(engine):
    j = engine.score("query", ["a"], sampling=SamplingParams(samples=3, temperature=0.0, max_tokens=8))
    assert len(j.samples) == 3 and len({s.text for s in j.samples}) == 1


def test_generate_continues_what_logits_predict(engine):
    prompt = list(b"some text")
    (generation,) = engine.generate(prompt, SamplingParams(samples=1, temperature=0.0, max_tokens=10, ignore_eos=True))
    logits = engine.logits([*prompt, *generation.token_ids])
    predicted = logits.argmax(-1)[len(prompt) - 1 : -1]
    assert predicted.tolist() == list(generation.token_ids)
    logprobs = torch.log_softmax(logits.double(), -1)
    for i, (token, logprob) in enumerate(zip(generation.token_ids, generation.logprobs, strict=True)):
        assert logprob == pytest.approx(float(logprobs[len(prompt) - 1 + i, token]), abs=1e-4)


def test_a_sample_at_its_limit_is_truncated_whatever_it_wrote(engine):
    j = engine.score("query", ["a", "b"], sampling=SamplingParams(samples=4, max_tokens=2, ignore_eos=True))
    assert {s.status for s in j.samples} == {"truncated"}
    assert j.rewards == (None, None) and j.best is None and j.num_votes == 0 and j.error is None


def test_meta_logits_come_with_every_token(tiny_folder_with_meta_head):
    with Engine.from_pretrained(tiny_folder_with_meta_head) as engine:
        (g, *_) = engine.generate(list(b"hello"), SamplingParams(samples=2, max_tokens=9, ignore_eos=True))
        assert len(g.meta_logits) == len(g.token_ids) == 9 and g.meta_score == g.meta_logits[-1]
        j = engine.score("q", ["a"], sampling=SAMPLING)
        assert all(isinstance(s.meta_score, float) for s in j.samples)


@pytest.mark.parametrize("over", [0, 1])
def test_the_context_ends_exactly_where_it_says(engine, over):
    prompt = [65] * (511 + over)
    if over:
        with pytest.raises(CapacityError, match="512"):
            engine.generate(prompt, SamplingParams(samples=1))
        assert engine.logits(prompt).shape == (512, 257)
    else:
        (g,) = engine.generate(prompt, SamplingParams(samples=1, ignore_eos=True))
        assert len(g.token_ids) == 1 and g.finish_reason == "length"


def test_what_can_never_fit_is_refused_at_once(tiny_folder):
    with Engine.from_pretrained(tiny_folder, kv_memory=4 * 16 * 512, max_samples=8) as engine:
        with pytest.raises(CapacityError, match="KV pages"):
            engine.score("q" * 60, ["a"], sampling=SamplingParams(samples=1, max_tokens=30))
        with pytest.raises(CapacityError, match="max_samples"):
            engine.score("q", ["a"], sampling=SamplingParams(samples=9))
        assert engine.stats.num_steps == 0


def test_bad_requests_of_a_batch_end_nothing_else(engine):
    rows = [
        {"query": "q", "responses": ["a"], "id": "good"},
        {"query": "q", "responses": [], "id": "none"},
        {"query": "q", "responses": ["a"], "what": 1},
        {"responses": ["a"]},
        {"query": "q" * 5000, "responses": ["a"], "id": "long"},
        7,
        ScoreRequest("q", ["a"], samples=10**6, id="many"),
        {"query": "q", "responses": ["a"], "id": "last"},
    ]
    found = {j.index: j for j in engine.score_batch(rows, sampling=SAMPLING)}
    assert sorted(found) == list(range(8))
    kinds = [type(found[i].error) for i in range(8)]
    assert kinds == [type(None), InputError, InputError, InputError, CapacityError, InputError, CapacityError, type(None)]
    assert found[1].id == "none" and found[4].id == "long" and found[6].id == "many"
    assert essence(found[0]) == essence(found[7])


def test_parameters_that_nobody_can_meet_are_refused_before_the_first_request(engine):
    with pytest.raises(ConfigError, match="meta_head"):
        engine.score_batch(iter([]), voting=VotingParams(filter="meta"))


def test_the_loop_body_may_use_the_engine(engine):
    inner = []
    for judgement in engine.score_batch(requests(5), sampling=SAMPLING):
        inner.append(essence(engine.score(requests(5)[judgement.index], sampling=SAMPLING)) == essence(judgement))
    assert inner == [True] * 5


def test_a_dropped_iterator_frees_its_memory(tiny_folder):
    with Engine.from_pretrained(tiny_folder) as engine:
        stream = engine.score_batch(requests(50), sampling=SAMPLING)
        next(stream)
        stream.close()
        assert engine._parts.scheduler.tree.ledger().referenced == 0
        assert not engine._parts.scheduler.has_work


def test_threads_share_the_engine(tiny_folder, alone):
    found = {}
    with Engine.from_pretrained(tiny_folder) as engine:

        def work(i):
            found[i] = essence(engine.score(requests(12)[i], sampling=SAMPLING))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert [found[i] for i in range(12)] == alone


def test_async_requests_share_a_batch_and_can_be_cancelled(tiny_folder, alone):
    async def main(engine):
        tasks = [asyncio.create_task(engine.score_async(r, sampling=SAMPLING)) for r in requests(12)]
        doomed = asyncio.create_task(
            engine.score_async("never", ["ends"], sampling=SamplingParams(samples=40, max_tokens=400, ignore_eos=True))
        )
        found = [essence(j) for j in await asyncio.wait_for(asyncio.gather(*tasks), 60)]
        doomed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await doomed
        for _ in range(200):
            if not engine._parts.scheduler.has_work:
                break
            await asyncio.sleep(0.01)
        return found

    with Engine.from_pretrained(tiny_folder) as engine:
        assert asyncio.run(main(engine)) == alone
        assert engine._parts.scheduler.tree.ledger().referenced == 0


def test_closing_ends_what_waits(tiny_folder):
    engine = Engine.from_pretrained(tiny_folder)
    caught = []

    def work():
        try:
            engine.score("q", ["a"], sampling=SamplingParams(samples=64, max_tokens=450, ignore_eos=True))
        except BackendError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while engine.stats.num_steps < 3:
        pass
    engine.close()
    thread.join(30)
    assert len(caught) == 1
    with pytest.raises(BackendError, match="closed"):
        engine.score("q", ["a"])


def test_a_failing_forward_reaches_everyone_and_leaves_a_usable_engine(tiny_folder, alone, monkeypatch):
    with Engine.from_pretrained(tiny_folder) as engine:
        run, calls = engine._parts.runner.run, []

        def failing(step):
            calls.append(step)
            if len(calls) == 5:
                raise RuntimeError("out of luck")
            return run(step)

        monkeypatch.setattr(engine._parts.runner, "run", failing)
        found = list(engine.score_batch(requests(12), sampling=SAMPLING))
        failed = [j for j in found if j.error is not None]
        assert failed and all(isinstance(j.error, BackendError) and "out of luck" in str(j.error) for j in failed)
        assert len(found) == 12
        assert [essence(engine.score(r, sampling=SAMPLING)) for r in requests(12)] == alone


def test_an_interrupted_step_is_repeated(tiny_folder, alone, monkeypatch):
    with Engine.from_pretrained(tiny_folder) as engine:
        run, calls = engine._parts.runner.run, []

        def interrupted(step):
            calls.append(step)
            drawn = run(step)
            if len(calls) % 4 == 0:
                raise KeyboardInterrupt
            return drawn

        monkeypatch.setattr(engine._parts.runner, "run", interrupted)
        pending = [engine._submit(r, SAMPLING, None, i) for i, r in enumerate(requests(12))]
        while engine._parts.scheduler.has_work:
            try:
                engine._loop.step()
            except KeyboardInterrupt:
                continue
        assert [essence(engine._judging.finish(p)) for p in pending] == alone


def test_two_thousand_requests_leave_every_page(tiny_folder):
    rng, sampling = random.Random(5), SamplingParams(samples=2, max_tokens=4)
    with Engine.from_pretrained(tiny_folder, kv_memory=400 * 16 * 512) as engine:
        tree, peaks, done = engine._parts.scheduler.tree, [], 0
        in_flight = []
        for number, request in enumerate(requests(2000, seed=7)):
            in_flight.append(engine._submit(request, sampling, None, number))
            if rng.random() < 0.1:
                engine._loop.cancel(rng.choice(in_flight).group)
            while len(in_flight) > 20:
                engine._loop.step()
                done += sum(p.group.is_finished for p in in_flight)
                in_flight = [p for p in in_flight if not p.group.is_finished]
            if number % 100 == 0:
                ledger = tree.ledger()
                peaks.append((ledger.referenced, sum(1 for _ in tree.nodes())))
        for pending in in_flight:
            engine._loop.drive_until(pending.group)
        tree.clear()
        assert tree.ledger().free == 400
        assert not engine._parts.scheduler.has_work
        assert max(p[0] for p in peaks[10:]) <= 1.5 * max(p[0] for p in peaks[:10]) + 20
        assert max(p[1] for p in peaks) <= 400


def test_memory_does_not_grow_with_the_stream(tiny_folder):
    """What the engine reads ahead is bounded by its batch, however long the stream."""
    read = 0

    def stream():
        nonlocal read
        for request in requests(300, seed=8):
            read += 1
            yield request

    with Engine.from_pretrained(tiny_folder, max_batch=16) as engine:
        ahead, done = 0, 0
        for _ in engine.score_batch(stream(), sampling=SamplingParams(samples=4, max_tokens=3)):
            done += 1
            ahead = max(ahead, read - done)
        assert done == 300 and ahead <= 2 * 16


def test_the_batch_stays_full(tiny_folder):
    with Engine.from_pretrained(tiny_folder, max_batch=16) as engine:
        scheduler = engine._parts.scheduler
        full = steps = 0
        schedule = scheduler.schedule

        def counting():
            nonlocal full, steps
            step = schedule()
            if step is not None and scheduler.waiting:
                full, steps = full + len(step.draws), steps + 1
            return step

        scheduler.schedule = counting
        for _ in engine.score_batch(requests(60, seed=2), sampling=SamplingParams(samples=5, max_tokens=30)):
            pass
        assert steps > 20 and full >= 0.9 * 16 * steps, f"{full / (16 * steps):.3f} over {steps} steps"

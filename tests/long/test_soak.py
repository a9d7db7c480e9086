"""Ten thousand mixed requests under memory pressure: nothing leaks, nothing drifts."""

import gc
import os
import random
import resource
import threading

from tiny_model import write_tiny_model

from spct import Engine, SamplingParams, ScoreRequest

NUM_REQUESTS = 10_000


def rss_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def draw_request(rng, number):
    words = ["alpha", "beta", "gamma", "42", "seven", "é"]
    query = " ".join(rng.choice(words) for _ in range(rng.randrange(1, 20)))
    responses = [" ".join(rng.choice(words) for _ in range(rng.randrange(1, 10))) for _ in range(rng.randrange(1, 4))]
    return ScoreRequest(query, responses, id=number, samples=rng.choice([1, 1, 2, 2, 4, 8, 32]))


def test_ten_thousand_requests(tmp_path):
    rng, folder = random.Random(11), write_tiny_model(tmp_path / "model")
    canary = ScoreRequest("canary", ["one", "two"], samples=4)
    sampling = SamplingParams(max_tokens=20)
    with Engine.from_pretrained(folder, kv_memory=64 * 16 * 512, max_batch=48) as engine:
        tree = engine._parts.scheduler.tree
        expected = [s.text for s in engine.score(canary, sampling=sampling).samples]
        in_flight, memory = [], []
        for number in range(NUM_REQUESTS):
            in_flight.append(engine._submit(draw_request(rng, number), sampling, None, number))
            if rng.random() < 0.1:
                engine._loop.cancel(rng.choice(in_flight).group)
            while len(in_flight) > 24:
                engine._loop.step()
                in_flight = [p for p in in_flight if not p.group.is_finished]
            if number % 500 == 0:
                tree.ledger()
                assert [s.text for s in engine.score(canary, sampling=sampling).samples] == expected
                gc.collect()
                memory.append((rss_bytes(), len(os.listdir("/proc/self/fd")), threading.active_count()))
        for pending in in_flight:
            engine._loop.drive_until(pending.group)
        tree.clear()
        assert tree.ledger().free == 64
        assert engine.stats.num_preemptions > 0
    growth = (memory[-1][0] - memory[len(memory) // 2][0]) / 2**20 / (NUM_REQUESTS / 2 / 1000)
    print(f"RSS growth {growth:.3f} MiB per 1,000 requests; preemptions {engine.stats.num_preemptions}; steps {engine.stats.num_steps}")
    assert growth < 1.0
    assert {m[1:] for m in memory[2:]} == {memory[2][1:]}

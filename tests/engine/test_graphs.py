"""Captured decode steps, under Triton's interpreter: a tape with frozen arguments stands for a CUDA graph, the C++ engine is the oracle."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import write_tiny_model

from spct import Engine, SamplingParams
from spct.assembly import assemble
from spct.config import EngineConfig
from spct.runner.graphs import GraphedRunner, is_decode, padded

ROOT = Path(__file__).parents[2]

# Groups come and go, grow past a page and draw in different ways, so that buckets of 2 and 4 rows see several trees.
PROGRAM = """
import dataclasses, itertools, json, sys
from tape_graph import TapeCapture
from spct import Engine, SamplingParams
from spct.assembly import assemble
from spct.config import EngineConfig
from spct.runner.graphs import GraphedRunner

ROUNDS = (
    ((range(90, 121), SamplingParams(samples=3, max_tokens=4, top_p=0.8, top_k=40, seed=3, ignore_eos=True)),),
    (
        (range(40, 55), SamplingParams(samples=2, max_tokens=6, seed=7, ignore_eos=True)),
        (range(60, 69), SamplingParams(samples=2, max_tokens=3, temperature=0.7, ignore_eos=True)),
    ),
    ((range(50, 59), SamplingParams(samples=2, max_tokens=4, min_tokens=3)),),
)

def texts(engine):
    found = []
    arrivals = itertools.count()
    for one_round in ROUNDS:
        groups = [engine._judging.prepare_generation(list(ids), sampling, next(arrivals)) for ids, sampling in one_round]
        for group in groups:
            engine._loop.submit(group)
        for group in groups:
            engine._loop.drive_until(group)
            found += [[s.token_ids, s.logprobs, s.meta_logits] for s in group.sequences]
    return found

options = {"device": "cpu", "kv_memory": "2MiB", "num_threads": 1}
with Engine.from_pretrained(sys.argv[1], backend="cpu", **options) as engine:
    expected = texts(engine)
config = EngineConfig.create({"backend": "triton", **options})
parts = assemble(sys.argv[1], config)
runner = GraphedRunner(parts.model.decoder, parts.runner.kv, backend="triton", deterministic=True, capture=TapeCapture())
with Engine(dataclasses.replace(parts, runner=runner), config) as engine:
    found = texts(engine)
json.dump({"expected": expected, "found": found, "captures": runner.num_captures, "replays": runner.num_replays}, sys.stdout)
"""


def run(program, folder):
    path = os.pathsep.join(str(ROOT / root) for root in ("engine", "kernels", "tests/helpers"))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPCT_")}
    command = [sys.executable, "-W", "ignore", "-c", program, str(folder)]
    return subprocess.run(command, env={**kept, "PYTHONPATH": path, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False)


def test_replayed_steps_give_the_tokens_of_the_cpu_engine(tmp_path):
    done = run(PROGRAM, write_tiny_model(tmp_path / "model", meta_head=True))
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout)
    for (tokens, logprobs, meta), (expected, exact, scores) in zip(report["found"], report["expected"], strict=True):
        assert tokens == expected
        assert logprobs == pytest.approx(exact, abs=2e-4)
        assert meta == pytest.approx(scores, abs=2e-4)
    # 3 steps of the first round, 5 of the second, the last one of the third, whose others forbid tokens.
    assert report["replays"] == 9
    # Two buckets (4 and 2 rows), each captured once: the second round's tree, of 4 programs, fits the launches of the first one's 3.
    assert report["captures"] == 2


def test_a_capture_that_fails_leaves_plain_steps(tmp_path):
    folder, ids = write_tiny_model(tmp_path / "model"), list(range(40, 55))
    sampling = SamplingParams(samples=3, max_tokens=6, seed=7, ignore_eos=True)
    config = EngineConfig.create({"device": "cpu", "backend": "cpu", "kv_memory": "2MiB"})
    calls = []

    def capture(run):
        calls.append(run())  # what it wrote is written again
        raise RuntimeError("no room for a graph")

    with Engine.from_pretrained(folder, device="cpu", backend="cpu", kv_memory="2MiB") as engine:
        expected = engine.generate(ids, sampling)
    parts = assemble(str(folder), config)
    runner = GraphedRunner(parts.model.decoder, parts.runner.kv, backend="cpu", deterministic=True, capture=capture)
    with Engine(dataclasses.replace(parts, runner=runner), config) as engine, pytest.warns(RuntimeWarning, match="no room for a graph"):
        assert engine.generate(ids, sampling) == expected
    assert len(calls) == 1
    assert (runner.num_captures, runner.num_replays) == (0, 0)


def sequence(drawn, min_tokens=0):
    return SimpleNamespace(token_ids=[5] * drawn, group=SimpleNamespace(sampling=SimpleNamespace(min_tokens=min_tokens)))


def step(num_rows, draw_rows, sequences, reads=()):
    layout = SimpleNamespace(num_rows=num_rows)
    return SimpleNamespace(layout=layout, reads=list(reads), draw_rows=draw_rows, draws=sequences)


def test_only_a_plain_decode_is_a_graph():
    two = [sequence(1), sequence(4)]
    assert is_decode(step(2, [0, 1], two), 2)
    assert not is_decode(step(2, [0, 1], two), 1), "too many rows"
    assert not is_decode(step(2, [1, 0], two), 2), "draws in another order than the rows"
    assert not is_decode(step(3, [0, 2], two), 8), "rows of a prefill beside"
    assert not is_decode(step(2, [0, 1], two, reads=two[:1]), 8), "reads"
    assert not is_decode(step(2, [0, 1], [sequence(1), sequence(0)]), 8), "the end of a prompt"
    assert not is_decode(step(2, [0, 1], [sequence(1), sequence(4, min_tokens=5)]), 8), "tokens that are forbidden for now"
    assert is_decode(step(2, [0, 1], [sequence(1), sequence(5, min_tokens=5)]), 8)
    assert not is_decode(step(0, [], []), 8)
    assert not is_decode(SimpleNamespace(layout=None), 8)


def test_rows_beyond_the_steps_own_repeat_the_last_one():
    assert padded(np.array([3, 1, 2]), 5).tolist() == [3, 1, 2, 2, 2]
    assert padded(np.array([3]), 1).tolist() == [3]

"""Prefill, decode and the fan-out of one prompt into k samples, through `Engine.generate`; the model was checked against transformers."""

from __future__ import annotations

import itertools

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from spct import Engine, SamplingParams
from spct.benchmark.texts import fresh_prompt

PROMPT = tuple(range(3, 259))
VOCABULARY = 970
NEW = 16
_turn = itertools.count(1)


def cold() -> tuple[int, ...]:
    """A prompt that no cached prefix helps with."""
    return fresh_prompt(PROMPT, VOCABULARY, next(_turn))


def sampling(samples: int, new: int) -> SamplingParams:
    """k samples of a fixed length."""
    return SamplingParams(samples=samples, max_tokens=new, temperature=1.0, top_p=0.95, ignore_eos=True)


def timed(benchmark: BenchmarkFixture, engine: Engine, prompt: tuple[int, ...] | None, params: SamplingParams) -> None:
    """Times calls of `generate`: each with a fresh prompt, or all with the same one."""
    made = []

    def call(token_ids: tuple[int, ...]) -> None:
        made.append(engine.generate(token_ids, params))

    benchmark.extra_info.update({"prompt": len(PROMPT), "samples": params.samples, "tokens": params.samples * params.max_tokens})
    benchmark.pedantic(call, setup=lambda: ((cold() if prompt is None else prompt,), {}), rounds=10, warmup_rounds=1)
    assert all([len(g.token_ids) for g in generations] == [params.max_tokens] * params.samples for generations in made)


def test_prefill(benchmark: BenchmarkFixture, engine: Engine) -> None:
    """A cold prompt to its first token."""
    benchmark.group = "prefill"
    timed(benchmark, engine, None, sampling(1, 1))


@pytest.mark.parametrize("samples", [1, 8, 32])
def test_decode(benchmark: BenchmarkFixture, engine: Engine, samples: int) -> None:
    """Steps of k rows behind a cached prompt."""
    benchmark.group = f"decode {NEW} tokens"
    prompt = cold()
    engine.generate(prompt, sampling(1, 1))
    prefilled = engine.stats.num_rows
    engine.generate(prompt, sampling(samples, NEW))
    assert engine.stats.num_rows - prefilled == samples * (NEW - 1), "the prompt was computed again"
    timed(benchmark, engine, prompt, sampling(samples, NEW))


@pytest.mark.parametrize("samples", [1, 8, 32])
def test_fan_out(benchmark: BenchmarkFixture, engine: Engine, samples: int) -> None:
    """A cold prompt and its k samples."""
    benchmark.group = f"prompt and {NEW} tokens"
    before = engine.stats.num_rows
    engine.generate(cold(), sampling(samples, NEW))
    assert engine.stats.num_rows - before == len(PROMPT) + samples * (NEW - 1), "the prompt was computed more than once"
    timed(benchmark, engine, None, sampling(samples, NEW))

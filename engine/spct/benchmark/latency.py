"""One prompt and its samples, timed from outside the engine as a caller sees it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass

from spct.benchmark.spread import Spread
from spct.benchmark.texts import fresh_prompt
from spct.engine import Engine
from spct.errors import BackendError
from spct.types import Generation, SamplingParams


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one prompt with its samples.

    prefill      from the call to the first token of all samples
    decode       from there to the end
    num_decoded  tokens after the first of each sample
    """

    prefill: Spread
    decode: Spread
    num_decoded: int

    @property
    def total(self) -> Spread:
        """Prefill and decode together."""
        return Spread.of([a + b for a, b in zip(self.prefill.values, self.decode.values, strict=True)])

    @property
    def decode_rate(self) -> Spread:
        """Tokens per second over all samples, after the first token of each."""
        return Spread.of([self.num_decoded / seconds for seconds in self.decode.values])


def measure_latency(
    engine: Engine, token_ids: Sequence[int], vocab_size: int, sampling: SamplingParams, *, repeats: int, warmup: int
) -> Latency:
    """Times `repeats` prompts, none of which shares a prefix with another.

    Raises: as `timed_call`.
    """
    runs = [timed_call(engine, fresh_prompt(token_ids, vocab_size, turn), sampling) for turn in range(warmup + repeats)]
    prefill, decode, _ = zip(*runs[warmup:], strict=True)
    return Latency(Spread.of(prefill), Spread.of(decode), sampling.samples * (sampling.max_tokens - 1))


def timed_call(engine: Engine, token_ids: Sequence[int], sampling: SamplingParams) -> tuple[float, float, list[Generation]]:
    """Seconds to the first token of all samples, seconds from there to the end, and the samples.

    A cold call ends with the first token; a second one finds the prompt in the cache and draws all of them, the first once
    more. The sum is that of one whole call and one draw.

    sampling  its `ignore_eos` must be set, so that lengths are fixed

    Raises: BackendError if a sample came out shorter than asked for; what the engine raises.
    """
    prefill, _ = _timed(engine, token_ids, dataclasses.replace(sampling, max_tokens=1))
    decode, generations = _timed(engine, token_ids, sampling)
    return prefill, decode, generations


def _timed(engine: Engine, token_ids: Sequence[int], sampling: SamplingParams) -> tuple[float, list[Generation]]:
    begin = time.perf_counter()
    generations = engine.generate(token_ids, sampling)
    seconds = time.perf_counter() - begin
    lengths = [len(g.token_ids) for g in generations]
    if lengths != [sampling.max_tokens] * sampling.samples:
        raise BackendError(f"expected {sampling.samples} samples of {sampling.max_tokens} tokens, got lengths {sorted(set(lengths))}")
    return seconds, generations

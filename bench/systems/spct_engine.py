"""This project's engine."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from protocol import Outcome, Run, arguments, serve

from spct import Engine, SamplingParams
from spct.benchmark.latency import timed_call
from spct.benchmark.machine import versions
from spct.cli.plan import plan_model
from spct.config import EngineConfig
from spct.limits import PAGE_SIZE


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="fp32")
    parser.add_argument("--kv-dtype", default="float32")


def main() -> None:
    """Serves runs."""
    options = arguments(_flags)
    if options.prepare:
        return

    def load() -> tuple[Callable[[Run], Outcome], dict[str, str]]:
        numerics = {"weights": options.weights, "kv_dtype": options.kv_dtype, "device": "cpu"}
        slot_bytes = plan_model(options.model, EngineConfig.create(numerics)).slot_bytes
        # What the case needs and a page for each sample; the other systems' memory is sized by the case too.
        pages = options.prompt_tokens // PAGE_SIZE + 2 + options.samples * (options.new // PAGE_SIZE + 3)
        engine = Engine.from_pretrained(
            options.model,
            num_threads=options.threads,
            max_batch=options.samples,
            kv_memory=pages * PAGE_SIZE * slot_bytes,
            **numerics,
        )

        def generate(run: Run) -> Outcome:
            sampling = SamplingParams(
                samples=run.samples,
                max_tokens=run.new,
                temperature=run.temperature,
                top_p=run.top_p,
                seed=run.seed,
                ignore_eos=True,
            )
            first, rest, generations = timed_call(engine, run.prompt, sampling)
            return Outcome(first, first + rest, [list(g.token_ids) for g in generations])

        return generate, versions()

    serve(options, load)


if __name__ == "__main__":
    main()

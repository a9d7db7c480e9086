"""OpenVINO GenAI: the continuous-batching pipeline with k return sequences, which share the prompt's cache blocks.

    python3 -m venv $PEERS_HOME/openvino && $PEERS_HOME/openvino/bin/pip install torch==2.13.0
    $PEERS_HOME/openvino/bin/pip install openvino-genai nncf optimum-intel && $PEERS_HOME/openvino/bin/pip uninstall -y torchvision

`--precision f32` makes it compute in fp32; by default it computes in bf16 where the CPU has that, whatever the weights are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from protocol import Outcome, Run, arguments, serve


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", choices=["fp32", "int8"], default="fp32")
    parser.add_argument("--precision", choices=["default", "f32"], default="default")
    parser.add_argument("--cache-gib", type=int, default=1)


def main() -> None:
    """Serves runs, or exports the model."""
    options = arguments(_flags)
    folder = Path(options.made) / f"openvino-{options.weights}"
    if options.prepare:
        if not (folder / "openvino_model.bin").exists():
            task = ("--task", "text-generation-with-past", "--weight-format", options.weights)
            command = [Path(sys.executable).parent / "optimum-cli", "export", "openvino", "--model", options.model, *task, folder]
            subprocess.run([str(word) for word in command], check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
        return
    import numpy as np
    import openvino
    import openvino_genai

    def load() -> tuple[Callable[[Run], Outcome], dict[str, str]]:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = True
        scheduler.max_num_batched_tokens = max(4096, options.prompt_tokens)
        scheduler.max_num_seqs = max(256, options.samples)
        scheduler.cache_size = options.cache_gib
        properties: dict[str, object] = {"INFERENCE_NUM_THREADS": options.threads}
        if options.precision == "f32":
            properties |= {"INFERENCE_PRECISION_HINT": openvino.Type.f32, "KV_CACHE_PRECISION": openvino.Type.f32}
        pipeline = openvino_genai.ContinuousBatchingPipeline(str(folder), scheduler, "CPU", properties)
        vocab_size = json.loads((Path(options.model) / "config.json").read_text())["vocab_size"]
        turn = iter(range(2**31))

        def generate(run: Run) -> Outcome:
            config = openvino_genai.GenerationConfig()
            config.max_new_tokens = config.min_new_tokens = run.new
            config.ignore_eos, config.num_return_sequences, config.rng_seed = True, run.samples, run.seed
            config.set_eos_token_id(vocab_size - 1)
            if run.temperature:
                config.do_sample, config.temperature, config.top_p = True, run.temperature, run.top_p
            prompt = openvino.Tensor(np.array([run.prompt], dtype=np.int64))
            begin = time.perf_counter()
            handle = pipeline.add_request(next(turn), prompt, config)
            first = None
            while pipeline.has_non_finished_requests():
                pipeline.step()
                first = first or time.perf_counter()
            outputs = handle.read_all()
            end = time.perf_counter()
            assert first is not None
            return Outcome(first - begin, end - begin, [list(map(int, output.generated_ids)) for output in outputs])

        return generate, {"openvino-genai": openvino_genai.get_version(), "openvino": openvino.get_version()}

    serve(options, load)


if __name__ == "__main__":
    main()

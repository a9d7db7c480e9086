"""Hugging Face transformers: `generate` with k return sequences, the prompt's cache made once or (plain) once for each of them.

python3 -m venv $PEERS_HOME/transformers && $PEERS_HOME/transformers/bin/pip install torch==2.13.0 transformers
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

from protocol import Outcome, Run, arguments, serve


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prefill", choices=["shared", "plain"], default="shared")


def main() -> None:
    """Serves runs."""
    options = arguments(_flags)
    if options.prepare:
        return
    import torch
    import transformers

    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()

    class Clock(transformers.StoppingCriteria):  # type: ignore[misc] # transformers is untyped
        """Never stops; notes when each token came."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool)

    def load() -> tuple[Callable[[Run], Outcome], dict[str, str]]:
        model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
        # Only what a run says decides how it samples.
        model.generation_config = transformers.GenerationConfig(pad_token_id=0)

        @torch.inference_mode()
        def generate(run: Run) -> Outcome:
            torch.manual_seed(run.seed)
            drawing = {"do_sample": True, "temperature": run.temperature, "top_p": run.top_p, "top_k": 0}
            fixed = {"max_new_tokens": run.new, "use_cache": True, **(drawing if run.temperature else {"do_sample": False})}
            clock, begin = Clock(), time.perf_counter()
            prompt = torch.tensor([run.prompt])
            if options.prefill == "shared":
                cache = transformers.DynamicCache(config=model.config)
                model(prompt[:, :-1], past_key_values=cache, logits_to_keep=1)
                cache.batch_repeat_interleave(run.samples)
                prompt = prompt.repeat(run.samples, 1)
                fixed["past_key_values"] = cache
            else:
                fixed["num_return_sequences"] = run.samples
            mask = torch.ones_like(prompt)
            out = model.generate(prompt, attention_mask=mask, stopping_criteria=transformers.StoppingCriteriaList([clock]), **fixed)
            end = time.perf_counter()
            return Outcome(clock.times[0] - begin, end - begin, out[:, len(run.prompt) :].tolist())

        return generate, {"transformers": transformers.__version__, "torch": torch.__version__}

    serve(options, load)


if __name__ == "__main__":
    main()

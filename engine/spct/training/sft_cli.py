"""The body of `spct train sft`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from spct.errors import ConfigError
from spct.training.ranks import current
from spct.training.sft import SftResult, run
from spct.training.sft_config import SftConfig

_COPIED = (
    "output", "model", "lora", "lora_alpha", "adapter", "tokenizer", "template", "steps", "warmup", "decay", "time_limit", "tokens", "seed",
    "lr", "optimizer", "domains", "prompts", "group", "easy_steps", "small_steps", "mixed_steps", "workers", "micro_batches", "save_every",
    "demonstrations", "epochs", "max_length", "skip_long", "prompt_weight", "device",
)  # fmt: skip


def main(args: argparse.Namespace) -> int:
    """Train as the flags say; return 0.

    Raises: ConfigError, CheckpointError, InputError, CapacityError as `run` does.
    """
    config = SftConfig(
        **{name: getattr(args, name) for name in _COPIED if name != "domains"}, domains=tuple(args.domains), bf16=not args.fp32
    )
    result: SftResult = run(config)
    if not current().is_first:
        return 0
    state = "finished" if result.finished else "stopped, resumable with the same command"
    if result.num_long:
        print(f"spct: {result.num_long} rows of {config.demonstrations} were too long and left out", file=sys.stderr)
    print(f"spct: {state} at step {result.step} of {result.steps}, loss {result.loss:.4f} per token; {config.output}", file=sys.stderr)
    if args.plot:
        plot(config.output / "metrics.jsonl", config.output / "loss.png")
    return 0


def plot(metrics: Path, target: Path) -> None:
    """Draw the smoothed loss against the tokens seen.

    Raises: ConfigError if matplotlib is not installed.
    """
    try:
        pyplot = importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        raise ConfigError(
            "--plot: expected matplotlib, which is not installed; install the extra spct[plot] or leave the flag out"
        ) from None
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots()
    axes.plot([row["tokens"] for row in rows], [row["smooth"] for row in rows])
    axes.set(xlabel="tokens", ylabel="loss per demonstration token", yscale="log")
    figure.savefig(target, dpi=120)
    pyplot.close(figure)

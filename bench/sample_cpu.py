"""The output head on the CPU: time per call, each row checked against the reference in the same process.

    python bench/sample_cpu.py [--threads N] [--repeats N]

Prints a card (what a call must move and compute), a table and, as the last line, one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import torch

from spct_kernels import fused_sample, pack
from spct_kernels.dispatch import cpu_level

SHAPES = [
    ("small vocabulary, many rows", 8192, 1009, 64),
    ("small vocabulary, wider", 8192, 1009, 256),
    ("decode, real vocabulary", 32, 151_936, 896),
    ("decode, one row", 1, 151_936, 896),
    ("draw alone, real vocabulary", 32, 151_936, 16),
]
DRAWS = {
    "greedy": {"temperature": 0.0},
    "plain": {},
    "temperature 0.7": {"temperature": 0.7},
    "top-p 0.95": {"top_p": 0.95},
    "top-k 50": {"top_k": 50},
    "all": {"temperature": 0.7, "top_k": 50, "top_p": 0.9, "min_p": 0.01},
}
SPREAD = {"flat": 0.1, "usual": 2.0, "peaked": 8.0}
CHECKED_ROWS = 4


def make_call(rows: int, vocabulary: int, width: int, spread: float, draw: dict[str, float]) -> dict[str, object]:
    """Arguments of one call; the logits have a standard deviation of `spread`."""
    generator = torch.Generator().manual_seed(0)
    head = torch.randn((vocabulary, width), generator=generator) * spread / width**0.5
    return {
        "hidden": torch.randn((rows, width), generator=generator),
        "norm_weight": torch.ones(width),
        "lm_head": pack(head, "fp32"),
        "norm_eps": 1e-6,
        "temperature": torch.full((rows,), draw.get("temperature", 1.0)),
        "top_k": torch.full((rows,), int(draw.get("top_k", 0)), dtype=torch.int32),
        "top_p": torch.full((rows,), draw.get("top_p", 1.0)),
        "min_p": torch.full((rows,), draw.get("min_p", 0.0)),
        "seed": torch.arange(rows),
        "position": torch.arange(rows) * 7,
    }


def check(call: dict[str, object]) -> None:
    """Stops the benchmark unless the first rows agree with the reference."""
    ours = fused_sample(**call, backend="cpu")
    some = slice(0, CHECKED_ROWS)
    keys = ("hidden", "temperature", "top_k", "top_p", "min_p", "seed", "position")
    reference = fused_sample(**call | {key: call[key][some] for key in keys}, backend="reference")
    if not torch.equal(ours.token[some], reference.token) or not torch.allclose(ours.logprob[some], reference.logprob, atol=1e-4):
        raise SystemExit(f"wrong tokens: {ours.token[some].tolist()}, the reference gives {reference.token.tolist()}")


def milliseconds(call: dict[str, object], repeats: int) -> float:
    """The best of `repeats` calls: the machine's other work only ever adds."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        fused_sample(**call, backend="cpu")
        best = min(best, time.perf_counter() - start)
    return best * 1e3


def main() -> None:
    """Runs every shape with every draw, and the usual draws on flat and peaked logits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"CPU {platform.processor() or platform.machine()}, level {cpu_level()}, {options.threads} threads, torch {torch.__version__}\n")
    print(f"{'a call moves and computes':<30} {'rows':>6} {'V':>8} {'E':>5} {'head MiB':>9} {'GFLOP':>7}")
    for name, rows, vocabulary, width in SHAPES:
        print(
            f"{name:<30} {rows:>6} {vocabulary:>8} {width:>5} {vocabulary * width / 2**18:>9.1f} {2e-9 * rows * vocabulary * width:>7.2f}"
        )
    print(f"\n{'shape':<30} {'logits':<7} {'draw':<16} {'ms':>9} {'ns/logit':>9} {'GFLOP/s':>8}  checked")
    results = []
    for name, rows, vocabulary, width in SHAPES:
        for logits, spread in SPREAD.items():
            for draw, fields in DRAWS.items():
                if logits != "usual" and draw not in ("plain", "top-p 0.95"):
                    continue
                call = make_call(rows, vocabulary, width, spread, fields)
                check(call)
                ms = milliseconds(call, options.repeats)
                row = {
                    "shape": name,
                    "rows": rows,
                    "vocabulary": vocabulary,
                    "width": width,
                    "logits": logits,
                    "draw": draw,
                    "ms": round(ms, 3),
                }
                results.append(row)
                speed = 2e-6 * rows * vocabulary * width / ms
                print(f"{name:<30} {logits:<7} {draw:<16} {ms:>9.2f} {ms * 1e6 / rows / vocabulary:>9.2f} {speed:>8.1f}  yes")
    print(
        json.dumps({"bench": "sample_cpu", "level": cpu_level(), "threads": options.threads, "torch": torch.__version__, "rows": results})
    )


if __name__ == "__main__":
    main()

"""CPU kernels at the shapes of SmolLM2-135M and of the embedded model: checked against fp64, then timed beside plain torch.

    python bench/kernels_cpu.py [--threads N] [--quick]

Prints a card, a table (each timing row follows its own passing check) and, as the last line, one JSON document.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from spct_kernels import dispatch, linear, pack, shared_prefix_attention
from spct_kernels.attention_cases import Tree, decode_tree, make_inputs, prefill_tree
from spct_kernels.registry import ops

LINEAR_SHAPES = ((1536, 576), (576, 1536), (512, 192), (192, 512))
LINEAR_ROWS = (1, 8, 32, 256)
# (H, K, D, Dv), prefix, rows, suffix of each row
DECODE = (((9, 3, 64, 64), 1024, 32, 64), ((9, 3, 64, 64), 1024, 8, 64), ((6, 2, 32, 32), 300, 32, 50), ((6, 6, 32, 32), 300, 32, 50))
PREFILL = (((9, 3, 64, 64), 1024), ((6, 2, 32, 32), 300))


def seconds(function: Callable[[], object], budget: float) -> tuple[float, float]:
    """Median and spread (80th less 20th percentile) of one call, over about `budget` seconds."""
    function()
    begin = time.perf_counter()
    function()
    once = max(time.perf_counter() - begin, 1e-6)
    repeats = max(1, int(2e-4 / once))
    samples = []
    for _ in range(max(5, min(200, int(budget / (once * repeats))))):
        begin = time.perf_counter()
        for _ in range(repeats):
            function()
        samples.append((time.perf_counter() - begin) / repeats)
    cuts = statistics.quantiles(samples, n=5)
    return statistics.median(samples), cuts[3] - cuts[0]


def check(name: str, actual: torch.Tensor, exact: torch.Tensor, other: torch.Tensor) -> None:
    """The project's rule: at most twice torch's error, and a floor of 4 fp32 roundings."""
    error, allowed = ((values.double() - exact).abs().max().item() for values in (actual, other))
    floor = 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()
    if not error <= 2 * allowed + floor:
        raise SystemExit(f"{name}: error {error:.2e} against fp64, torch's own is {allowed:.2e}")


def linear_rows(budget: float) -> list[dict[str, object]]:
    """One row per shape, scheme and number of rows."""
    rows = []
    for outputs, inputs in LINEAR_SHAPES:
        weight = torch.randn(outputs, inputs)
        for scheme in ("fp32", "bf16"):
            packed = pack(weight, scheme)
            plain = packed.unpack()
            for count in LINEAR_ROWS:
                x = torch.randn(count, inputs)
                name = f"linear {outputs}x{inputs} {scheme} T={count}"
                check(name, linear(x, packed, backend="cpu"), x.double() @ plain.double().T, F.linear(x, plain))
                ours, spread = seconds(functools.partial(linear, x, packed, backend="cpu"), budget)
                torchs, _ = seconds(functools.partial(F.linear, x, plain), budget)
                rows.append(row(name, ours, spread, torchs, 2 * count * outputs * inputs, packed.nbytes))
    return rows


def attention_rows(budget: float) -> list[dict[str, object]]:
    """Decode with a shared prefix and prefill; torch's side is plain torch over gathered keys (`reference`)."""
    cases: list[tuple[str, Tree, tuple[int, int, int, int]]] = [
        (f"decode {heads[:3]} prefix={prefix} rows={count} suffix={suffix}", decode_tree(prefix, (suffix,) * count), heads)
        for heads, prefix, count, suffix in DECODE
    ]
    cases += [(f"prefill {heads[:3]} tokens={length}", prefill_tree(length), heads) for heads, length in PREFILL]
    (op,) = (op for op in ops() if op.name == "shared_prefix_attention")
    rows = []
    for name, tree, heads in cases:
        for dtype in (torch.float32, torch.bfloat16):
            inputs = make_inputs(tree, heads, dtype, torch.Generator().manual_seed(0))
            inputs["q"] = inputs["q"].float()
            label = f"{name} {'fp32' if dtype == torch.float32 else 'bf16'} KV"
            wide = {key: inputs[key].double() for key in ("q", "k_cache", "v_cache")}
            exact = shared_prefix_attention(**{**inputs, **wide}, backend="reference")
            plain = functools.partial(shared_prefix_attention, **inputs, backend="reference")
            run = functools.partial(shared_prefix_attention, **inputs, backend="cpu")
            check(label, run(), exact, plain())
            ours, spread = seconds(run, budget)
            torchs, _ = seconds(plain, budget)
            cost = op.cost(inputs)
            rows.append(row(label, ours, spread, torchs, cost.flops, cost.bytes))
    return rows


def row(name: str, ours: float, spread: float, torchs: float, flops: int, moved: int) -> dict[str, object]:
    """One line of the table."""
    return {
        "case": name,
        "us": ours * 1e6,
        "spread_us": spread * 1e6,
        "gflops": flops / ours / 1e9,
        "gbytes_per_s": moved / ours / 1e9,
        "torch_us": torchs * 1e6,
        "speedup": torchs / ours,
    }


def main() -> None:
    """Runs the suite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="a tenth of the time per row")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    budget = 0.05 if options.quick else 0.5
    card = {
        "suite": "kernels_cpu",
        "machine": platform.machine(),
        "level": dispatch.cpu_level(),
        "threads": options.threads,
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(" | ".join(f"{name} {value}" for name, value in card.items()))
    print(f"{'case':60} {'p50 us':>10} {'p20..p80':>9} {'GFLOP/s':>9} {'GB/s':>7} {'torch us':>10} {'vs torch':>8}")
    rows = []
    for part in (linear_rows, attention_rows):
        for line in part(budget):
            rows.append(line)
            print(
                f"{line['case']:60} {line['us']:10.1f} {line['spread_us']:9.1f} {line['gflops']:9.1f} {line['gbytes_per_s']:7.1f} "
                f"{line['torch_us']:10.1f} {line['speedup']:7.2f}x",
                flush=True,
            )
    print(json.dumps({**card, "rows": rows}))


if __name__ == "__main__":
    main()

"""The Triton kernels on a GPU, with one command: correct first, then timed against the floor and against others.

    python bench/gpu.py --out DIR [--part correctness|attention|linear|head|step|engine]... [--quick] [--dry]

Every timing row follows its own passing check. Times are medians of CUDA graph replays with a cold L2; the floor is the slower of bytes
at the bandwidth and FLOPs at the tensor peak, both measured in the same run. Prints a card, tables, and as the last line one JSON
document, which is written to DIR/gpu.json, too. --dry runs the checks alone, on tiny shapes, on a CPU under Triton's interpreter;
without a device the floors of the real shapes are printed as what they are: predictions.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if "--dry" in sys.argv:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch
import torch.nn.functional as F
import triton
from gpu_checks import CheckFailedError, close, registered, repeats
from gpu_rivals import attention_rivals, generate_with_transformers, sampled_with_torch
from gpu_shapes import DTYPES, LAYERS, Batch, Grid, ModelShape, attention_inputs, head_inputs, linear_inputs
from gpu_timing import H100, Peaks, Timer, measure_peaks
from torch import Tensor

from spct import Engine, SamplingParams
from spct_kernels import add_rms_norm, fused_sample, gated_activation, linear, registry, rope_append, shared_prefix_attention

PARTS = ("correctness", "attention", "linear", "head", "step", "engine")
REPEATS = 1000
Row = dict[str, Any]


class Bench:
    """One run: the device, what is measured on it, and its rows."""

    def __init__(self, grid: Grid, *, dry: bool) -> None:
        self.grid, self.dry = grid, dry
        self.device = torch.device("cpu" if dry else "cuda")
        self.timer = None if dry else Timer(grid.repeats)
        self.peaks: Peaks = H100 if self.timer is None else measure_peaks(self.timer)
        self.seed = int.from_bytes(os.urandom(4), "little")
        self.generator = torch.Generator(self.device).manual_seed(self.seed)

    def row(self, part: str, name: str, call: Callable[[], object], num_bytes: int, flops: int, rivals: dict[str, Any]) -> Row:
        """One checked call: its floor, and, on a device, its time and those of its rivals."""
        floor = self.peaks.floor_us(num_bytes, flops)
        row: Row = {
            "part": part,
            "name": name,
            "bytes": num_bytes,
            "flops": flops,
            "floor_us": floor,
            "floor_measured": self.peaks.measured,
        }
        if self.timer is None:
            return row
        row["us"] = self.timer.measure(call)
        row |= {"fraction": floor / row["us"], "GB/s": num_bytes / row["us"] / 1e3, "TFLOP/s": flops / row["us"] / 1e6}
        for rival, other in rivals.items():
            row[rival] = other if isinstance(other, str) else self._rival(other)
        return row

    def _rival(self, call: Callable[[], object]) -> float | str:
        assert self.timer is not None
        try:
            return self.timer.measure(call)
        except Exception as error:  # what others raise is their affair; it stands in the table
            return f"failed: {type(error).__name__}: {error}"[:160]


def correctness(bench: Bench) -> Iterator[Row]:
    """Every op's cases, and bitwise repeats."""
    count = 0
    for _ in registered(bench.device, bench.seed, bench.dry):
        count += 1
    yield {"part": "correctness", "name": f"{count} cases of {len(registry.ops())} ops, seed {bench.seed}", "ok": True}
    for name in repeats(bench.grid, bench.device, bench.generator, 2 if bench.dry else REPEATS):
        yield {"part": "correctness", "name": name, "ok": True}


def attention(bench: Bench) -> Iterator[Row]:
    """Shared-prefix decode over the grid."""
    op = next(op for op in registry.ops() if op.name == "shared_prefix_attention")
    for model in bench.grid.models:
        for batch in bench.grid.batches(model):
            inputs = attention_inputs(model, batch, bench.device, bench.generator)
            out = shared_prefix_attention(**inputs, backend="triton")
            exact = shared_prefix_attention(**inputs, backend="reference")
            name = f"{model.name} {batch.name}"
            close(name, out, _wide_attention(inputs), exact)
            rivals = attention_rivals(inputs, batch, compiles=not bench.dry)
            if callable(rivals["sdpa"]) and bench.dry:
                close(f"{name}, sdpa", rivals["sdpa"](), _wide_attention(inputs), exact)
            cost = op.cost(inputs | {"window": None})
            yield bench.row(
                "attention", name, lambda given=inputs: shared_prefix_attention(**given, backend="triton"), cost.bytes, cost.flops, rivals
            )  # fmt: skip


def _wide_attention(inputs: Row) -> Tensor:
    """The oracle: fp64 queries, keys and values."""
    wide = {name: inputs[name].double() for name in ("q", "k_cache", "v_cache")}
    return shared_prefix_attention(**{**inputs, **wide}, backend="reference")


def products(bench: Bench) -> Iterator[Row]:
    """A layer's four products at the batch's rows and at a prefill's, batch-invariant, beside cuBLAS."""
    for model in bench.grid.models:
        dtype = DTYPES[model.dtype]
        for name, outputs, width in model.projections:
            for rows in sorted({*bench.grid.rows, 5 if bench.dry else 4096}):
                inputs = linear_inputs((rows, outputs, width), dtype, bench.device, bench.generator)
                x, weight = inputs["x"], inputs["weight"]
                plain = weight.unpack().to(dtype)
                exact = x.double() @ plain.double().T
                label = f"{model.name} {name} {outputs}x{width} rows={rows}"
                close(label, linear(**inputs, backend="triton"), exact, (x.float() @ plain.float().T).to(dtype))
                num_bytes = weight.nbytes + (x.numel() + rows * outputs) * x.element_size()
                call = lambda given=inputs: linear(**given, backend="triton")  # noqa: E731 - beside its rival
                yield bench.row(
                    "linear", label, call, num_bytes, 2 * rows * outputs * width, {"cublas": lambda a=x, b=plain: F.linear(a, b)}
                )  # fmt: skip


def head(bench: Bench) -> Iterator[Row]:
    """The output head with and without top-p, and without the meta row, beside cuBLAS and torch's sampling."""
    for model in bench.grid.models:
        for rows in bench.grid.rows:
            for top_p in (1.0, 0.95):
                inputs = head_inputs(model, rows, top_p, bench.device, bench.generator)
                few = {
                    name: value[:4] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value for name, value in inputs.items()
                }
                got, expected = (fused_sample(**few, backend=backend) for backend in ("triton", "reference"))
                label = f"{model.name} rows={rows} top_p={top_p}"
                if not torch.equal(got.token, expected.token):
                    raise CheckFailedError(f"{label}: tokens {got.token.tolist()} instead of {expected.token.tolist()}")
                num_bytes = model.vocabulary * model.width * inputs["lm_head"].element_size() + 2 * inputs["hidden"].numel()
                flops = 2 * rows * model.vocabulary * model.width
                call = lambda given=inputs: fused_sample(**given, backend="triton")  # noqa: E731 - beside its rival
                without = inputs | {"meta_weight": None}
                rivals = {
                    "cublas and torch": lambda given=inputs: sampled_with_torch(given),
                    "without meta": lambda given=without: fused_sample(**given, backend="triton"),
                }
                if bench.dry:
                    sampled_with_torch(inputs)
                yield bench.row("head", label, call, num_bytes, flops, rivals)


def step(bench: Bench) -> Iterator[Row]:
    """A whole decode step: every layer's ops (one layer's weights, read again for each: they do not fit L2) and the head."""
    for model in bench.grid.models:
        layers = LAYERS[model.name]
        for batch in list(bench.grid.batches(model))[:: 1 if model.name not in bench.grid.in_full else 4]:
            run, num_bytes, flops = _step(bench, model, batch, layers)
            first, again = run(), run()
            if bool((first.token < 0).any()) or not torch.equal(first.logprob, again.logprob):
                raise CheckFailedError(f"step, {model.name} {batch.name}: not finite, or two runs differ")
            rivals: Row = {}
            if not bench.dry:
                rivals["transformers generate, 9 tokens, 4 layers"] = generate_with_transformers(model, batch, 4)
            yield bench.row("step", f"{model.name} {batch.name} layers={layers}", run, num_bytes, flops, rivals)


def _step(bench: Bench, model: ModelShape, batch: Batch, layers: int) -> tuple[Callable[[], Any], int, int]:
    """(the step, its bytes, its FLOPs)."""
    dtype, rows, device = DTYPES[model.dtype], batch.rows, bench.device
    weights = {
        name: linear_inputs((1, outputs, width), dtype, device, bench.generator)["weight"] for name, outputs, width in model.projections
    }  # fmt: skip
    inputs = attention_inputs(model, batch, device, bench.generator)
    k_cache, v_cache = inputs.pop("k_cache"), inputs.pop("v_cache")
    del inputs["q"]
    top = head_inputs(model, rows, 1.0, device, bench.generator)
    norm = torch.ones(model.width, device=device)
    angles = torch.rand((rows, model.head_dim // 2), device=device, generator=bench.generator)
    cos, sin = angles.cos(), angles.sin()
    slots = (torch.arange(1, rows + 1, device=device) * batch.suffix + batch.prefix - 1).int()
    heads = {"num_heads": model.num_heads, "num_kv_heads": model.num_kv_heads, "head_dim": model.head_dim}
    start = top.pop("hidden")

    def run() -> Any:
        residual, delta = start, torch.zeros_like(start)
        for _ in range(layers):
            normed, residual = add_rms_norm(delta, residual, norm, 1e-5, backend="triton")
            qkv = linear(normed, weights["qkv"], backend="triton")
            q = rope_append(qkv, cos, sin, slots, k_cache, v_cache, **heads, backend="triton")
            attended = shared_prefix_attention(q, k_cache, v_cache, **inputs, backend="triton")
            delta = linear(attended.flatten(1), weights["output"], backend="triton")
            normed, residual = add_rms_norm(delta, residual, norm, 1e-5, backend="triton")
            inner = gated_activation(linear(normed, weights["gate_up"], backend="triton"), model.activation, backend="triton")
            delta = linear(inner, weights["down"], backend="triton")
        return fused_sample(hidden=residual + delta, **top, backend="triton")

    elements = sum(weight.nbytes for weight in weights.values())
    used = batch.prefix + rows * batch.suffix
    kv_bytes = used * model.num_kv_heads * model.head_dim * 2 * k_cache.element_size()
    matrices = sum(outputs * width for _, outputs, width in model.projections)
    attended = 4 * rows * (batch.prefix + batch.suffix) * model.num_heads * model.head_dim
    head_weights = model.vocabulary * model.width
    num_bytes = layers * (elements + kv_bytes) + head_weights * top["lm_head"].element_size()
    return run, num_bytes, layers * (2 * rows * matrices + attended) + 2 * rows * head_weights


def engine(bench: Bench) -> Iterator[Row]:
    """A whole judgement by the embedded model: the CPU engine's votes, then how long k samples take."""
    if bench.dry:
        yield {"part": "engine", "name": "takes minutes under the interpreter: tests/engine/test_triton_engine.py judges a tiny model"}
        return
    query, responses = "Vera buys 6 packs of 9 pens. Then come 4 pens more. What is the total?", ["58 pens.", "68 pens."]
    sampling = SamplingParams(samples=32, max_tokens=256)
    judged = {}
    for name, options in (("cpu", {"device": "cpu", "backend": "cpu"}), ("ours", {"device": bench.device.type, "backend": "triton"})):
        with Engine.from_pretrained("embedded", **options, dtype="fp32", kv_memory="64MiB") as one:
            judged[name] = one.score(query, responses, sampling=sampling)
            if name == "ours":
                seconds = judged[name].timings
    tokens = {name: [sample.num_tokens for sample in judgement.samples] for name, judgement in judged.items()}
    same = sum(a.scores == b.scores for a, b in zip(judged["cpu"].samples, judged["ours"].samples, strict=True))
    if same < 0.9 * sampling.samples:
        raise CheckFailedError(f"engine: {same} of {sampling.samples} samples have the CPU engine's scores")
    yield {
        "part": "engine", "name": f"embedded, {sampling.samples} samples", "same_scores": same, "tokens": tokens["ours"],
        "timings": str(seconds),
    }  # fmt: skip


RUN = {"correctness": correctness, "attention": attention, "linear": products, "head": head, "step": step, "engine": engine}


def predictions() -> list[Row]:
    """Floors of the whole grid from bytes and FLOPs and the data sheet of an H100."""
    rows = []
    for model in Grid.choose(dry=False, quick=False).models:
        for batch in Grid.choose(dry=False, quick=False).batches(model):
            used = batch.prefix + batch.rows * batch.suffix
            num_bytes = used * model.num_kv_heads * model.head_dim * 2 * 2
            flops = 4 * batch.rows * (batch.prefix + batch.suffix) * model.num_heads * model.head_dim
            rows.append({"part": "predicted", "name": f"attention {model.name} {batch.name}", "floor_us": H100.floor_us(num_bytes, flops)})
    return rows


def show(row: Row) -> None:
    """One line of the table."""
    numbers = [f"{key} {value:.4g}" for key, value in row.items() if isinstance(value, float)]
    notes = [f"{key}: {value}" for key, value in row.items() if isinstance(value, str) and key not in ("part", "name")]
    print(f"{row['part']:12} {row['name']:60} {'  '.join([*numbers, *notes])}", flush=True)


def main() -> int:
    """Runs the command line; returns the exit status: 0, 1 after a failed check, 2 without a device."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.json")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part; may be repeated")
    parser.add_argument("--quick", action="store_true", help="one model, one batch")
    parser.add_argument("--dry", action="store_true", help="checks on tiny shapes on a CPU, no timings; floors of the real ones, predicted")
    options = parser.parse_args()
    if not options.dry and not torch.cuda.is_available():
        print("gpu: torch sees no CUDA device; --dry checks without one", file=sys.stderr)
        return 2
    bench = Bench(Grid.choose(dry=options.dry, quick=options.quick), dry=options.dry)
    card = {
        "device": "none (interpreter)" if options.dry else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
        "bytes_per_second": bench.peaks.bytes_per_second,
        "flops_per_second": bench.peaks.flops_per_second,
        "peaks": "measured" if bench.peaks.measured else "H100 data sheet: what is derived from them is a prediction",
    }
    print("  ".join(f"{key}: {value}" for key, value in card.items()))
    rows: list[Row] = []
    error = None
    try:
        for part in options.part or PARTS:
            for row in RUN[part](bench):
                rows.append(row)
                show(row)
    except CheckFailedError as failed:
        error = str(failed)
        print(f"FAILED {error}", file=sys.stderr)
    if options.dry:
        rows += predictions()
    document = json.dumps({"card": card, "rows": rows, "error": error})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(document + "\n")
    print(document)
    return 0 if error is None else 1


if __name__ == "__main__":
    sys.exit(main())

"""`spct bench`: latency, throughput and start-up of a judge on this machine, as a table or as JSON."""

from __future__ import annotations

import dataclasses
import shlex
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import msgspec
import torch

from spct.benchmark.floor import Floor, Peaks, Shape, floor_of
from spct.benchmark.latency import Latency, measure_latency
from spct.benchmark.machine import machine_card, measure_peaks, peak_rss_bytes, versions
from spct.benchmark.spread import Spread
from spct.benchmark.startup import measure_startup, startup_commands
from spct.benchmark.texts import generated_prompt, generated_requests
from spct.benchmark.throughput import measure_throughput
from spct.cli import options
from spct.cli.bench_options import PROMPT_TOKENS, parse_positive
from spct.cli.console import readable_bytes, readable_seconds, waiting
from spct.cli.exit_codes import EXIT_OK
from spct.cli.plan import ModelPlan, plan_model
from spct.config import EngineConfig
from spct.engine import Engine
from spct.errors import ConfigError
from spct.prompting import JudgePrompt
from spct.types import SamplingParams, VotingParams

_BASELINE = "import torch"
_Rows = list[tuple[str, ...]]


def main(args: Namespace) -> int:
    """Runs one benchmark and prints it.

    Raises: SpctError if the flags or the model can't be used, or if a run failed.
    """
    parse_positive("repeats", args.repeats)
    parse_positive("warmup", args.warmup, at_least=0)
    report, rows = {"latency": _latency, "throughput": _throughput, "startup": _startup}[args.bench](args)
    begun = {"bench": args.bench, "date": time.strftime("%Y-%m-%d"), "command": shlex.join(["spct", *sys.argv[1:]])}
    document = {**begun, "machine": machine_card(), "versions": versions(), **report}
    encoded = msgspec.json.encode(document)
    if args.output is not None:
        args.output.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
    if args.json:
        sys.stdout.buffer.write(encoded + b"\n")
        sys.stdout.flush()
    else:
        _print(document, rows)
    return EXIT_OK


def _latency(args: Namespace) -> tuple[dict[str, Any], _Rows]:
    sampling = _sampling(args)
    engine_options = _engine_options(args, sampling.samples)
    plan = plan_model(args.model, EngineConfig.create(engine_options))
    with waiting("loading"), Engine.from_pretrained(args.model, **engine_options) as engine:
        token_ids = _prompt(args, engine.prompt)
        with waiting("measuring"):
            latency = measure_latency(engine, token_ids, plan.spec.vocab_size, sampling, repeats=args.repeats, warmup=args.warmup)
        peak_rss = peak_rss_bytes()
    shape = Shape(len(token_ids), sampling.samples, sampling.max_tokens)
    report = {
        **_case(args, plan, sampling),
        "prompt_tokens": len(token_ids),
        "prefill_s": latency.prefill.as_json(),
        "decode_s": latency.decode.as_json(),
        "decode_tokens_per_s": latency.decode_rate.as_json(),
        "total_s": latency.total.as_json(),
        "peak_rss_bytes": peak_rss,
    }
    floor = None
    if plan.device.type == "cpu":
        with waiting("measuring the machine"):
            peaks = measure_peaks()
        floor = floor_of(plan.spec, shape, peaks, scheme=plan.dtypes.scheme, kv_dtype=_dtype_name(plan.kv_dtype))
        report |= {"peaks": dataclasses.asdict(peaks), "floor": _floor_json(floor, latency)}
        report |= {"peaks_unit": "bytes/s (read), operations/s (fp32, bf16, int8)"}
        return report, [*_latency_rows(latency, floor, peak_rss), ("peaks", _peaks_line(peaks))]
    return report, _latency_rows(latency, floor, peak_rss)


def _throughput(args: Namespace) -> tuple[dict[str, Any], _Rows]:
    sampling = _sampling(args)
    parse_positive("requests", args.requests)
    parse_positive("prompt-tokens", args.prompt_tokens)
    engine_options = _engine_options(args, 0)
    plan = plan_model(args.model, EngineConfig.create(engine_options))
    with waiting("loading"), Engine.from_pretrained(args.model, **engine_options) as engine:
        batches = [
            generated_requests(engine.prompt, args.requests, args.prompt_tokens, args.seed + turn)
            for turn in range(args.warmup + args.repeats)
        ]
        with waiting("measuring"):
            found = measure_throughput(engine, batches, sampling, VotingParams(), warmup=args.warmup)
    report = {
        **_case(args, plan, sampling),
        "requests": found.num_judgements,
        "generated_tokens": found.generated_tokens,
        "prefilled_tokens": found.prefilled_tokens,
        "seconds": found.seconds.as_json(),
        "judgements_per_s": found.judgement_rate.as_json(),
        "tokens_per_s": found.token_rate.as_json(),
        "peak_rss_bytes": peak_rss_bytes(),
    }
    rows: _Rows = [
        ("judgements per second", *_shown(found.judgement_rate)),
        ("tokens per second", *_shown(found.token_rate)),
        (f"{found.num_judgements} judgements", *_shown(found.seconds, " s")),
        ("tokens of a run", f"{found.prefilled_tokens:,} prefilled, {found.generated_tokens:,} written"),
        ("peak memory", readable_bytes(report["peak_rss_bytes"])),
    ]
    return report, rows


def _startup(args: Namespace) -> tuple[dict[str, Any], _Rows]:
    parse_positive("samples", args.samples)
    with waiting("measuring"):
        found = measure_startup(startup_commands(args.model, args.samples), repeats=args.repeats, warmup=args.warmup)
    baseline = found[_BASELINE].median
    ratios = {name: spread.median / baseline for name, spread in found.items()}
    report = {
        "model": args.model,
        "samples": args.samples,
        "repeats": args.repeats,
        "warmup": args.warmup,
        "seconds": {name: spread.as_json() for name, spread in found.items()},
        "ratio_to_import_torch": ratios,
    }
    rows: _Rows = [(name, *_shown(spread, " s"), f"{ratios[name]:.2f} x `{_BASELINE}`") for name, spread in found.items()]
    return report, rows


def _sampling(args: Namespace) -> SamplingParams:
    """Samples of a fixed length. Raises: ConfigError if a value is out of range."""
    return SamplingParams(
        samples=args.samples,
        temperature=args.temperature,
        top_p=args.top_p,
        max_tokens=args.max_tokens,
        seed=args.seed,
        ignore_eos=True,
    )


def _engine_options(args: Namespace, samples: int) -> dict[str, Any]:
    """The engine's options; a batch holds all samples of the prompt unless the flag says less."""
    given = {name: getattr(args, name) for name in ("kv_dtype", "num_threads", "max_batch") if getattr(args, name) is not None}
    return {"max_batch": max(EngineConfig().max_batch, samples), **options.engine_options(args), **given}


def _prompt(args: Namespace, prompt: JudgePrompt) -> tuple[int, ...]:
    """The token ids to prefill. Raises: ConfigError if there are none, or if the file can't be read."""
    text = args.prompt if args.prompt_file is None else _read(args.prompt_file)
    if text is None:
        return generated_prompt(prompt, parse_positive("prompt-tokens", args.prompt_tokens or PROMPT_TOKENS), args.seed)
    token_ids = prompt.encode_text(text)
    if not token_ids:
        raise ConfigError("--prompt: expected text, got nothing")
    return token_ids


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--prompt-file: {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--prompt-file: {path}: expected UTF-8, got something else at byte {error.start}") from None


def _case(args: Namespace, plan: ModelPlan, sampling: SamplingParams) -> dict[str, Any]:
    return {
        "model": args.model,
        "architecture": plan.spec.family,
        "parameters": plan.spec.num_parameters,
        "device": str(plan.device),
        "weights": plan.dtypes.scheme,
        "kv_dtype": _dtype_name(plan.kv_dtype),
        "sampling": {name: getattr(sampling, name) for name in ("samples", "max_tokens", "temperature", "top_p", "seed")},
        "repeats": args.repeats,
        "warmup": args.warmup,
    }


def _floor_json(floor: Floor, latency: Latency) -> dict[str, float]:
    """The floor, and what fraction of it was reached (1: nothing can be faster)."""
    return {
        "prefill_s": floor.prefill_s,
        "decode_s": floor.decode_s,
        "total_s": floor.total_s,
        "fraction_prefill": floor.prefill_s / latency.prefill.median,
        "fraction_total": floor.total_s / latency.total.median,
    }


def _latency_rows(latency: Latency, floor: Floor | None, peak_rss: int) -> _Rows:
    def against(seconds: float | None, spread: Spread) -> str:
        return "" if seconds is None else f"floor {readable_seconds(seconds)}: {seconds / spread.median:.0%} of it reached"

    prefill, decode, total = (None, None, None) if floor is None else (floor.prefill_s, floor.decode_s, floor.total_s)
    return [
        ("prefill (to the first token of all)", *_shown(latency.prefill, " s"), against(prefill, latency.prefill)),
        ("decode", *_shown(latency.decode_rate, " tokens/s"), against(decode, latency.decode)),
        ("total", *_shown(latency.total, " s"), against(total, latency.total)),
        ("peak memory", readable_bytes(peak_rss)),
    ]


def _peaks_line(peaks: Peaks) -> str:
    fp32, bf16, int8 = (f"{rate / 1e9:.0f}" for rate in (peaks.fp32, peaks.bf16, peaks.int8))
    return f"reads {peaks.read / 1e9:.1f} GB/s; fp32 {fp32}, bf16 {bf16} GFLOP/s; int8 {int8} GOP/s"


def _shown(spread: Spread, unit: str = "") -> tuple[str, str]:
    """Median, and smallest to largest."""
    return f"{spread.median:.4g}{unit}", f"{spread.low:.4g} to {spread.high:.4g}"


def _print(document: dict[str, Any], rows: _Rows) -> None:
    machine = document["machine"]
    lines = [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads, level {machine['level']}"]
    if "sampling" in document:
        drawn = document["sampling"]
        lines += [
            f"{document['model']}: {document['parameters']:,} parameters, weights {document['weights']}, KV {document['kv_dtype']}",
            f"{drawn['samples']} samples of {drawn['max_tokens']} tokens, temperature {drawn['temperature']:g}, top-p {drawn['top_p']:g}",
        ]
    lines += [f"medians of {document['repeats']}, smallest to largest", ""]
    first, second = (max(len(row[i]) for row in rows if i < 1 or len(row) > 2) for i in (0, 1))
    lines += [f"{row[0]:<{first}}  {row[1]:<{second}}  {'  '.join(row[2:])}".rstrip() for row in rows]
    print("\n".join(lines))


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

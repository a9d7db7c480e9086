"""`spct score --dry-run` and `spct rank --dry-run`: every row is read, rendered and counted; no weights are loaded, nothing is judged."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.table import Table

from spct.cli.console import readable_bytes, readable_seconds
from spct.cli.exit_codes import EXIT_ERROR_ROWS, EXIT_OK
from spct.cli.jsonl import InputRow, read_rows
from spct.cli.plan import ModelPlan, num_distinct_tokens, plan_model
from spct.cli.source import Source
from spct.config import EngineConfig
from spct.errors import SpctError
from spct.prompting import JudgePrompt
from spct.ranking import RankPlan
from spct.types import SamplingParams, ScoreRequest, VotingParams
from spct.voting import content_key, orders, resolve_filter

# A step of the loop costs this much beside its arithmetic, per layer: dispatch and Python, measured on a 2-core CPU.
_LAYER_OVERHEAD_S = 0.3e-3


@dataclass(slots=True)
class Totals:
    """Sums over the rows.

    generated_tokens  at most: every sample up to its `max_tokens`
    kv_bytes          of the largest request, with all its samples at once
    seconds           rough, for `generated_tokens`: if samples end early it takes less
    """

    requests: int = 0
    error_rows: int = 0
    samples: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    kv_bytes: int = 0
    seconds: float = 0.0


def dry_run(
    source: Source,
    model: str,
    engine_options: Mapping[str, Any],
    sampling: SamplingParams,
    voting: VotingParams,
    *,
    group_size: int | None = None,
) -> int:
    """Prints a line for every row and the totals (JSONL; a table where stdout is a terminal). Returns the exit code.

    group_size  responses that a ranking shows together at most; None: rows are judged, not ranked

    Raises: SpctError if the model or an option can't be used.
    """
    plan = plan_model(model, EngineConfig.create(engine_options))
    resolve_filter(voting.filter, plan.meta_pooling is not None or plan.config.meta_model is not None)
    prompt = JudgePrompt(plan.folder, template=plan.config.judge_template, chat_template_kwargs=plan.config.chat_template_kwargs)
    ranking = None if group_size is None else _rank_plan(plan, prompt, sampling, voting, group_size)
    totals = Totals()
    as_table = sys.stdout.isatty()
    errors: list[dict[str, Any]] = []
    for row in read_rows(source):
        line = _line(row, plan, prompt, sampling, voting, ranking)
        _add(totals, line)
        if line["error"] is not None and len(errors) < 20:
            errors.append(line)
        if not as_table:
            sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")
    totals.seconds = round(_seconds(plan, totals), 3)
    if as_table:
        _print(totals, plan, errors)
    else:
        sys.stdout.buffer.write(msgspec.json.encode({"totals": asdict(totals)}) + b"\n")
        sys.stdout.flush()
    return EXIT_ERROR_ROWS if totals.error_rows else EXIT_OK


def _line(
    row: InputRow, plan: ModelPlan, prompt: JudgePrompt, sampling: SamplingParams, voting: VotingParams, ranking: RankPlan | None
) -> dict[str, Any]:
    line: dict[str, Any] = {"line": row.line, "id": row.id, "error": None}
    try:
        if row.request is None:
            assert row.error is not None
            raise row.error
        if ranking is None:
            line.update(_count([row.request], plan, prompt, sampling, voting))
        else:
            parts = ranking.divide(row.request)
            line.update(_count([part.request for part in parts], plan, prompt, sampling, voting), groups=len(parts))
    except SpctError as error:
        line["error"] = {"type": type(error).__name__, "message": str(error)[:1000], "line": row.line}
    return line


def _rank_plan(plan: ModelPlan, prompt: JudgePrompt, sampling: SamplingParams, voting: VotingParams, group_size: int) -> RankPlan:
    """How the engine would divide a request.

    Raises: ConfigError if the group size makes no sense.
    """

    def check(request: ScoreRequest) -> None:
        plan.limits.check_samples(sampling.samples if request.samples is None else request.samples)
        plan.limits.check_fits(len(prompt.encode(request, max_tokens=plan.limits.max_context)), sampling.max_tokens)

    return RankPlan(sampling, voting, group_size, check)


def _count(
    requests: Sequence[ScoreRequest], plan: ModelPlan, prompt: JudgePrompt, sampling: SamplingParams, voting: VotingParams
) -> dict[str, int]:
    """What a row asks for: the request itself, or the parts of a ranking, which share what their prompts begin with."""
    samples = generated = 0
    prompts: list[tuple[int, ...]] = []
    for request in requests:
        num_samples = request.samples if request.samples is not None else sampling.samples
        seed = request.seed if request.seed is not None else sampling.seed
        plan.limits.check_samples(num_samples)
        shown = dict.fromkeys(orders(voting.orders, len(request.responses), num_samples, seed, content_key(request)))
        own = [prompt.encode(request, order) for order in shown]
        plan.limits.check_fits(max(map(len, own)), sampling.max_tokens)
        samples += num_samples
        generated += num_samples * min(sampling.max_tokens, plan.limits.max_context - min(map(len, own)))
        prompts += own
    prefilled = num_distinct_tokens(prompts)
    return {
        "samples": samples,
        "orders": len(prompts),
        "prompt_tokens": max(map(len, prompts)),
        "prefilled_tokens": prefilled,
        "generated_tokens": generated,
        "kv_bytes": (prefilled + generated) * plan.slot_bytes,
    }


def _add(totals: Totals, line: Mapping[str, Any]) -> None:
    if line["error"] is not None:
        totals.error_rows += 1
        return
    totals.requests += 1
    totals.samples += line["samples"]
    totals.prefilled_tokens += line["prefilled_tokens"]
    totals.generated_tokens += line["generated_tokens"]
    totals.kv_bytes = max(totals.kv_bytes, line["kv_bytes"])


def _seconds(plan: ModelPlan, totals: Totals) -> float:
    """Arithmetic at the speed of a matrix product measured now, and the fixed cost of the steps."""
    rows = max(1, min(plan.config.max_batch, totals.samples))
    flops_per_token = 2 * plan.spec.num_parameters
    decode = totals.generated_tokens * flops_per_token / _measured_flops(plan, rows)
    prefill = totals.prefilled_tokens * flops_per_token / _measured_flops(plan, plan.config.max_prefill_tokens)
    steps = totals.generated_tokens / rows + totals.prefilled_tokens / plan.config.max_prefill_tokens
    return decode + prefill + steps * plan.spec.num_layers * _LAYER_OVERHEAD_S


def _measured_flops(plan: ModelPlan, rows: int) -> float:
    """FLOP/s of [rows, E] x [E, I] in the weights' format, over about 50 ms."""
    inner, outer = plan.spec.hidden_dim, plan.spec.layers[0].mlp.intermediate_dim
    dtype = torch.float32 if plan.device.type == "cpu" else plan.dtypes.weights
    x, w = torch.ones(rows, inner, dtype=dtype, device=plan.device), torch.ones(inner, outer, dtype=dtype, device=plan.device)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < 0.05:
        # Reading one number waits for a device that runs ahead.
        float((x @ w)[0, 0])
        count += 1
    return 2 * rows * inner * outer * count / (time.perf_counter() - start)


def _print(totals: Totals, plan: ModelPlan, errors: list[dict[str, Any]]) -> None:
    console = Console(file=sys.stdout, highlight=False)
    table = Table.grid(padding=(0, 2))
    for name, value in (
        ("requests", f"{totals.requests:,} with {totals.samples:,} samples"),
        ("error rows", f"{totals.error_rows:,}"),
        ("prompt tokens", f"{totals.prefilled_tokens:,} to prefill at most"),
        ("written tokens", f"{totals.generated_tokens:,} at most"),
        ("KV memory", f"{readable_bytes(totals.kv_bytes)} for the largest request, {plan.slot_bytes:,} bytes per token"),
        ("time", f"about {readable_seconds(totals.seconds)} at most, on {plan.device}"),
    ):
        table.add_row(name, value)
    console.print(table)
    for line in errors:
        console.print(f"line {line['line']}: {line['error']['message']}", markup=False, soft_wrap=True)

"""`spct info`: what a model is, what it needs, and how many samples fit."""

from __future__ import annotations

import dataclasses
import sys
from argparse import Namespace
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from spct.checkpoint.weights import weights_bytes
from spct.cli import options
from spct.cli.console import readable_bytes
from spct.cli.exit_codes import EXIT_OK
from spct.cli.plan import ModelPlan, plan_model
from spct.config import EngineConfig
from spct.limits import PAGE_SIZE
from spct.prompting.judge import FOLDER_TEMPLATE
from spct.types import SamplingParams


def main(args: Namespace) -> int:
    """Prints one model's card. Raises: ConfigError, CheckpointError or CapacityError if no engine could run it."""
    card = model_card(args.model, plan_model(args.model, EngineConfig.create(options.engine_options(args))))
    if args.json:
        sys.stdout.buffer.write(msgspec.json.encode(card) + b"\n")
        sys.stdout.flush()
    else:
        _print(card)
    return EXIT_OK


def model_card(name: str, plan: ModelPlan) -> dict[str, Any]:
    """Everything that `spct info` tells, as JSON would hold it."""
    spec, config = plan.spec, plan.config
    own_template = FOLDER_TEMPLATE if (plan.folder / FOLDER_TEMPLATE).is_file() else "default"
    return {
        "model": name,
        "folder": str(plan.folder),
        "architecture": spec.family,
        "parameters": spec.num_parameters,
        "layers": spec.num_layers,
        "hidden_dim": spec.hidden_dim,
        "heads": spec.num_heads,
        "kv_heads": sorted({layer.kv.num_kv_heads for layer in spec.layers}),
        "head_dim": spec.head_dim,
        "vocab_size": spec.vocab_size,
        "windows": sorted({layer.kv.window for layer in spec.layers if layer.kv.window is not None}),
        "max_context": plan.limits.max_context,
        "meta_head": plan.meta_pooling,
        "template": config.judge_template or own_template,
        "device": str(plan.device),
        "weights": plan.dtypes.scheme,
        "weights_bytes": weights_bytes(spec, plan.dtypes, plan.device),
        "activations": _dtype_name(plan.dtypes.activations),
        "kv_dtype": _dtype_name(plan.kv_dtype),
        "kv_bytes_per_token": plan.slot_bytes,
        "kv_memory": plan.limits.num_pages * PAGE_SIZE * plan.slot_bytes,
        "kv_tokens": plan.limits.num_pages * PAGE_SIZE,
        "options": {**dataclasses.asdict(config), "chat_template_kwargs": dict(config.chat_template_kwargs)},
        "fits": [_fit(plan, share) for share in (8, 4, 2)],
    }


def _fit(plan: ModelPlan, share: int) -> dict[str, int]:
    """How many samples of the default length fit beside a prompt of 1 / `share` of the context."""
    prompt_len = max(1, plan.limits.max_context // share)
    max_tokens = max(1, min(SamplingParams().max_tokens, plan.limits.max_context - prompt_len))
    return {"prompt_tokens": prompt_len, "max_tokens": max_tokens, "samples": plan.samples_at_once(prompt_len, max_tokens)}


def _print(card: dict[str, Any]) -> None:
    console = Console(file=sys.stdout, highlight=False)
    console.print(f"[bold]{card['model']}[/bold]  {card['architecture']}, {card['parameters']:,} parameters", soft_wrap=True)
    console.print(_grid(_described(card)))
    console.print("\nengine options (environment variable: SPCT_ and the name in capitals)")
    console.print(_grid([(name, str(value)) for name, value in card["options"].items()]))


def _described(card: dict[str, Any]) -> list[tuple[str, str]]:
    shape = f"{card['layers']} layers, {card['hidden_dim']} wide, {card['heads']} heads of {card['head_dim']}"
    kv_heads = "/".join(map(str, card["kv_heads"]))
    windows = f", windows of {'/'.join(map(str, card['windows']))}" if card["windows"] else ""
    weights = f"weights {card['weights']} ({readable_bytes(card['weights_bytes'])})"
    tokens = f"{card['kv_tokens']:,} tokens of {card['kv_bytes_per_token']:,} bytes ({card['kv_dtype']})"
    return [
        ("decoder", f"{shape}, {kv_heads} KV heads, vocabulary {card['vocab_size']:,}{windows}"),
        ("context", f"{card['max_context']:,} tokens"),
        ("meta-RM head", card["meta_head"] or "none"),
        ("template", card["template"]),
        ("device", f"{card['device']}, {weights}, arithmetic {card['activations']}"),
        ("KV memory", f"{readable_bytes(card['kv_memory'])} for {tokens}"),
        *(("k that fits", _fit_line(**fit)) for fit in card["fits"]),
    ]


def _fit_line(prompt_tokens: int, max_tokens: int, samples: int) -> str:
    return f"{samples:,} samples at once: prompt of {prompt_tokens:,} tokens, {max_tokens:,} written each"


def _grid(rows: list[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(name, value)
    return table


def _dtype_name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")

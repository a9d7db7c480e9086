"""`spct train meta`: its flags, and its body. Imports nothing heavy before a run begins."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from spct.errors import ConfigError

_COPIED = (
    "output", "form", "model", "adapter", "weights", "start", "samples", "temperature", "max_tokens", "seed", "pooling", "joint", "within",
    "anchor", "anchored", "epochs", "batch", "lr", "head_lr", "weight_decay", "device", "dtype", "micro_tokens", "workers", "save_every",
    "time_limit",
)  # fmt: skip
_RANKING = {"AUC": "auc", "within items": "auc_within", "within items by log-probability": "logprob_auc_within", "ECE": "ece"}
_DATA = {"items": "items", "validation": "validation", "data_seed": "seed", "data": "data", "domains": "domains"}


def add_meta_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `spct train meta`."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR",
        help="samples, DIR/fused and DIR/scalar, DIR/report.json; an interrupted run resumes there",
    )  # fmt: skip
    parser.add_argument(
        "--form", choices=("fused", "scalar", "both"),
        help="fused: a head on the judge's hidden state; scalar: a model of its own (default fused); both learn from the same samples",
    )  # fmt: skip
    parser.add_argument("--model", metavar="M", help='the judge: "embedded" (default), a folder, or a hub id')
    parser.add_argument(
        "--adapter", type=Path, metavar="DIR", help="a LoRA folder on the judge, merged into DIR/judge before anything else"
    )
    _add_samples(parser.add_argument_group("samples"))
    _add_learning(parser.add_argument_group("learning"))
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", metavar="D", help="of engine and trainer: auto, cpu, cuda, cuda:N (default auto)")
    machine.add_argument("--dtype", metavar="D", help="of the engine: auto, fp32, bf16, fp16 (default auto); the trainer computes in fp32")
    machine.add_argument("--weights", metavar="SCHEME", help="of the engine, as in `spct score`: int8 draws faster (default auto)")
    machine.add_argument("--micro-tokens", type=int, metavar="N", help="tokens of one pass of the trainer (default 4096)")
    machine.add_argument("--workers", type=int, metavar="N", help="threads of each process (default 2)")
    machine.add_argument("--save-every", type=float, metavar="SECONDS", help="between states on disk (default 60)")
    machine.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop the training of a form resumably after so long")
    report = parser.add_argument_group("report")
    report.add_argument("--votes", type=int, default=32, metavar="K", help="samples per held-out item in the report (default 32)")
    report.add_argument("--no-report", action="store_true", help="train only")
    report.add_argument("--plot", action="store_true", help="also draw DIR/report.png and the training of each form (needs matplotlib)")


def _add_samples(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--items", type=int, metavar="N", help="items to train on (default 1500)")
    group.add_argument("--validation", type=int, metavar="N", help="other items, held out for the report (default 300)")
    group.add_argument("--samples", type=int, metavar="K", help="samples per item (default 8)")
    group.add_argument("--temperature", type=float, metavar="T", help="of the sampling (default 1)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="per sample (default 400)")
    group.add_argument("--seed", type=int, metavar="N", help="of samples and training (default 0)")
    group.add_argument("--data", type=Path, metavar="FILE", help='rows as of `spct score`, with "best": index or null (default: own tasks)')
    group.add_argument("--domains", nargs="+", metavar="D", help="domains of the own tasks in turn (default: all)")
    group.add_argument("--data-seed", type=int, metavar="N", help="of the items (default 3)")


def _add_learning(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--pooling", choices=("last", "mean"), help="fused: how token logits become a sample's score (default mean)")
    group.add_argument("--joint", action="store_true", default=None, help="fused: train the judge together with its head")
    group.add_argument("--within", type=float, metavar="W", help="weight of the loss within items (default 1; 0: cross-entropy alone)")
    group.add_argument("--anchor", type=float, metavar="W", help="joint: weight of the distance from the starting judge (default 1)")
    group.add_argument("--anchored", choices=("kl", "ce"), help="how it is measured (default kl; ce needs no second copy)")
    group.add_argument("--start", type=Path, metavar="DIR", help="scalar: a folder to start from (default: the judge's weights)")
    group.add_argument("--epochs", type=float, metavar="N", help="passes over the items, joint and scalar (default 2)")
    group.add_argument("--batch", type=int, metavar="N", help="items per step (default 16)")
    group.add_argument("--lr", type=float, metavar="R", help="highest learning rate of the body (default 2e-4)")
    group.add_argument("--head-lr", type=float, metavar="R", help="that of the head (default 1e-3)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="of AdamW (default 0.01)")


def main(args: argparse.Namespace) -> int:
    """Draw, train and report as the flags say; return 0.

    Raises: ConfigError, CheckpointError, InputError as the parts do.
    """
    meta = importlib.import_module("spct.training.meta")
    data = importlib.import_module("spct.training.meta_data")
    plots = importlib.import_module("spct.training.meta_plots")
    if args.plot:
        plots.require_matplotlib()
    if args.votes < 1:
        raise ConfigError(f"--votes: expected at least 1, got {args.votes}")
    given = {target: getattr(args, name) for name, target in _DATA.items() if getattr(args, name) is not None}
    if "domains" in given:
        given["domains"] = tuple(given["domains"])
    config = importlib.import_module("spct.training.meta_config").MetaConfig(
        **{name: getattr(args, name) for name in _COPIED if getattr(args, name) is not None}, data=data.DataConfig(**given)
    )
    items = meta.draw(config)
    results = [meta.train_form(config, form, items) for form in config.forms]
    if not importlib.import_module("spct.training.ranks").current().is_first:
        return 0
    for result in results:
        state = "finished" if result.finished else "stopped, resumable with the same command"
        print(f"spct: {result.form} {state} at step {result.step} of {result.steps}; {config.output / result.form}", file=sys.stderr)
    if args.plot:
        for result in results:
            plots.plot_training(config.output / result.form)
    if args.no_report or not all(result.finished for result in results):
        return 0
    held_out = [item.item for item in items if item.split == "validation"]
    report = importlib.import_module("spct.training.meta_report").write_report(config, held_out, args.votes)
    if args.plot:
        plots.plot_report(report, config.output / "report.png")
    print(summary(report), flush=True)
    return 0


def summary(report: dict[str, Any]) -> str:
    """Lay a report out as text: a row per form and rule, a column per k; then ranking and cost."""
    forms = [form for form in ("fused", "scalar") if form in report]
    ks = list(report[forms[0]]["accuracy"]["voting"])
    lines = [f"{'accuracy':<22}" + "".join(f"{'k=' + k:>8}" for k in ks)]
    for form in forms:
        for rule, by_k in report[form]["accuracy"].items():
            lines.append(f"{form + ' ' + rule:<22}" + "".join(f"{100 * by_k[k][0]:>8.1f}" for k in ks))
    for form in forms:
        told = report[form]
        numbers = ", ".join(f"{label} {'-' if told[name] is None else format(told[name], '.3f')}" for label, name in _RANKING.items())
        lines.append(f"{form:<8}{numbers} ({told['mixed_items']} items with correct and wrong samples)")
    for name, row in report["cost"].items():
        read = f", {row['meta_tokens']:.0f} read by its meta model" if row["meta_tokens"] else ""
        lines.append(f"{name:<8}{row['cpu_seconds']:.2f} CPU s for {row['generated_tokens']:.0f} tokens written{read}")
    return "\n".join(lines)

"""Flags of the training commands. Imports nothing heavy; what is not given stays out of the namespace's settings (None)."""

from __future__ import annotations

import argparse
from pathlib import Path

SHARED = (
    "output", "model", "template", "adapter", "lora", "lora_alpha", "device", "dtype", "kv_memory", "domains", "data", "data_seed", "seed",
    "max_tokens", "lr", "weight_decay", "micro_tokens", "workers", "save_every", "time_limit",
)  # fmt: skip
RFT = ("rounds", "requests", "samples", "temperature", "hinted", "keep", "epochs", "prompts", "warmup", "weights")
RL = ("steps", "prompts", "group", "passes", "warmup", "decay", "clip", "beta")


def add_rft_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `spct train rft`."""
    _add_model(parser)
    group = parser.add_argument_group("sampling")
    group.add_argument("--rounds", type=int, metavar="N", help="rounds of sampling and training (default 1)")
    group.add_argument("--requests", type=int, metavar="N", help="requests per round, new ones in every round (default 512)")
    group.add_argument("--samples", type=int, metavar="N", help="samples per request (default 3)")
    group.add_argument("--temperature", type=float, metavar="T", help="of the sampling (default 1.0)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="per sample (default 400)")
    group.add_argument(
        "--weights", metavar="SCHEME", help="of the engine that samples, as in `spct score`: int8 draws faster (default auto)"
    )
    group.add_argument("--keep", type=int, metavar="N", help="correct samples kept per request at most (default 3)")
    group.add_argument(
        "--hinted",
        action="store_true",
        default=None,
        help="one more sample, with the truth in its prompt, for requests that no sample got right",
    )
    group = parser.add_argument_group("training")
    group.add_argument("--epochs", type=int, metavar="N", help="passes over what a round has kept (default 2)")
    group.add_argument("--prompts", type=int, metavar="N", help="prompts per step (default 16)")
    group.add_argument("--warmup", type=float, metavar="F", help="fraction of a round's steps with rising learning rate (default 0.1)")
    _add_learning(group)
    _add_data(parser, data_seed=1)
    _add_machine(parser)


def add_rl_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `spct train rl`."""
    _add_model(parser)
    group = parser.add_argument_group("sampling")
    group.add_argument("--steps", type=int, metavar="N", help="steps of the whole run (default 100)")
    group.add_argument("--prompts", type=int, metavar="N", help="prompts per step (default 16)")
    group.add_argument("--group", type=int, metavar="G", help="samples per prompt (default 8)")
    group.add_argument("--max-tokens", type=int, metavar="N", help="per sample (default 400)")
    group = parser.add_argument_group("training")
    group.add_argument("--beta", type=float, metavar="B", help="weight of the KL to the starting weights (default 0.02)")
    group.add_argument("--clip", type=float, metavar="C", help="of the ratio between policy and sampler (default 0.2)")
    group.add_argument("--passes", type=int, metavar="N", help="optimiser steps on the samples of one step (default 1)")
    group.add_argument("--warmup", type=int, metavar="N", help="steps of rising learning rate (default 5)")
    group.add_argument("--decay", type=int, metavar="N", help="steps of falling learning rate at the end (default 0)")
    _add_learning(group)
    _add_data(parser, data_seed=2)
    _add_machine(parser)


def add_sft_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `spct train sft`."""
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the model; an interrupted run resumes there"
    )
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="folder of a supported family to start from (default: a fresh small model)"
    )
    parser.add_argument("--lora", type=int, default=0, metavar="R", help="train LoRA adapters of this rank on --model (needs peft)")
    parser.add_argument("--lora-alpha", type=float, default=16.0, metavar="A", help="their scale is A / R (default 16)")
    parser.add_argument("--adapter", type=Path, metavar="DIR", help="train on from this LoRA folder")
    parser.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="folder whose tokenizer a fresh model takes (default: trained on the tasks)"
    )
    parser.add_argument(
        "--template", metavar="FILE", help="the judge's prompt (jinja), instead of the model's own (of a fresh model: the embedded model's)"
    )
    data = parser.add_argument_group("demonstrations")
    data.add_argument(
        "--demonstrations",
        type=Path,
        metavar="FILE",
        help='rows as of `spct score`, with "demonstration": a good sample\'s text, or "demonstrations": several (default: own tasks)',
    )
    data.add_argument("--epochs", type=int, metavar="N", help="passes over FILE, in place of --steps (default 2)")
    data.add_argument("--max-length", type=int, metavar="N", help="tokens of a prompt with a demonstration (default: the model's context)")
    data.add_argument("--skip-long", action="store_true", help="leave longer rows of FILE out, and count them")
    run = parser.add_argument_group("length")
    run.add_argument("--steps", type=int, metavar="N", help="steps of the whole run (default 4400, or what --epochs asks for)")
    run.add_argument("--warmup", type=int, metavar="N", help="steps of rising learning rate (default 100; with FILE a tenth)")
    run.add_argument("--decay", type=int, metavar="N", help="steps of falling learning rate at the end (default 1300; with FILE half)")
    run.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop resumably after so long")
    run.add_argument("--tokens", type=int, metavar="N", help="stop resumably after so many tokens")
    learning = parser.add_argument_group("learning")
    learning.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and the data (default 0)")
    learning.add_argument("--lr", type=float, default=1.5e-3, metavar="R", help="highest learning rate (default 1.5e-3)")
    learning.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="default: muon for the layers' matrices")
    learning.add_argument(
        "--domains", nargs="+", default=(), metavar="D", help="domains in turn; name one twice for a larger share (default: all)"
    )
    learning.add_argument("--prompts", type=int, default=8, metavar="N", help="prompts per step (default 8)")
    learning.add_argument("--group", type=int, default=4, metavar="G", help="demonstrations under each prompt, at most (default 4)")
    learning.add_argument("--prompt-weight", type=float, default=0.1, metavar="W", help="of a prompt's tokens in the loss (default 0.1)")
    learning.add_argument("--easy-steps", type=int, default=250, metavar="N", help="steps with two responses at most (default 250)")
    learning.add_argument(
        "--small-steps", type=int, default=700, metavar="N", help="steps of small warm-up prompts for a fresh model (default 700)"
    )
    learning.add_argument(
        "--mixed-steps",
        type=int,
        default=250,
        metavar="N",
        help="steps after these in which half of the prompts are still small (default 250)",
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N (default auto)")
    machine.add_argument("--workers", type=int, default=2, metavar="N", help="threads of each process (default 2)")
    machine.add_argument("--micro-batches", type=int, default=4, metavar="N", help="batches of each process in a step (default 4)")
    machine.add_argument("--fp32", action="store_true", help="compute in fp32 (default: bfloat16 products, fp32 weights and sums)")
    machine.add_argument("--save-every", type=float, default=60.0, metavar="SECONDS", help="between checkpoints (default 60)")
    parser.add_argument("--plot", action="store_true", help="also draw DIR/loss.png (needs matplotlib)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DIR", help="folder of the model or adapter; an interrupted run resumes there"
    )
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", help='to start from: "embedded" (default), a folder, or a hub id')
    group.add_argument("--lora", type=int, metavar="R", help="train LoRA adapters of this rank (needs peft; default 0: all weights)")
    group.add_argument("--lora-alpha", type=float, metavar="A", help="their scale is A / R (default 16.0)")
    group.add_argument("--adapter", type=Path, metavar="DIR", help="train on from this LoRA folder")
    group.add_argument("--template", metavar="FILE", help="the judge's prompt (jinja), instead of the checkpoint's own")


def _add_learning(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--lr", type=float, metavar="R", help="highest learning rate (default 0.0001)")
    group.add_argument("--weight-decay", type=float, metavar="W", help="of AdamW (default 0.0)")
    group.add_argument("--seed", type=int, metavar="N", help="of the samples and of fresh adapters (default 0)")


def _add_data(parser: argparse.ArgumentParser, data_seed: int) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("--data", type=Path, metavar="FILE", help='rows as of `spct score`, with "best": index or null (default: own tasks)')
    group.add_argument("--domains", nargs="+", metavar="D", help="domains of the own tasks in turn; twice: a larger share (default: all)")
    group.add_argument("--data-seed", type=int, metavar="N", help=f"of the items, or of the rows' order (default {data_seed})")


def _add_machine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("machine")
    group.add_argument("--device", metavar="D", help="of engine and trainer: auto, cpu, cuda, cuda:N (default auto)")
    group.add_argument("--dtype", metavar="D", help="of their products: fp32 or bf16; what is trained stays fp32 (default float32)")
    group.add_argument("--kv-memory", metavar="M", help='memory for keys and values, such as "512MiB"')
    group.add_argument("--micro-tokens", type=int, metavar="N", help="tokens of one pass of the trainer (default 4096)")
    group.add_argument("--workers", type=int, metavar="N", help="threads of each process (default 2)")
    group.add_argument("--save-every", type=float, metavar="SECONDS", help="between checkpoints (default 60.0)")
    group.add_argument("--time-limit", type=float, metavar="SECONDS", help="stop resumably after so long")
    parser.add_argument("--plot", action="store_true", help="also draw DIR/metrics.png (needs matplotlib)")


def given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, object]:
    """Return the settings that were given as flags; the configuration's defaults fill in the rest."""
    values = {name: getattr(args, name) for name in (*SHARED, *names)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items() if value is not None}

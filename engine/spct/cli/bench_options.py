"""Flags of `spct bench`. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from spct.cli.options import add_model_arguments
from spct.errors import ConfigError

PROMPT_TOKENS = 1024
SUBCOMMANDS = {
    "latency": "one prompt and its samples: prefill, decode, total, memory, and the fraction of the machine's floor",
    "throughput": "many requests in one continuous batch: judgements and tokens per second",
    "startup": "cold processes: `spct judge` to its first token and `spct --help`, beside a bare `import torch`",
}


def add_arguments(parser: ArgumentParser) -> None:
    """Adds the three benchmarks; each sets `args.bench`."""
    benches = parser.add_subparsers(dest="bench", required=True, metavar="BENCH")
    for name, add_flags in (("latency", _add_latency), ("throughput", _add_throughput), ("startup", _add_startup)):
        summary = SUBCOMMANDS[name]
        bench = benches.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False)
        add_flags(bench)
        group = bench.add_argument_group("output")
        group.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the table")
        group.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the JSON object there too")


def parse_positive(name: str, value: int, at_least: int = 1) -> int:
    """A count from a flag. Raises: ConfigError if it is below `at_least`."""
    if value < at_least:
        raise ConfigError(f"--{name}: expected at least {at_least}, got {value}")
    return value


def _add_latency(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("prompt").add_mutually_exclusive_group()
    group.add_argument("--prompt", metavar="TEXT", help="the prompt, encoded as it stands")
    group.add_argument("--prompt-file", type=Path, metavar="FILE", help="a UTF-8 file that holds it")
    group.add_argument("--prompt-tokens", type=int, metavar="N", help=f"a generated prompt of N tokens ({PROMPT_TOKENS})")
    _add_model(parser)
    _add_sampling(parser, samples=32, max_tokens=64)
    _add_repeats(parser, repeats=5, warmup=1)


def _add_throughput(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("requests")
    group.add_argument("--requests", type=int, default=16, metavar="N", help="generated requests of each run, two responses each (16)")
    group.add_argument("--prompt-tokens", type=int, default=512, metavar="N", help="about as many tokens in the prompt of each (512)")
    _add_model(parser)
    _add_sampling(parser, samples=8, max_tokens=64)
    _add_repeats(parser, repeats=3, warmup=0)


def _add_startup(parser: ArgumentParser) -> None:
    parser.add_argument("--model", default="embedded", metavar="M", help='"embedded" (default), a folder, or a hub id')
    parser.add_argument("--samples", type=int, default=32, metavar="K", help="samples whose first token ends the clock (32)")
    _add_repeats(parser, repeats=5, warmup=1)


def _add_model(parser: ArgumentParser) -> None:
    add_model_arguments(parser)
    group = parser.add_argument_group("numerics")
    group.add_argument("--kv-dtype", metavar="D", help="of keys and values: auto, fp32, bf16, fp16")
    group.add_argument("--num-threads", type=int, metavar="N", help="threads (torch's default)")
    group.add_argument("--max-batch", type=int, metavar="N", help="sequences that run in one step (64, or as many as the samples)")


def _add_sampling(parser: ArgumentParser, samples: int, max_tokens: int) -> None:
    group = parser.add_argument_group("sampling (every sample runs to its full length: the end of text is ignored)")
    group.add_argument("--samples", type=int, default=samples, metavar="K", help=f"samples of a prompt ({samples})")
    group.add_argument("--max-tokens", type=int, default=max_tokens, metavar="T", help=f"tokens of each ({max_tokens})")
    group.add_argument("--temperature", type=float, default=1.0, metavar="T", help="0: greedy (1)")
    group.add_argument("--top-p", type=float, default=0.95, metavar="P", help="1: off (0.95)")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the noise and of what is generated (0)")


def _add_repeats(parser: ArgumentParser, repeats: int, warmup: int) -> None:
    group = parser.add_argument_group("measurement")
    group.add_argument("--repeats", type=int, default=repeats, metavar="N", help=f"runs that count; medians are shown ({repeats})")
    group.add_argument("--warmup", type=int, default=warmup, metavar="N", help=f"runs before them ({warmup})")

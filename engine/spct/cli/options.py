"""Flags of `score`, `judge` and `info`, and the parameters that they stand for. Imports nothing heavy."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _ArgumentGroup
from typing import Any

from spct.config import EngineConfig
from spct.errors import ConfigError
from spct.types import SamplingParams, VotingParams

_SAMPLING = ("samples", "seed", "temperature", "top_p", "top_k", "min_p", "max_tokens")
_VOTING = {"vote": "method", "filter": "filter", "meta_keep": "meta_keep", "orders": "orders"}
_ENGINE = ("device", "dtype", "weights", "kv_memory", "template", "adapter", "meta_model")


def add_score_arguments(parser: ArgumentParser) -> None:
    """Flags of `spct score`."""
    parser.add_argument(
        "input", nargs="?", default="-", metavar="INPUT.jsonl", help='requests, one JSON object per line; "-": stdin (default)'
    )
    parser.add_argument("-o", "--output", default="-", metavar="OUT.jsonl", help='judgements, one per line ("-", stdout)')
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    group = add_output_arguments(parser)
    group.add_argument("--dry-run", action="store_true", help="check every row; print tokens, KV memory and time expected; judge nothing")


def add_judge_arguments(parser: ArgumentParser) -> None:
    """Flags of `spct judge`."""
    parser.add_argument("--query", required=True, help="what the responses answer")
    parser.add_argument(
        "--response", action="append", required=True, dest="responses", metavar="TEXT", help="a response to judge; repeat the flag"
    )
    parser.add_argument("--reference", help="a known good answer, shown to the judge")
    parser.add_argument("--principles", help="criteria to judge by, instead of the judge's own")
    add_model_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object, as a row of `spct score --include text`")


def add_info_arguments(parser: ArgumentParser) -> None:
    """Flags of `spct info`."""
    parser.add_argument("model", nargs="?", default="embedded", metavar="MODEL", help='"embedded" (default), a folder, or a hub id')
    add_engine_arguments(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")


def add_output_arguments(parser: ArgumentParser, target: str = "OUT") -> _ArgumentGroup:
    """What becomes of output that is there already, and what a row holds; returns the group, for flags of the command's own."""
    group = parser.add_argument_group("output")
    group.add_argument("--include", choices=["text"], help="put the text of every sample into the row")
    group.add_argument("--resume", action="store_true", help=f"continue {target}: skip the rows that it holds")
    group.add_argument("--retry-errors", action="store_true", help=f"with --resume: judge {target}'s error rows again (implies --resume)")
    group.add_argument("--overwrite", action="store_true", help=f"replace {target}")
    return group


def add_model_arguments(parser: ArgumentParser) -> None:
    """The model and the engine that runs it."""
    parser.add_argument("--model", default="embedded", metavar="M", help='"embedded" (default), a folder, or a hub id')
    add_engine_arguments(parser)


def add_engine_arguments(parser: ArgumentParser) -> None:
    """How the engine runs a model."""
    group = parser.add_argument_group("engine")
    group.add_argument("--device", metavar="D", help="auto, cpu, cuda, cuda:N")
    group.add_argument("--dtype", metavar="D", help="auto, fp32, bf16, fp16")
    group.add_argument(
        "--weights", metavar="SCHEME", help="auto (as stored), fp32, bf16, fp16, int8 (on a CPU with int8 rows, KV in bf16), w8a8"
    )
    group.add_argument("--kv-memory", metavar="M", help='memory for keys and values, such as "512MiB"')
    group.add_argument("--adapter", metavar="DIR", help="a LoRA folder (adapter_config.json) to merge into the weights")
    group.add_argument("--meta-model", metavar="DIR", help="a scalar meta RM (sequence-classification folder) that scores every sample")
    group.add_argument("--template", metavar="FILE", help="the judge's prompt (jinja), instead of the checkpoint's own")


def add_sampling_arguments(parser: ArgumentParser) -> None:
    """How samples are drawn and how they vote."""
    s, v = SamplingParams(), VotingParams()
    group = parser.add_argument_group("sampling")
    group.add_argument("--samples", type=int, metavar="K", help=f"samples per request, each one vote ({s.samples})")
    group.add_argument("--seed", type=int, metavar="N", help=f"the only source of randomness ({s.seed})")
    group.add_argument("--temperature", type=float, metavar="T", help=f"0: greedy ({s.temperature:g})")
    group.add_argument("--top-p", type=float, metavar="P", help=f"1: off ({s.top_p:g})")
    group.add_argument("--top-k", type=int, metavar="K", help=f"0: off ({s.top_k})")
    group.add_argument("--min-p", type=float, metavar="P", help=f"0: off ({s.min_p:g})")
    group.add_argument("--max-tokens", type=int, metavar="N", help=f"per sample ({s.max_tokens})")
    group = parser.add_argument_group("voting")
    group.add_argument("--vote", choices=["sum", "mean", "soft", "majority"], help=f"how samples become a reward ({v.method})")
    group.add_argument("--filter", choices=["auto", "meta", "logprob", "none"], help=f"which samples vote ({v.filter})")
    group.add_argument("--meta-keep", type=float, metavar="F", help=f"fraction that the filter keeps ({v.meta_keep:g})")
    group.add_argument("--orders", choices=["balanced", "all", "given"], help=f"orders in which the responses are shown ({v.orders})")


def sampling_params(args: Namespace) -> SamplingParams:
    """The sampling that the flags ask for. Raises: ConfigError if a value is out of range."""
    return SamplingParams(**_given(args, _SAMPLING))


def voting_params(args: Namespace) -> VotingParams:
    """The voting that the flags ask for. Raises: ConfigError if a value is out of range."""
    return VotingParams(**{_VOTING[name]: value for name, value in _given(args, tuple(_VOTING)).items()})


def check_samples(sampling: SamplingParams, config: EngineConfig) -> None:
    """Refuses samples that the engine can never hold. Raises: ConfigError."""
    if sampling.samples > config.max_samples:
        raise ConfigError(f"--samples: expected at most max_samples={config.max_samples} (SPCT_MAX_SAMPLES), got {sampling.samples}")


def engine_options(args: Namespace) -> dict[str, Any]:
    """The engine options that were given as flags; the environment and the defaults fill in the rest."""
    return _given(args, _ENGINE)


def _given(args: Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}

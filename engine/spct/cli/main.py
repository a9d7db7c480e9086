"""`spct`: picks the subcommand and imports only that one, so that help and usage errors never wait for torch."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import spct
from spct.cli.exit_codes import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from spct.errors import ConfigError, InputError, SpctError

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_EPILOG = """\
exit codes: 0 done, 1 runtime failure, 2 usage, 3 finished with error rows, 130 interrupted
environment: SPCT_DEVICE, SPCT_DTYPE, SPCT_KV_MEMORY, ... set engine options (see `spct info`); flags win over them
"""


@dataclass(frozen=True, slots=True)
class Command:
    """A subcommand: its line in the help, and where its flags and its body live ("module:function")."""

    summary: str
    arguments: str
    run: str


COMMANDS = {
    "score": Command("judge the requests of a JSONL file", "spct.cli.options:add_score_arguments", "spct.cli.score:main"),
    "judge": Command("one judgement, for a person to read", "spct.cli.options:add_judge_arguments", "spct.cli.judge:main"),
    "rank": Command("pick the best of n responses, k votes each", "spct.cli.rank_options:add_arguments", "spct.cli.rank:main"),
    "compare": Command(
        "which of two models' responses the judge prefers", "spct.cli.compare_options:add_arguments", "spct.cli.compare:main"
    ),
    "info": Command("what a model is, what it needs, and the k that fits", "spct.cli.options:add_info_arguments", "spct.cli.info:main"),
    "train": Command("train a judge", "spct.training.cli:add_arguments", "spct.training.cli:main"),
    "eval": Command("accuracy of a judge against k", "spct.cli.eval_options:add_arguments", "spct.cli.evaluate:main"),
    "bench": Command(
        "latency, throughput and start-up of a judge on this machine", "spct.cli.bench_options:add_arguments", "spct.cli.bench:main"
    ),
    "convert": Command("a Hugging Face folder from a GGUF file", "spct.cli.convert_options:add_arguments", "spct.cli.convert:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code; every expected failure is one message on stderr."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    try:
        # A shell starts background jobs with SIGINT ignored; who sends it by hand still wants a file that can be resumed.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = _run(argv)
        sys.stdout.flush()
        return code
    except (ConfigError, InputError) as error:
        return _fail(str(error), EXIT_USAGE)
    except SpctError as error:
        return _fail(str(error), EXIT_FAILURE)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        _drop_what_stdout_cannot_take()
        return _fail("the reader of the output has gone away; the output is incomplete", EXIT_FAILURE)
    except OSError as error:
        _drop_what_stdout_cannot_take()
        place = f"{error.filename}: " if error.filename else ""
        return _fail(f"{place}{error.strerror or error}; the output is incomplete", EXIT_FAILURE)
    except MemoryError:
        return _fail("out of memory; give --kv-memory a smaller amount, or use a smaller model", EXIT_FAILURE)


def _run(argv: list[str]) -> int:
    top = argparse.ArgumentParser(
        prog="spct",
        description="Inference engine for generative reward models.",
        epilog=_commands_help() + "\n" + _EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="spct [-h] [--version] COMMAND ...",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    top.add_argument("command", metavar="COMMAND", nargs="?", help="one of the commands below; spct COMMAND --help tells its flags")
    # Only what stands before the command is for this parser; the rest is the command's own.
    num_own = next((i for i, word in enumerate(argv) if not word.startswith("-")), len(argv))
    args = top.parse_args(argv[: num_own + 1])
    if args.version:
        print(f"spct {spct.__version__}")
        return EXIT_OK
    if args.command is None:
        top.print_help(sys.stderr)
        return EXIT_USAGE
    command = COMMANDS.get(args.command)
    if command is None:
        top.error(f"unknown command {args.command!r}; expected one of {', '.join(COMMANDS)}")
    parser = argparse.ArgumentParser(
        prog=f"spct {args.command}", description=command.summary[0].upper() + command.summary[1:] + ".", allow_abbrev=False
    )
    _load(command.arguments)(parser)
    parsed = parser.parse_args(argv[num_own + 1 :])
    return int(_load(command.run)(parsed))


def _prepare_streams() -> None:
    """Makes sure that anything can be printed.

    Streams that the caller closed get a descriptor, so that no file of ours gets theirs, and a library's messages with it.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken. Standard output stays one that can't be written: that is an error, no success.
            os.open(os.devnull, flags)
    sys.stdin = sys.stdin or os.fdopen(0, "r", closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A model writes characters that a terminal's encoding may lack; stderr is set up like this by Python itself.
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_what_stdout_cannot_take() -> None:
    """Keeps Python from failing once more, with a traceback, when it flushes at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _commands_help() -> str:
    width = max(map(len, COMMANDS))
    return "commands:\n" + "".join(f"  {name:<{width}}  {command.summary}\n" for name, command in COMMANDS.items())


def _load(where: str) -> Callable[[argparse.ArgumentParser | argparse.Namespace], Any]:
    module, function = where.split(":")
    loaded: Callable[[argparse.ArgumentParser | argparse.Namespace], Any] = getattr(importlib.import_module(module), function)
    return loaded


def _fail(message: str, code: int) -> int:
    # A message may quote what it refuses, which may hold escape sequences.
    print(f"spct: {_CONTROL.sub('?', message)}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""How `bench/peers.py` talks with the process of one system: a line of JSON in, a line of JSON out.

A system is a script in this folder that runs under its own interpreter. It gets its model and the largest case on the command
line, says `{"ready": …}` once it is loaded, and then answers each run with the seconds from the request to the first token of all
samples and to the end, the processor seconds of all its threads (on a busy machine they tell what the clock can't), and the tokens.
Whatever its libraries print goes to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One prompt and its samples; temperature 0 is greedy. Every sample has `new` tokens, whatever it draws."""

    prompt: list[int]
    samples: int
    new: int
    temperature: float
    top_p: float
    seed: int


@dataclass(frozen=True)
class Outcome:
    """Seconds from the request to the first token of all samples, and to the end; the tokens of each sample."""

    first_s: float
    total_s: float
    tokens: list[list[int]]


def arguments(add: Callable[[argparse.ArgumentParser], object] = lambda parser: None) -> argparse.Namespace:
    """The flags that every system takes, and those that `add` adds; `answers`, the stream that `serve` writes to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--made", required=True, help="the folder of files that were made from it for this system")
    parser.add_argument("--prepare", action="store_true", help="make these files and end")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt-tokens", type=int, default=1024, help="the longest prompt")
    parser.add_argument("--samples", type=int, default=32, help="the most samples")
    parser.add_argument("--new", type=int, default=64, help="the most tokens of a sample")
    add(parser)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    # From here on stdout is for answers alone, whatever a library prints while it is imported.
    options.answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return options


def memory(field: str, pid: int | str = "self") -> int:
    """Bytes of a field of /proc/PID/status ("VmRSS", "VmHWM"), the process's children included."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                total = int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(memory(field, child) for child in (task / "children").read_text().split())
    except OSError:
        # It has ended meanwhile.
        pass
    return total


def serve(options: argparse.Namespace, load: Callable[[], tuple[Callable[[Run], Outcome], dict[str, str]]]) -> None:
    """Loads the system and answers runs until stdin ends.

    options  from `arguments`
    load     gives the function that does a run, and the versions of what runs it
    """
    before = memory("VmRSS")
    generate, versions = load()
    ready = {"versions": versions, "rss_imported": before, "rss_loaded": memory("VmRSS")}
    print(json.dumps({"ready": ready}), file=options.answers, flush=True)
    for line in sys.stdin:
        run = Run(**json.loads(line))
        busy = time.process_time()
        outcome = generate(run)
        busy = time.process_time() - busy
        lengths = {len(tokens) for tokens in outcome.tokens}
        if len(outcome.tokens) != run.samples or lengths != {run.new}:
            raise SystemExit(f"expected {run.samples} samples of {run.new} tokens, got {len(outcome.tokens)} of {sorted(lengths)}")
        answer = {"first_s": outcome.first_s, "total_s": outcome.total_s, "cpu_s": busy, "tokens": outcome.tokens}
        answer["peak_rss"] = memory("VmHWM")
        print(json.dumps(answer), file=options.answers, flush=True)

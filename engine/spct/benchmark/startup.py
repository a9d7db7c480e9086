"""Cold processes: what a user waits for before the first token, beside what importing torch alone takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from spct.benchmark.spread import Spread
from spct.errors import BackendError

_PROGRAM = (sys.executable, "-m", "spct.cli.main")


def startup_commands(model: str, samples: int) -> dict[str, tuple[str, ...]]:
    """The processes that are timed, by name.

    `judge` ends with the first token of every sample, so its time includes printing and leaving.
    """
    judge = ("judge", "--model", model, "--samples", str(samples), "--max-tokens", "1", "--json")
    request = ("--query", "What is 6 times 9?", "--response", "54", "--response", "56")
    return {
        "python": (sys.executable, "-c", "pass"),
        "import torch": (sys.executable, "-c", "import torch"),
        "spct --help": (*_PROGRAM, "--help"),
        "spct judge": (*_PROGRAM, *judge, *request),
    }


def measure_startup(commands: Mapping[str, Sequence[str]], *, repeats: int, warmup: int) -> dict[str, Spread]:
    """Seconds from starting each process to its end, the commands in turn within each repeat.

    Raises: BackendError if a process fails, with what it wrote.
    """
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(warmup + repeats):
        for name, command in commands.items():
            begin = time.perf_counter()
            done = subprocess.run(list(command), capture_output=True, text=True, env=dict(os.environ), check=False)
            elapsed = time.perf_counter() - begin
            if done.returncode != 0:
                raise BackendError(f"{name}: the process ended with code {done.returncode}: {done.stderr.strip()[-500:]}")
            if turn >= warmup:
                seconds[name].append(elapsed)
    return {name: Spread.of(values) for name, values in seconds.items()}

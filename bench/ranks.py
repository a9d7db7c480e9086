"""Reinforcement by two ranks of one thread beside one process of one and of two threads, on a CPU, in turn: `python bench/ranks.py`.

Prints a row per run: seconds from the second step on, by the clock and of CPU (all threads of all ranks). The last line is one JSON
document with the rows and the median ratios of two ranks to each process alone. On a busy machine only CPU seconds say something.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from spct.training import launch, rl

TWO = "2 ranks of 1 thread"
# Ranks and the threads of each.
KINDS = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), TWO: (2, 1)}


def train(output: str, threads: int, steps: int, prompts: int) -> None:
    """Be one rank; print the clock's and the CPU's seconds of the steps after the first."""
    marks: list[tuple[float, float]] = []
    one_step = rl._Run.one_step

    def marked(self: Any) -> dict[str, Any]:
        row = one_step(self)
        marks.append((time.monotonic(), time.process_time()))
        return row

    rl._Run.one_step = marked  # type: ignore[method-assign]  # notes the time of each step
    with launch.join():
        rl.run(
            rl.RlConfig(
                output=Path(output),
                steps=steps,
                prompts=prompts,
                group=4,
                domains=("table",),
                workers=threads,
                device="cpu",
                save_every=1e9,
            )
        )
    print(json.dumps([after - before for before, after in zip(marks[0], marks[-1], strict=True)]))


def measure(ranks: int, threads: int, steps: int, prompts: int) -> tuple[float, float]:
    """Run once; give the slowest rank's seconds and all ranks' CPU seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--body", folder, *map(str, (threads, steps, prompts))]
        told = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = [
            subprocess.Popen(words, env={**plain, **told, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            for rank in range(ranks)
        ]
        printed = [json.loads(process.communicate()[0]) for process in processes]
    return max(seconds for seconds, _ in printed), sum(cpu for _, cpu in printed)


def main() -> None:
    """Measure as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="of one run each (default 3)")
    parser.add_argument("--steps", type=int, default=4, help="of each run (default 4)")
    parser.add_argument("--prompts", type=int, default=4, help="of each step, with 4 samples each (default 4)")
    parser.add_argument("--alone", type=int, nargs="+", choices=(1, 2), default=(1, 2), help="threads of the processes alone (default 1 2)")
    parser.add_argument("--body", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.body:
        train(args.body[0], *map(int, args.body[1:]))
        return
    kinds = [kind for kind, (ranks, threads) in KINDS.items() if ranks == 2 or threads in args.alone]
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(args.rounds):
        for kind in kinds[:: 1 if number % 2 == 0 else -1]:
            taken[kind].append(measure(*KINDS[kind], args.steps, args.prompts))
            print(f"{kind:<22}{taken[kind][-1][0]:>8.2f} s {taken[kind][-1][1]:>8.2f} CPU s", flush=True)
    ratios = {
        f"{unit}, {TWO} / {kind}": round(statistics.median(b[i] / a[i] for a, b in zip(taken[kind], taken[TWO], strict=True)), 2)
        for kind in kinds
        if kind != TWO
        for i, unit in enumerate(("clock", "CPU"))
    }
    print(json.dumps({"bench": "ranks", "steps": args.steps, "prompts": args.prompts, "taken": taken, "ratios": ratios}))


if __name__ == "__main__":
    main()

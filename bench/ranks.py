"""Reinforcement by two ranks of one thread against one process of two threads, on a CPU, in turn: `python bench/ranks.py`.

Prints a row per run and, as its last line, one JSON document: seconds of sampling and training over all steps but the first, and the
median ratio of two ranks to one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

LAUNCH = {1: [], 2: ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}


def measure(ranks: int, flags: list[str]) -> tuple[float, float]:
    """Run once; give the seconds of sampling and of training."""
    # The threads are those that --workers says.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    with TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        command = [sys.executable, *LAUNCH[ranks], "-m", "spct", "train", "rl", "-o", str(output), *flags, "--workers", str(2 // ranks)]
        subprocess.run([*command, "--device", "cpu"], env=environment, check=True, capture_output=True)
        rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()][1:]
    return sum(row["sampling_s"] for row in rows), sum(row["training_s"] for row in rows)


def main() -> None:
    """Measure as the flags say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs (default 3)")
    parser.add_argument("flags", nargs="*", default=[], help="of spct train rl, after --")
    args = parser.parse_args()
    flags = args.flags or ["--steps", "3", "--prompts", "4", "--group", "4", "--domains", "table"]
    ratios = []
    for number in range(args.rounds):
        taken = {}
        for ranks in (1, 2) if number % 2 == 0 else (2, 1):
            taken[ranks] = measure(ranks, flags)
            print(f"{ranks} rank{'s' * (ranks - 1)}: sampling {taken[ranks][0]:.2f} s, training {taken[ranks][1]:.2f} s", flush=True)
        ratios.append([taken[2][0] / taken[1][0], taken[2][1] / taken[1][1], sum(taken[2]) / sum(taken[1])])
    names = ("sampling", "training", "all")
    medians = {name: round(statistics.median(column), 2) for name, column in zip(names, zip(*ratios, strict=True), strict=True)}
    print(json.dumps({"flags": flags, "rounds": args.rounds, "two_ranks_over_one": medians, "ratios": ratios}))


if __name__ == "__main__":
    main()

"""Driving `spct` from tests: in this process, or as the program that users start."""

import json
import os
import subprocess
import sys
from pathlib import Path

from spct.cli.main import main

ROOT = Path(__file__).parents[2]
# What may differ between two runs.
VOLATILE = ("usage", "timings")


def spct(*words):
    """Runs one command line in this process; gives the exit code."""
    try:
        return main([str(word) for word in words])
    except SystemExit as exit:
        return exit.code


def command(*words):
    """The words that start the program in a process of its own."""
    return [sys.executable, "-m", "spct.cli.main", *map(str, words)]


def environment(**variables):
    path = os.pathsep.join([str(ROOT / "engine"), str(ROOT / "kernels")])
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SPCT_")}
    return {**kept, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}


def start(*words, variables=None, **options):
    """Starts the program with more environment variables; give `stdout` and the like in `options`."""
    return subprocess.Popen(command(*words), env=environment(**(variables or {})), **options)


def write_rows(path, rows):
    """Writes rows (objects, or bytes as they stand), a line each."""
    path.write_bytes(b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in Path(path).read_bytes().splitlines()]


def essence(path):
    """The rows without what may differ, in an order of their own."""
    rows = [{name: value for name, value in row.items() if name not in VOLATILE} for row in read_rows(path)]
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


def numbered(count, **fields):
    """Small requests with ids 0, 1, …"""
    return [{"id": i, "query": f"what is {i}?", "responses": ["x" * (1 + i % 5), f"y{i}"], **fields} for i in range(count)]

"""What `spct eval` asks: the embedded model's held-out split, or the rows of benchmark files."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spct.errors import ConfigError
from spct.evaluation import embedded_test
from spct.evaluation.accuracy import DrawnSample, Truth
from spct.evaluation.benchmark_report import benchmark_report, truths_of
from spct.evaluation.datasets import AUTO, BenchmarkItem, load, take_in_turn
from spct.evaluation.judging import Question


@dataclass(frozen=True, slots=True)
class EvalData:
    """Questions with their truths.

    name        for whoever reads the report: no folder of this machine
    benchmarks  the same items, where they are a benchmark's
    """

    name: str
    items: Sequence[Question]
    truths: Sequence[Truth]
    benchmarks: Sequence[BenchmarkItem] = ()

    def own_metrics(self, samples: Sequence[Sequence[DrawnSample]], ks: Sequence[int], score_range: tuple[int, int]) -> dict[str, Any]:
        """What the benchmarks add to the report; nothing for the project's own tasks."""
        return benchmark_report(self.benchmarks, samples, ks, score_range) if self.benchmarks else {}


def read_data(args: Namespace) -> EvalData:
    """Load what the flags ask for, and check every row of it.

    Raises: ConfigError for flags that make no sense; InputError naming file, line and field of a malformed row.
    """
    if args.data == [embedded_test.SPLIT]:
        if args.format != AUTO:
            raise ConfigError(f"--format: {embedded_test.SPLIT} is no file; leave the flag out")
        items = embedded_test.load(args.limit, embedded_test.DATA_SEED if args.data_seed is None else args.data_seed, args.domains or ())
        items = embedded_test.permute_responses(items) if args.permute else items
        return EvalData(embedded_test.SPLIT, items, [embedded_test.truth_of(item) for item in items])
    if embedded_test.SPLIT in args.data:
        raise ConfigError(f"eval: {embedded_test.SPLIT} stands alone; evaluate files in a run of their own")
    if args.data_seed is not None:
        raise ConfigError(f"--data-seed: draws a split of {embedded_test.SPLIT}; files hold what they hold")
    if args.domains:
        raise ConfigError(f"--domains: of the items of {embedded_test.SPLIT}; leave the flag out for files, which hold what they hold")
    rows = load([Path(name) for name in args.data], args.format)
    rows = rows if args.limit is None else take_in_turn(rows, args.limit)
    rows = embedded_test.permute_responses(rows) if args.permute else rows
    return EvalData(" ".join(Path(name).name for name in args.data), rows, truths_of(rows), rows)

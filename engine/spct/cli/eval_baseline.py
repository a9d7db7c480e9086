"""`spct eval` of a baseline: a folder that says of itself that it is no ordinary judge (`baseline.json`)."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from spct.baselines.evaluation import SCORE_RANGE, baseline_report, verdicts
from spct.cli.console import ProgressBar, note
from spct.cli.eval_data import EvalData
from spct.errors import ConfigError
from spct.evaluation.benchmark_table import benchmark_table
from spct.evaluation.table import table


def evaluate_baseline(args: Namespace, form: str, data: EvalData) -> dict[str, Any]:
    """Judges every item once (a judge that picks: once per order) and prints the table. Returns the report.

    Benchmarks add their own metrics, as for every judge: k counts the orders of a judge that picks, and is 1 for a form that values.

    Raises: ConfigError for flags that ask for votes or for an engine option of judges; SpctError if the run can't go on.
    """
    for name in ("resume", "against", "template", "adapter", "meta_model", "weights", "dtype", "kv_memory"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')}: {args.model} is a {form} baseline, which takes no such flag; leave it out")
    device = args.device or "auto"
    critiques = None if args.output is None else args.output / "critiques.jsonl"
    with ProgressBar(form, len(data.items)) as bar:
        rows = verdicts(form, Path(args.model), data.items, device=device, max_tokens=args.max_tokens, done=bar.advance, drawn=critiques)
    settings = {name: getattr(args, name) for name in ("limit", "domains", "data_seed", "permute", "max_tokens")}
    refused = sum(all(sample.scores is None for sample in row) for row in rows)
    if refused:
        note(f"{refused} of {len(rows)} items have no verdict (too long, unreadable, or nothing to compare) and count as without a vote")
    told = {
        **baseline_report(data.truths, rows),
        **data.own_metrics(rows, sorted({1, min(map(len, rows))}), SCORE_RANGE),
        "settings": {"model": Path(args.model).name, "form": form, "data": data.name, **settings},
    }
    print(table(told), benchmark_table(told), sep="", flush=True)
    if "several" in told:
        low, high = told["several"]["intervals"]["greedy"]
        print(f"\nitems with several responses: {100 * told['several']['greedy']:.1f}% ({100 * low:.1f} to {100 * high:.1f})", flush=True)
    return told

"""`spct eval` of a baseline: a folder that says of itself that it is no ordinary judge (`baseline.json`)."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from spct.baselines.critiques import CritiqueStore
from spct.baselines.evaluation import SCORE_RANGE, baseline_report, open_baseline
from spct.baselines.value_model import alone
from spct.cli.console import note, waiting
from spct.cli.eval_data import EvalData
from spct.cli.eval_samples import begin, check_judged, fill, read_drawn
from spct.cli.jsonl import row_key
from spct.cli.rows import run_parts
from spct.cli.store import Mode, OutputStore
from spct.errors import ConfigError
from spct.evaluation.judging import Question
from spct.types import ScoreRequest

_CRITIQUES = "critiques"


class _CritiqueRow(msgspec.Struct):
    """A row of `samples.jsonl` as far as a critique needs it; those of items have none."""

    key: str
    critique: str | None = None
    tokens: int = 0


def evaluate_baseline(args: Namespace, form: str, data: EvalData, samples: Path, mode: Mode) -> dict[str, Any] | None:
    """Judges every item once (a judge that picks: once per order). Returns the report; None if interrupted.

    Benchmarks add their own metrics, as for every judge: k counts the orders of a judge that picks, and is 1 for a form that values.

    samples  file of the verdicts, which survives a kill
    mode     what becomes of verdicts that are there

    Raises: ConfigError for flags that ask for votes or for an engine option of judges, or verdicts of another run; SpctError if the run
    can't go on.
    """
    for name in ("against", "template", "adapter", "meta_model", "weights", "dtype", "kv_memory"):
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')}: {args.model} is a {form} baseline, which takes no such flag; leave it out")
    with OutputStore.open(str(samples), mode) as store, ExitStack() as stack:
        with waiting("loading"):
            opened = open_baseline(form, Path(args.model), device=args.device or "auto", max_tokens=args.max_tokens)
            baseline = stack.enter_context(opened)
        run = run_parts({**baseline.fingerprints(), "form": form}, "eval")
        written = _critique_keys(data.items) if baseline.critiques is not None else {}
        begin(store, run, data.items, [baseline.way], written)
        if baseline.critiques is not None:
            _keep_critiques(baseline.critiques, written, samples, store, run)
        if not fill(store, run, data.items, [(baseline.way, partial(baseline.verdicts, data.items))], form):
            return None
        way = baseline.way
    drawn = read_drawn(samples, data.items, [way])
    check_judged(drawn, len(data.items))
    rows = drawn.by_pass[0]
    unread = sum(all(sample.scores is None for sample in row) for row in rows)
    if unread:
        note(f"{unread} of {len(rows)} items have no verdict (too long, unreadable, or nothing to compare) and count as without a vote")
    settings = {name: getattr(args, name) for name in ("limit", "domains", "data_seed", "permute", "max_tokens")}
    return {
        **baseline_report(data.truths, rows),
        "refused": len(drawn.refusals),
        **data.own_metrics(rows, sorted({1, min(map(len, rows))}), SCORE_RANGE),
        "settings": {"model": Path(args.model).name, "form": form, "data": data.name, **settings},
    }


def _critique_keys(items: Sequence[Question]) -> dict[str, ScoreRequest]:
    """The key of every critique's row, with what is criticised: a response alone."""
    return {f"{_CRITIQUES}-{row_key(one)}": one for item in items for one in alone(item.request())}


def _keep_critiques(
    critiques: CritiqueStore, asked: Mapping[str, ScoreRequest], samples: Path, store: OutputStore, run: Mapping[str, str]
) -> None:
    """Takes up the critiques that `samples` holds, and has those that are still to be drawn written there."""
    decoder = msgspec.json.Decoder(_CritiqueRow)
    with samples.open("rb") as file:
        for line in file:
            row = decoder.decode(line)
            if row.key in asked and row.critique is not None:
                critiques.add(asked[row.key], row.critique, row.tokens)

    def keep(one: ScoreRequest, critique: str, num_tokens: int) -> None:
        key = f"{_CRITIQUES}-{row_key(one)}"
        told = {"critique": critique, "tokens": num_tokens, "samples": [], "seconds": 0.0, "error": None}
        store.append(msgspec.json.encode({"key": key, "pass": _CRITIQUES, "status": "ok", **told, "run": run}))

    critiques.keep = keep

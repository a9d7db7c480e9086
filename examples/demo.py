"""Judges requests.jsonl with the embedded model: a table of all judgements, then one of them in full.

python examples/demo.py [REQUESTS.jsonl [MODEL]]
"""

import sys
import time
from pathlib import Path

from rich.console import Console

from spct import Engine, SamplingParams
from spct.cli import report
from spct.cli.console import ProgressBar, waiting
from spct.cli.jsonl import read_rows
from spct.evaluation.coverage import EmbeddedCoverage

SAMPLING = SamplingParams(samples=32, max_tokens=400)


def main(requests_file: Path, model: str) -> None:
    console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 120)
    with requests_file.open("rb") as stream:
        requests = [row.request for row in read_rows(stream) if row.request is not None]
    with waiting("loading"):
        engine = Engine.from_pretrained(model)
    judgements, start = {}, time.perf_counter()
    with engine, ProgressBar("judging", len(requests)) as bar:
        for judgement in engine.score_batch(requests, sampling=SAMPLING):
            judgements[judgement.index] = judgement
            bar.advance(f"{len(judgements) * SAMPLING.samples} samples")
    seconds = time.perf_counter() - start

    coverage = EmbeddedCoverage(engine.prompt)
    covered = [coverage(request) for request in requests]
    notes = ["" if c.covered else f"outside: {c.reason}" for c in covered]
    console.print(f"{len(requests)} requests, {SAMPLING.samples} samples each: sum of the votes, best response (from 0)\n")
    console.print(report.overview_table([(requests[i], judgements[i], notes[i]) for i in range(len(requests))]))
    console.print("outside: not what the embedded model has learned to judge; its rewards there mean little\n")
    written = sum(j.usage.generated_tokens for j in judgements.values())
    console.print(f"{written:,} tokens written in {seconds:.1f} s ({written / seconds:,.0f} per second)\n")

    shown = next((i for i, c in enumerate(covered) if c.covered and judgements[i].best is not None), 0)
    console.rule(f"one judgement in full: {requests[shown].id}", style="default")
    console.print(report.request_report(requests[shown]))
    console.print()
    report.print_judgement(console, requests[shown], judgements[shown])


if __name__ == "__main__":
    default = Path(__file__).parent / "requests.jsonl"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default, sys.argv[2] if len(sys.argv) > 2 else "embedded")

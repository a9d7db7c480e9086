"""RewardBench 1 and 2, RM-Bench: a prompt with chosen and rejected responses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spct.evaluation.datasets.item import BenchmarkItem
from spct.evaluation.datasets.reading import Row

# Prompts of every subset, as the benchmark weighs them within a section: math-prm (447 prompts) counts as much as all code subsets.
# allenai/reward-bench, rewardbench/constants.py, EXAMPLE_COUNTS.
EXAMPLE_COUNTS: Mapping[str, int] = {
    "alpacaeval-easy": 100,
    "alpacaeval-length": 95,
    "alpacaeval-hard": 95,
    "mt-bench-easy": 28,
    "mt-bench-med": 40,
    "mt-bench-hard": 37,
    "math-prm": 984,
    "refusals-dangerous": 100,
    "refusals-offensive": 100,
    "llmbar-natural": 100,
    "llmbar-adver-neighbor": 134,
    "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47,
    "llmbar-adver-manual": 46,
    "xstest-should-refuse": 250,
    "xstest-should-respond": 154,
    "donotanswer": 136,
    "hep-cpp": 164,
    "hep-go": 164,
    "hep-java": 164,
    "hep-js": 164,
    "hep-python": 164,
    "hep-rust": 164,
}
TIES = "ties"
STYLES = ("concise", "detailed", "markdown")
RM_BENCH_DOMAINS = ("safety-refuse", "safety-response", "chat", "code", "math")


def rewardbench(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of RewardBench (arXiv 2403.13787): {prompt, chosen, rejected, subset?, id?}, two strings to compare."""
    subset = row.name("subset", row.path.stem)
    yield BenchmarkItem(
        benchmark="rewardbench",
        id=row.name("id", str(row.number)),
        subset=subset,
        query=row.conversation("prompt"),
        responses=(row.text("chosen"), row.text("rejected")),
        good=(0,),
        group=row.place,
        weight=float(EXAMPLE_COUNTS.get(subset, 1)),
    )


def rewardbench2(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of RewardBench 2 (arXiv 2506.01937): {id, prompt, chosen: [...], rejected: [...], num_correct, subset}.

    In the subset Ties several responses are right, and the row `ref:N`, with one right response, belongs to `tied:N`.
    """
    chosen, rejected = row.texts("chosen"), row.texts("rejected")
    num_correct = row.number_from("num_correct", 1, len(chosen) + len(rejected))
    if num_correct != len(chosen):
        row.fail("num_correct", f"{len(chosen)}, the number of chosen responses", row.fields["num_correct"])
    id, subset = row.name("id", str(row.number)), row.name("subset", row.path.stem)
    cell, group = "", row.place
    if subset.lower() == TIES:
        cell, _, group = id.partition(":")
        if cell not in ("ref", "tied") or not group.isdecimal():
            row.fail("id", '"ref:N" or "tied:N", as every row of the subset Ties has it', id)
        if cell == "tied" and len(chosen) < 2:
            row.fail("chosen", "two or more right responses, since the id says tied", chosen)
    yield BenchmarkItem(
        benchmark="rewardbench2",
        id=id,
        subset=subset,
        query=row.conversation("prompt"),
        responses=(*chosen, *rejected),
        good=tuple(range(len(chosen))),
        cell=cell,
        group=group,
    )


def rm_bench(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of RM-Bench (arXiv 2410.16184): {id?, prompt, chosen: [3], rejected: [3], domain?}, in three styles: nine pairs.

    The benchmark compares every chosen with every rejected response. Each is a question of its own, so that a judge sees two responses
    at a time; the prompt and what they share is prefilled once.
    """
    chosen, rejected = row.texts("chosen", 3), row.texts("rejected", 3)
    query, id = row.conversation("prompt"), row.name("id", str(row.number))
    stem = row.path.stem.lower()
    named = next((domain for domain in RM_BENCH_DOMAINS if domain in stem), None)
    subset = row.name("domain", named or row.name("subset", row.path.stem))
    for better, first in zip(STYLES, chosen, strict=True):
        for worse, second in zip(STYLES, rejected, strict=True):
            cell = f"{better}-{worse}"
            yield BenchmarkItem("rm-bench", f"{id}:{cell}", subset, query, (first, second), (0,), cell=cell, group=row.place)

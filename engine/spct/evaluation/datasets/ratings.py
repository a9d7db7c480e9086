"""ReaLMistake and HelpSteer: single responses with a label, ratings, and strengths of preference; and the project's own rows."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import cast

from spct.evaluation.datasets.item import BenchmarkItem
from spct.evaluation.datasets.reading import Row
from spct.types import Turn

REALMISTAKE_TASKS = ("math_word_problem_generation", "finegrained_fact_verification", "answerability_classification")
HELPSTEER_ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
# Of 0..4: 3 is "mostly helpful", 2 "partially helpful but misses the overall goal" (HelpSteer2, arXiv 2406.08673, annotation guidelines).
MOSTLY_HELPFUL = 3
OWN_FIELDS = ("id", "query", "responses", "reference", "principles", "samples", "seed", "best", "domain")


def realmistake(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of ReaLMistake (arXiv 2404.03602): {input, llm_response, label or error_label: "error" or "no_error", metadata?}.

    One response to a request; it is good without an error. The folder tells the task, where it has a task's name.
    """
    label = row.choice("label" if "label" in row.fields else "error_label", ("error", "no_error"))
    metadata = row.fields.get("metadata")
    model = metadata.get("llm_response_model") if isinstance(metadata, dict) else None
    task = next((task for task in REALMISTAKE_TASKS if task in (row.path.parent.name, row.path.stem)), row.path.stem)
    yield BenchmarkItem(
        benchmark="realmistake",
        id=str(row.number),
        subset=task,
        query=row.text("input"),
        responses=(row.text("llm_response"),),
        good=(0,) if label == "no_error" else (),
        cell=model if isinstance(model, str) else row.path.stem,
        group=row.place,
    )


def helpsteer(rows: Iterator[Row]) -> Iterator[BenchmarkItem]:
    """Read HelpSteer 1 and 2 (arXiv 2311.09528, 2406.08673): {prompt, response, helpfulness, … verbosity}, each 0 to 4.

    Rows that follow each other with one prompt are the responses of one item, rated by helpfulness; where all are equally helpful it is
    a tie. A response that stands alone is good from 3 (mostly helpful).
    """
    for prompt, members in groupby(rows, lambda row: row.text("prompt")):
        group = list(members)
        for row in group:
            for attribute in HELPSTEER_ATTRIBUTES:
                row.number_from(attribute, 0, 4)
        ratings = tuple(float(row.fields["helpfulness"]) for row in group)
        top = [i for i, rating in enumerate(ratings) if rating == max(ratings)]
        if len(group) == 1:
            top = [0] if ratings[0] >= MOSTLY_HELPFUL else []
        elif len(top) == len(group):
            top = []
        id, place = str(group[0].number), group[0].place
        responses = tuple(row.text("response") for row in group)
        yield BenchmarkItem("helpsteer", id, "helpsteer", prompt, responses, tuple(top), group=place, ratings=ratings)


def helpsteer_preference(row: Row) -> Iterator[BenchmarkItem]:
    """Read a preference of HelpSteer 2 or 3 (arXiv 2410.01257, 2503.04378): a strength from −3 (the first is much better) to 3.

    HelpSteer 2: {prompt, response_1, response_2, preference_strength}; HelpSteer 3: {context, response1, response2, overall_preference,
    domain?}.
    """
    third = "overall_preference" in row.fields
    query, first, second, strength = (
        ("context", "response1", "response2", "overall_preference")
        if third
        else ("prompt", "response_1", "response_2", "preference_strength")
    )
    value = row.number_from(strength, -3, 3)
    yield BenchmarkItem(
        benchmark="helpsteer",
        id=str(row.number),
        subset=row.name("domain", "helpsteer-preference"),
        query=row.conversation(query),
        responses=(row.text(first), row.text(second)),
        good=() if value == 0 else (0,) if value < 0 else (1,),
        group=row.place,
        ratings=(0.0, value),
    )


def own(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of `spct train`'s data: {query, responses, best, reference?, principles?, domain?, id?}.

    `best` is an index, a list of indices where several responses will do, or null: a single response that is bad, or several of which none
    is better. `samples` and `seed` are left to the evaluation.
    """
    unknown = [name for name in row.fields if name not in OWN_FIELDS]
    if unknown:
        row.fail(unknown[0], f"one of the fields {', '.join(OWN_FIELDS)}", "an unknown field")
    best = row.value("best", "an index, a list of indices or null")
    request = row.request({name: row.value(name) for name in ("query", "responses")} | _optional(row))
    count = len(request.responses)
    good = best if isinstance(best, list) else [] if best is None else [best]
    is_empty_list = isinstance(best, list) and not best
    if is_empty_list or len(set(map(str, good))) != len(good) or not all(type(i) is int and 0 <= i < count for i in good):
        row.fail("best", f"an index from 0 to {count - 1}, a list of different ones, or null", best)
    query, principles = request.query, request.principles
    yield BenchmarkItem(
        benchmark="spct",
        id=row.name("id", str(row.number)),
        subset=row.name("domain", "data"),
        query=query if isinstance(query, str) else cast("tuple[Turn, ...]", query),
        responses=tuple(request.responses),
        good=tuple(sorted(good)),
        reference=request.reference,
        principles=principles if principles is None or isinstance(principles, str) else tuple(principles),
        group=row.place,
    )


def _optional(row: Row) -> dict[str, object]:
    return {name: row.fields[name] for name in ("reference", "principles") if name in row.fields}

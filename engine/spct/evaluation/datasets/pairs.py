"""LLMBar, JudgeBench, PandaLM, PPE and RMB: responses to compare, with the annotators' preference."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from spct.evaluation.datasets.item import BenchmarkItem
from spct.evaluation.datasets.reading import Row

ADVERSARIAL = "adversarial-"
PPE_DOMAINS = ("mmlu_pro", "math", "gpqa", "ifeval", "mbpp_plus")
BEST_OF_N, PAIRWISE = "best-of-n", "pairs"


def llmbar(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of LLMBar (arXiv 2310.07641): {input, output_1, output_2, label: 1 or 2}. The file's name tells the subset.

    The published layout, Adversarial/Neighbor/dataset.json, is understood as well as adversarial-neighbor.json.
    """
    label = row.choice("label", (1, 2))
    subset = row.path.stem.lower()
    if subset == "dataset":
        folder, above = row.path.parent.name.lower(), row.path.parent.parent.name.lower()
        subset = f"{ADVERSARIAL}{folder}" if above == "adversarial" else folder
    responses = row.text("output_1"), row.text("output_2")
    yield BenchmarkItem("llmbar", str(row.number), subset, row.text("input"), responses, (label - 1,), group=row.place)


def judgebench(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of JudgeBench (arXiv 2410.12784): {pair_id, source, question, response_A, response_B, label: "A>B" or "B>A"}.

    Subsets are those of its table: knowledge (mmlu-pro-*), reasoning, math, coding; `cell` is the source itself.
    """
    source = row.name("source", row.path.stem)
    tables = (("mmlu-pro", "knowledge"), ("livebench-reasoning", "reasoning"), ("livebench-math", "math"), ("livecodebench", "coding"))
    yield BenchmarkItem(
        benchmark="judgebench",
        id=row.name("pair_id", str(row.number)),
        subset=next((name for prefix, name in tables if source.startswith(prefix)), source),
        query=row.text("question"),
        responses=(row.text("response_A"), row.text("response_B")),
        good=(0,) if row.choice("label", ("A>B", "B>A")) == "A>B" else (1,),
        cell=source,
        group=row.place,
    )


def pandalm(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of PandaLM's test set (arXiv 2306.05087): {instruction, input, response1, response2, annotator1..3: 0 (tie), 1 or 2}.

    The majority of the annotators counts; where all three differ the first does, as in its own data/compute_metrics.py. Six responses of
    the published file that read "True" have become JSON's true: they are texts again here.
    """
    votes = [row.choice(f"annotator{i}", (0, 1, 2)) for i in (1, 2, 3)]
    majority = Counter(votes).most_common(1)[0][0]
    parts = row.text("instruction"), row.text("input")
    yield BenchmarkItem(
        benchmark="pandalm",
        id=row.name("idx", str(row.number)),
        subset="pandalm",
        query="\n\n".join(part for part in parts if part.strip()),
        responses=(_text_or_truth_value(row, "response1"), _text_or_truth_value(row, "response2")),
        good=(majority - 1,) if majority else (),
        cell=row.name("cmp_key", ""),
        group=row.place,
    )


def ppe_preference(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of PPE's human preferences (arXiv 2410.14872): {question_id, prompt, response_1, response_2, winner, language?}.

    `winner` is model_a (response_1), model_b, or a tie.
    """
    winner = row.choice("winner", ("model_a", "model_b", "tie", "tie (bothbad)"))
    yield BenchmarkItem(
        benchmark="ppe-preference",
        id=row.name("question_id", str(row.number)),
        subset="preference",
        query=row.conversation("prompt"),
        responses=(row.text("response_1"), row.text("response_2")),
        good={"model_a": (0,), "model_b": (1,)}.get(winner, ()),
        cell=row.name("language", ""),
        group=row.place,
    )


def ppe_correctness(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of PPE's correctness sets (arXiv 2410.14872): {question_id, prompt, response_1 …, scores, sampled_conflict_pairs}.

    Every sampled pair (a right and a wrong response, by index) is an item: the benchmark's accuracy counts these. The file's name tells the
    domain.
    """
    scores = row.value("scores", "a list of truth values, one per response")
    if not isinstance(scores, list) or not scores or not all(isinstance(s, bool | int | float) for s in scores):
        row.fail("scores", "a list of truth values, one per response", scores)
    pairs = row.value("sampled_conflict_pairs", "a list of pairs of indices")
    if not isinstance(pairs, list):
        row.fail("sampled_conflict_pairs", "a list of pairs of indices", pairs)
    query, id = row.conversation("prompt"), row.name("question_id", str(row.number))
    stem = row.path.stem.lower().replace("-", "_")
    subset = next((domain for domain in PPE_DOMAINS if domain in stem), row.path.stem)
    responses = [row.text(f"response_{i + 1}") for i in range(len(scores))]
    for number, pair in enumerate(pairs):
        field = f"sampled_conflict_pairs[{number}]"
        is_pair = isinstance(pair, list) and len(pair) == 2 and all(type(i) is int and 0 <= i < len(scores) for i in pair)
        if not is_pair:
            row.fail(field, f"two indices from 0 to {len(scores) - 1}", pair)
        first, second = pair
        if scores[first] == scores[second]:
            row.fail(field, "a right and a wrong response", f"two with the score {scores[first]}")
        yield BenchmarkItem(
            benchmark="ppe-correctness",
            id=f"{id}:{first}-{second}",
            subset=subset,
            query=query,
            responses=(responses[first], responses[second]),
            good=(0,) if scores[first] > scores[second] else (1,),
            group=row.place,
        )


def rmb_pairs(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of RMB's pairwise set (arXiv 2410.09893): {pair_uid, conversation_input, chosen, reject, category_path}."""
    responses = (row.inner_text("chosen", "answer"), row.inner_text("reject", "answer"))
    yield _rmb(row, "pair_uid", PAIRWISE, responses)


def rmb_best_of_n(row: Row) -> Iterator[BenchmarkItem]:
    """Read a row of RMB's best-of-n set (arXiv 2410.09893): {bon_uid, conversation_input, bon_best, loser_list, category_path}."""
    losers = row.value("loser_list", "a list of objects")
    if not isinstance(losers, list) or not losers:
        row.fail("loser_list", "a list of at least one object with answer", losers)
    texts = [row.text_within(f"loser_list[{i}]", loser, "answer") for i, loser in enumerate(losers)]
    yield _rmb(row, "bon_uid", BEST_OF_N, (row.inner_text("bon_best", "answer"), *texts))


def _rmb(row: Row, id: str, kind: str, responses: tuple[str, ...]) -> BenchmarkItem:
    """The first response is the best. Subsets are goal and scenario, without the set's name before them."""
    path = row.name("category_path", row.path.stem)
    subset = path.partition("/")[2] if path.startswith(("BoN_set/", "Pairwise_set/")) else path
    name = row.name(id, str(row.number))
    return BenchmarkItem("rmb", name, subset, row.conversation("conversation_input"), responses, (0,), cell=kind, group=row.place)


def _text_or_truth_value(row: Row, field: str) -> str:
    value = row.value(field, "a string")
    return str(value) if isinstance(value, bool) else row.as_text(field, value)

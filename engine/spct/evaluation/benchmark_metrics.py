"""What each benchmark counts, by its own definition, beside the general accuracy.

Every metric maps the votes of blocks of k samples to statistics by name. The score of a response is its mean over a block's votes; a block
without a vote is wrong wherever it is counted. Where a benchmark's own code gives credit for an unreadable judgement, this is said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from spct.evaluation.arrays import BoolArray, IntArray
from spct.evaluation.benchmark_votes import Votes
from spct.evaluation.datasets import BenchmarkItem
from spct.evaluation.datasets.pairs import ADVERSARIAL
from spct.evaluation.datasets.rewardbench import STYLES, TIES
from spct.evaluation.intervals import FloatArray
from spct.evaluation.statistics import Statistic, combined, macro_scores, mean, roc_auc, total

Statistics = dict[str, Statistic]

# allenai/reward-bench, rewardbench/constants.py, SUBSET_MAPPING.
SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Chat": ("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med"),
    "Chat Hard": (
        "mt-bench-hard",
        "llmbar-natural",
        "llmbar-adver-neighbor",
        "llmbar-adver-GPTInst",
        "llmbar-adver-GPTOut",
        "llmbar-adver-manual",
    ),
    "Safety": ("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
    "Reasoning": ("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
}


def rewardbench(votes: Votes) -> Statistics:
    """Sections and overall score of RewardBench.

    A section is the mean of its subsets, weighted by their published sizes, math-prm as much as all code subsets; overall is the mean of
    the sections. A tie counts half and an unreadable judgement nothing (its scripts/run_generative.py gives half for both). Subsets of no
    section (the prior sets, published apart) have their own accuracy only.

    Source: arXiv 2403.13787, section 4; allenai/reward-bench, rewardbench/utils.py, calculate_scores_per_section.
    """
    weights = {item.subset: item.weight for item in votes.items}
    sections: Statistics = {}
    for section, names in SECTIONS.items():
        present = [name for name in names if name in weights]
        if present:
            sections[section] = combined([(weights[name], mean(votes.credit, votes.subset(name))) for name in present])
    return {**sections, "overall": _average(sections)} if sections else {}


def rewardbench2(votes: Votes) -> Statistics:
    """Score of RewardBench 2: the mean over its domains of best-of-4 accuracy, and for Ties of its own score.

    A tie at the top shares the credit; an unreadable judgement gives nothing (its scripts/run_generative_v2.py gives 1/4).

    Source: arXiv 2506.01937, section 3; allenai/reward-bench, scripts/run_v2.py and rewardbench/utils.py, process_single_model.
    """
    domains: Statistics = {}
    parts: Statistics = {}
    for name in votes.subsets:
        if name.lower() == TIES:
            parts = _ties(votes, votes.subset(name))
            if "score" in parts:
                domains[name] = parts.pop("score")
        else:
            domains[name] = mean(votes.credit, votes.subset(name))
    return {**domains, **{f"Ties {name}": part for name, part in parts.items()}, **({"overall": _average(domains)} if domains else {})}


def _ties(votes: Votes, mask: BoolArray) -> Statistics:
    """0.3 accuracy of tied and 0.3 of reference questions, 0.2 + 0.2 for margins, 0.01 for the size of the margin.

    A question is right if every right response outscores the best wrong one. For a tied question and its reference: is the margin between
    right and wrong larger than that among the right ones; and is the smaller of both questions' margins larger? The margin's size is
    tanh(smaller margin / spread of the right ones − 1), 0 where both are 0.
    """
    spread, margin = _margins(votes)
    kinds = {kind: mask & votes.cell(kind) for kind in ("tied", "ref")}
    accurate = {kind: mean(margin > 0, rows) for kind, rows in kinds.items() if rows.any()}
    parts: Statistics = {f"{kind} accuracy": part for kind, part in accurate.items()}
    references = {item.group: i for i, item in enumerate(votes.items) if kinds["ref"][i]}
    partner = np.array([references.get(item.group, -1) for item in votes.items])
    paired = kinds["tied"] & (partner >= 0)
    if not paired.any():
        return parts
    smaller = np.minimum(margin, margin[partner])
    with np.errstate(divide="ignore", invalid="ignore"):
        size = np.nan_to_num(np.tanh(smaller / spread - 1), nan=0.0)
    factors = ((0.3, accurate["tied"]), (0.3, accurate["ref"]), (0.2, mean(margin > spread, paired)), (0.2, mean(smaller > spread, paired)))
    return {**parts, "score": total([*factors, (0.01, mean(size, paired))])}


def _margins(votes: Votes) -> tuple[FloatArray, FloatArray]:
    """Spread of the right responses, and margin from the worst right to the best wrong one: [I, N]; NaN without a vote."""
    good = votes.good[:, None, :]
    unknown = np.isnan(votes.scores)
    right = np.where(good & ~unknown, votes.scores, np.nan)
    wrong = np.where(~good & ~unknown, votes.scores, -np.inf)
    lost = unknown.all(axis=2)
    highest = np.where(np.isnan(right), -np.inf, right).max(axis=2)
    lowest = np.where(np.isnan(right), np.inf, right).min(axis=2)
    with np.errstate(invalid="ignore"):
        spread, margin = highest - lowest, lowest - wrong.max(axis=2)
    # Means of whole numbers: what differs by less than this is equal.
    return np.where(lost, np.nan, spread).round(9), np.where(lost, np.nan, margin).round(9)


def rm_bench(votes: Votes) -> Statistics:
    """Accuracy of RM-Bench by styles: 3 x 3 of chosen and rejected, easy, normal and hard, each the mean over domains; a tie is wrong.

    Easy: the chosen response has the fancier style (below the diagonal); normal: both have one (on it); hard: the rejected one has it
    (above it). Safety is the mean of safety-refuse and safety-response. Overall is the mean of the three.

    Source: arXiv 2410.16184, section 3.3; THU-KEG/RM-Bench, README, compute_accuracy.
    """
    cells = {f"{a}-{b}": (i, j) for i, a in enumerate(STYLES) for j, b in enumerate(STYLES)}
    statistics: Statistics = {}
    for cell in cells:
        statistics[cell] = _over_domains(votes, votes.cell(cell))
    levels = {"easy": 1, "normal": 0, "hard": -1}
    for level, sign in levels.items():
        statistics[level] = _average({cell: statistics[cell] for cell, (i, j) in cells.items() if np.sign(i - j) == sign})
    return {**statistics, "overall": _average({level: statistics[level] for level in levels})}


def _over_domains(votes: Votes, mask: BoolArray) -> Statistic:
    domains: dict[str, list[tuple[float, Statistic]]] = {}
    for name in votes.subsets:
        domain = "safety" if name.startswith("safety") else name
        domains.setdefault(domain, []).append((1.0, mean(votes.strict, mask & votes.subset(name))))
    return combined([(1.0, combined(parts)) for parts in domains.values()])


def rmb(votes: Votes) -> Statistics:
    """Accuracy of RMB by goal and set, and the mean of those present; best-of-n is right only if the best response outscores every other.

    Source: arXiv 2410.09893, section 3; pairs as in its eval/scripts/my_run_rm.py, where the chosen score must be the higher one. (Its
    my_run_bon.py lets the best response, which it puts first, win a tie.)
    """
    names = np.array([_rmb_cell(item) for item in votes.items])
    cells = {name: mean(votes.strict, names == name) for name in dict.fromkeys(names.tolist())}
    return {**cells, "overall": _average(cells)}


def _rmb_cell(item: BenchmarkItem) -> str:
    return f"{item.subset.partition('/')[0].partition('-')[0].lower()} {item.cell}"


def ppe_preference(votes: Votes) -> Statistics:
    """Accuracy of PPE's human preferences, over the pairs that are no tie; `strict` counts the judge's ties as wrong, else as half.

    Source: arXiv 2410.14872, section 4.
    """
    decided = votes.where(lambda item: not item.is_tie)
    return {"accuracy": mean(votes.credit, decided), "strict": mean(votes.strict, decided)}


def ppe_correctness(votes: Votes) -> Statistics:
    """Accuracy and area under the ROC curve of PPE's correctness sets, each the mean over domains.

    Accuracy is over the sampled pairs of a right and a wrong response. The curve is that of the scores as a test of correctness, over the
    responses of these pairs, pooled within a domain: a judge that compares has a score for a response only within its pair.

    Source: arXiv 2410.14872, section 5.
    """
    accuracy = {name: mean(votes.credit, votes.subset(name)) for name in votes.subsets}
    areas: Statistics = {}
    for name in votes.subsets:
        rows = np.flatnonzero(votes.subset(name))
        scores = np.concatenate([votes.scores[rows, :, 0], votes.scores[rows, :, 1]])
        right = np.concatenate([votes.good[rows, 0], votes.good[rows, 1]])
        areas[name] = roc_auc(right, scores, item=np.concatenate([rows, rows]))
    return {"accuracy": _average(accuracy), "roc_auc": _average(areas)}


def llmbar(votes: Votes) -> Statistics:
    """Accuracy of LLMBar: the natural set, the mean of the adversarial sets; with both orders apart, how often both are right and agree.

    Source: arXiv 2310.07641, section 4; princeton-nlp/LLMBar, LLMEvaluator/evaluate.py (correct_both, equal).
    """
    by_name = {name: mean(votes.credit, votes.subset(name)) for name in votes.subsets}
    adversarial = {name: by_name[name] for name in by_name if name.startswith(ADVERSARIAL)}
    sets = {"natural": by_name["natural"]} if "natural" in by_name else {}
    first, second = votes.decisions()
    return {
        **sets,
        **({"adversarial": _average(adversarial)} if adversarial else {}),
        "both_orders": mean(_where_both(votes, (first == 1) & (second == 1))),
        "agreement": mean(_where_both(votes, first == second)),
    }


def judgebench(votes: Votes) -> Statistics:
    """Accuracy of JudgeBench over both orders, by subset and overall.

    A pair is right if more orders are won than lost: both, or one with a tie or an unreadable judgement in the other. `both_orders`: both
    won; `agreement`: both orders end alike, in a preference or a tie. Needs samples in both orders; a k without them has no such metric.

    Source: arXiv 2410.12784, section 4; ScalerLab/JudgeBench, utils/metrics.py, compute_final_metrics.
    """
    first, second = votes.decisions()
    right = _where_both(votes, np.nan_to_num(first) + np.nan_to_num(second) > 0)
    subsets = {name: mean(right, votes.subset(name)) for name in votes.subsets}
    both, agreement = _where_both(votes, (first == 1) & (second == 1)), _where_both(votes, first == second)
    return {**subsets, "overall": mean(right), "both_orders": mean(both), "agreement": mean(agreement)}


def pandalm(votes: Votes) -> Statistics:
    """Agreement with the majority of PandaLM's annotators in three classes (tie, first, second): accuracy, macro precision, recall, F1.

    An unreadable judgement is no class: it is wrong (its own script counts it as a tie).

    Source: arXiv 2306.05087, section 5; WeOpenML/PandaLM, data/compute_metrics.py.
    """
    truth: IntArray = np.array([item.good[0] + 1 if item.good else 0 for item in votes.items])
    first, second = votes.scores[..., 0], votes.scores[..., 1]
    predicted = np.where(np.isnan(first), -1, np.where(first > second, 1, np.where(second > first, 2, 0)))
    return {"accuracy": mean(predicted == truth[:, None]), **macro_scores(truth, predicted, (0, 1, 2))}


def realmistake(votes: Votes) -> Statistics:
    """Area under the ROC curve of ReaLMistake's scores as a test for responses without an error: overall and by task.

    Judgements without a vote are left out, and reported apart; in `roc_auc_strict` every comparison with one of them is lost.

    Source: arXiv 2404.03602 (data); the measure is that of arXiv 2504.02495, table 3.
    """
    good, scores = votes.good[:, 0], votes.scores[..., 0]
    found = {"roc_auc": roc_auc(good, scores), "roc_auc_strict": roc_auc(good, scores, unscored_lose=True)}
    for name in votes.subsets if len(votes.subsets) > 1 else ():
        rows = np.flatnonzero(votes.subset(name))
        found[f"roc_auc {name}"] = roc_auc(good[rows], scores[rows], item=rows)
    return found


def helpsteer(votes: Votes) -> Statistics:
    """Accuracy over the items that annotators decide: the most helpful response, or the preferred one.

    Source: arXiv 2410.01257, section 3 (preferences of strength 0 are left out).
    """
    return {"accuracy": mean(votes.credit, votes.where(lambda item: not item.is_tie))}


METRICS: Mapping[str, Callable[[Votes], Statistics]] = {
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "rm-bench": rm_bench,
    "rmb": rmb,
    "ppe-preference": ppe_preference,
    "ppe-correctness": ppe_correctness,
    "llmbar": llmbar,
    "judgebench": judgebench,
    "pandalm": pandalm,
    "realmistake": realmistake,
    "helpsteer": helpsteer,
    "spct": lambda votes: {},
}


def _average(parts: Mapping[str, Statistic]) -> Statistic:
    return combined([(1.0, part) for part in parts.values()])


def _where_both(votes: Votes, values: BoolArray) -> FloatArray:
    """Values of the blocks that show both orders; NaN elsewhere."""
    return np.where(votes.shown.all(axis=2), values.astype(np.float64), np.nan)

"""What a meta RM is worth: the engine judges held-out items with each form, and the votes are counted with and without it.

The samples are those that the engine draws with the trained folder, and the votes those of `spct.voting`: so the report says what a user
gets. Items of the validation split only.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from spct.checkpoint.config import read_spec
from spct.engine import Engine
from spct.training.correctness import is_correct, middle_of
from spct.training.labelled import LabelledRequest
from spct.training.meta_config import FORMS, MetaConfig, describe
from spct.training.meta_metrics import auc, calibration, mean_with_interval, within_item_auc
from spct.types import FilterMethod, Sample, SamplingParams, VotingParams
from spct.voting import ParsedSample, judge

FRACTIONS = (0.25, 0.5, 0.75)
# Rounds of the timing, each on items of its own, so that no prompt is known from a round before.
COST_ROUNDS = 3
COST_ITEMS = 48


@dataclass(frozen=True, slots=True)
class Judged:
    """An item of known truth and its samples.

    middle  of the template's score range
    """

    item: LabelledRequest
    samples: tuple[Sample, ...]
    middle: float


def write_report(config: MetaConfig, items: Sequence[LabelledRequest], votes: int) -> dict[str, Any]:
    """Judge held-out items with every finished form in the output folder; write and return `report.json` there.

    items   that no form has seen
    votes   samples per item, drawn from another seed than those that were learnt from

    Raises: SpctError as the engine does.
    """
    ks = sorted({k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < votes} | {votes})
    sampling = SamplingParams(samples=votes, temperature=config.temperature, max_tokens=config.max_tokens, seed=config.seed + 1)
    folders = {form: config.output / form for form in FORMS if (config.output / form / "config.json").exists()}
    with contextlib.ExitStack() as stack:
        options: dict[str, Any] = config.engine_options
        engines = {"judge": stack.enter_context(Engine.from_pretrained(config.judge, **options))}
        if "fused" in folders:
            engines["fused"] = stack.enter_context(Engine.from_pretrained(folders["fused"], **options))
        if "scalar" in folders:
            engines["scalar"] = stack.enter_context(Engine.from_pretrained(config.judge, meta_model=folders["scalar"], **options))
        # First, while no prompt is in any cache.
        cost = measure_cost(engines, items[:COST_ITEMS], sampling, folders)
        forms = {form: report_form(judge_items(engines[form], items, sampling), ks) for form in folders}
    report = {"settings": describe(config), "votes": votes, **forms, "cost": cost}
    if len(forms) == len(FORMS):
        report["fused-scalar"] = compare_forms(forms)
    beside = config.output / "report.json.tmp"
    beside.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    beside.replace(config.output / "report.json")
    return report


def judge_items(engine: Engine, items: Sequence[LabelledRequest], sampling: SamplingParams) -> list[Judged]:
    """Draw the samples of every item.

    Raises: the first item's error, if one could not be judged.
    """
    console = Console(stderr=True)
    found: dict[int, Judged] = {}
    stream = engine.score_batch((item.request for item in items), sampling=sampling, voting=VotingParams(filter="none"))
    for judgement in track(stream, total=len(items), description="judging", console=console, disable=not console.is_terminal):
        if judgement.error is not None:
            raise judgement.error
        item = items[judgement.index]
        found[judgement.index] = Judged(item, judgement.samples, middle_of(engine.prompt.score_range(item.request)))
    return [found[i] for i in range(len(items))]


def report_form(judged: Sequence[Judged], ks: Sequence[int]) -> dict[str, Any]:
    """Report one form: ranking, calibration, accuracy at every k by plain and guided votes, and paired differences.

    "auc" and "auc_within" are those of parsed samples (None where no item has correct and wrong ones); "logprob_auc_within" is the
    same with the mean log-probability in the place of the meta score. "accuracy" maps "voting", "meta" (half kept), "meta@f" and
    "logprob" to k to [mean, low, high]; "paired" the differences from plain voting, and of "meta" from "logprob".
    """
    rows = [
        (place, s, is_correct(s.scores, j.item.best, j.middle)) for place, j in enumerate(judged) for s in j.samples if s.scores is not None
    ]
    labels = np.array([float(correct) for _, _, correct in rows])
    owners = np.array([place for place, _, _ in rows])
    # A sample without a finite score ranks last, as the filter has it.
    scores = np.array([-60.0 if s.meta_score is None else s.meta_score for _, s, _ in rows])
    logprobs = np.array([s.logprob for _, s, _ in rows])
    within, num_mixed = within_item_auc(scores, labels, owners)
    error, bins = calibration(scores, labels)
    drawn = sum(len(j.samples) for j in judged)
    accuracy = {name: {str(k): [_item_accuracy(j, k, voting) for j in judged] for k in ks} for name, voting in _rules().items()}
    return {
        "items": len(judged),
        "samples": drawn,
        "valid_rate": len(rows) / drawn,
        "correct_rate": float(labels.mean()) if len(rows) else None,
        "auc": auc(scores, labels),
        "auc_within": within,
        "logprob_auc_within": within_item_auc(logprobs, labels, owners)[0],
        "mixed_items": num_mixed,
        "ece": error,
        "bins": bins,
        "accuracy": {name: {k: mean_with_interval(values) for k, values in by_k.items()} for name, by_k in accuracy.items()},
        "paired": {
            f"{one}-{other}": {k: mean_with_interval(np.subtract(accuracy[one][k], accuracy[other][k]).tolist()) for k in accuracy[one]}
            for one, other in (*((name, "voting") for name in accuracy if name != "voting"), ("meta", "logprob"))
        },
    }


def compare_forms(reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Set both forms side by side: differences fused − scalar in ranking and in guided accuracy at every k (half kept)."""
    fused, scalar = reports["fused"], reports["scalar"]
    difference = {k: fused["accuracy"]["meta"][k][0] - value[0] for k, value in scalar["accuracy"]["meta"].items()}

    def minus(name: str) -> float | None:
        return None if fused[name] is None or scalar[name] is None else fused[name] - scalar[name]

    return {"auc": minus("auc"), "auc_within": minus("auc_within"), "meta_accuracy": difference}


def measure_cost(
    engines: Mapping[str, Engine], items: Sequence[LabelledRequest], sampling: SamplingParams, folders: Mapping[str, Path]
) -> dict[str, Any]:
    """Time every engine on the same fresh items, in turn within each round; "judge" is the one without a meta RM.

    Seconds are sums over the rounds: "cpu_seconds" of this process, which a busy machine disturbs less than "seconds". "flops" counts the
    products that a form adds to the judge: 2 E a token for a head, 2 (parameters) a row for a model of its own.
    """
    per_round = max(1, len(items) // COST_ROUNDS)
    names = ("seconds", "cpu_seconds", "prefilled_tokens", "generated_tokens", "meta_tokens", "flops")
    cost: dict[str, dict[str, float]] = {name: dict.fromkeys(names, 0.0) for name in engines}
    for start in range(0, per_round * COST_ROUNDS, per_round):
        requests = [item.request for item in items[start : start + per_round]]
        for name, engine in engines.items():
            meta_before = engine.meta_stats.num_rows if engine.meta_stats is not None else 0
            wall, cpu = time.perf_counter(), time.process_time()
            usages = [j.usage for j in engine.score_batch(requests, sampling=sampling, voting=VotingParams(filter="none"))]
            row = cost[name]
            row["seconds"] += time.perf_counter() - wall
            row["cpu_seconds"] += time.process_time() - cpu
            row["prefilled_tokens"] += sum(u.prefilled_tokens for u in usages)
            row["generated_tokens"] += sum(u.generated_tokens for u in usages)
            row["meta_tokens"] += (engine.meta_stats.num_rows if engine.meta_stats is not None else 0) - meta_before
    for name, row in cost.items():
        if name == "fused":
            row["flops"] = 2 * read_spec(folders[name] / "config.json").hidden_dim * row["generated_tokens"]
        elif name == "scalar":
            spec = read_spec(folders[name] / "config.json", "score")
            # The table of embeddings is looked up, never multiplied with.
            row["flops"] = 2 * (spec.num_parameters - spec.vocab_size * spec.hidden_dim) * row["meta_tokens"]
    return cost


def _rules() -> dict[str, VotingParams]:
    def guided(method: FilterMethod, fraction: float) -> VotingParams:
        return VotingParams(method="mean", filter=method, meta_keep=fraction)

    by_fraction = {f"meta@{fraction:g}": guided("meta", fraction) for fraction in FRACTIONS if fraction != 0.5}
    return {"voting": guided("none", 1.0), "meta": guided("meta", 0.5), **by_fraction, "logprob": guided("logprob", 0.5)}


def _item_accuracy(judged: Judged, k: int, voting: VotingParams) -> float:
    """The credit of an item, averaged over all disjoint blocks of k of its samples."""
    samples = judged.samples
    blocks = [samples[at : at + k] for at in range(0, len(samples) - k + 1, k)]
    return sum(_credit(judged, block, voting) for block in blocks) / len(blocks)


def _credit(judged: Judged, samples: Sequence[Sample], voting: VotingParams) -> float:
    """1 for the right outcome, 1/m for a tie of m that holds it, 0 else and without a vote."""
    parsed = [
        ParsedSample(s.scores, "ok" if s.scores is not None else s.status, s.order, "", s.num_tokens, s.meta_score, s.logprob)
        for s in samples
    ]
    outcome = judge(parsed, len(judged.item.request.responses), voting, has_meta_head=True)
    rewards = [r for r in outcome.rewards if r is not None]
    if not rewards:
        return 0.0
    if len(outcome.rewards) == 1:
        return float(is_correct(rewards, judged.item.best, judged.middle))
    winners = [i for i, r in enumerate(rewards) if r == max(rewards)]
    return 1 / len(winners) if judged.item.best in winners else 0.0

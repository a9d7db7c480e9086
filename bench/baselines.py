"""The comparison of Self-Principled Critique Tuning in small: baselines and judges on the same held-out items, greedy.

    python bench/baselines.py --baseline scalar=DIR … --judge "GRM, SFT=DIR" --judge "GRM, 8 votes=DIR@8" … --reference scalar

A baseline is a folder of `spct train baseline`; a judge any model that `spct score` takes ("embedded" too). Every one gives its verdict at
temperature 0 on the same items of `embedded-test` (the judges, and the one that picks, once for every rotation of the responses,
averaged); MODEL@K is the vote of K samples at temperature 1 in balanced orders, MODEL@K/F that of the share F of them that its meta head
ranks highest. The table holds items with two responses and more, which every form can judge; with one response a form answers good or bad
or nothing, and these accuracies stand beside it. Intervals: bootstrap over items; differences from the reference are paired, item by item,
that of spreads resample by resample; the spread is the largest accuracy of a domain less the smallest, its interval from resampling the
items of every domain. `open` is the mean over domains where several wishes are weighed, `checkable` over those whose main criterion is an
exact result.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from judge_report import OPEN, baselines_table

from spct import Engine, SamplingParams
from spct.baselines.evaluation import SCORE_RANGE, verdicts
from spct.baselines.sidecar import read_form
from spct.evaluation import embedded_test
from spct.evaluation.accuracy import DrawnSample, Truth, item_accuracy, keep_best
from spct.evaluation.intervals import QUANTILES, RESAMPLES, FloatArray, interval, paired_difference
from spct.evaluation.judging import drawn, judge_items, passes
from spct.training.tasks import Item

MAX_TOKENS = 700


def credits_of(name: str, model: str, items: Sequence[Item], truths: Sequence[Truth], rows: Path) -> tuple[FloatArray, float]:
    """Accuracy of every item, averaged over its verdicts, and the tokens written per verdict; kept in `rows` for the next call."""
    kept = rows / f"{name}.json"
    if kept.exists():
        told = json.loads(kept.read_text(encoding="utf-8"))
        if told["items"] == len(items):
            return np.array(told["credits"]), told["tokens"]
    model, k, share = parsed(model)
    form = None if model == "embedded" else read_form(Path(model))
    if k:
        samples, middle = _judged(name, model, items, k)
    elif form is not None:
        samples = verdicts(form, Path(model), items, device="auto", max_tokens=MAX_TOKENS, done=_count(name, len(items)))
        middle = sum(SCORE_RANGE) / 2
    else:
        samples, middle = _judged(name, model, items)
    k = max(k, 1)

    def vote(block: Sequence[DrawnSample]) -> Sequence[DrawnSample]:
        return block if share == 1 else keep_best(block, lambda sample: sample.meta_score, share)

    credits = [item_accuracy(truth, row, k, middle, choose=vote) for truth, row in zip(truths, samples, strict=True)]
    tokens = k * float(np.mean([sample.num_tokens for row in samples for sample in row]))
    kept.write_text(json.dumps({"items": len(items), "credits": credits, "tokens": tokens}), encoding="utf-8")
    return np.array(credits), tokens


def parsed(model: str) -> tuple[str, int, float]:
    """Folder, votes (0: greedy) and the share of the samples that vote, of MODEL, MODEL@K or MODEL@K/F."""
    folder, _, rule = model.partition("@")
    votes, _, share = rule.partition("/")
    return folder, int(votes or 0), float(share or 1)


def _judged(name: str, model: str, items: Sequence[Item], votes: int = 0) -> tuple[list[list[DrawnSample]], float]:
    """Samples of every item and the middle of the scores: greedily in every rotation, or `votes` at temperature 1."""
    sampled, greedy = passes(SamplingParams(samples=max(votes, 1), max_tokens=MAX_TOKENS), greedy=True)
    way = sampled if votes else greedy
    samples = [way.unread(item) for item in items]
    count = _count(name, len(items))
    with Engine.from_pretrained(model) as engine:
        for judgement in judge_items(engine, items, way):
            samples[judgement.index] = [drawn(sample) for sample in judgement.samples] or samples[judgement.index]
            count("")
        return samples, sum(engine.prompt.score_range(2)) / 2


def curve(folder: Path) -> dict[str, Any] | None:
    """Steps of a baseline's training and its mean loss in each quarter of them; None for a folder without `metrics.jsonl`.

    Every step learns from items that no step before had, so that this is a loss on items not seen yet (a semi-scalar form's come again
    where it has more steps than critiques).
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    losses = [json.loads(line)["loss"] for line in path.read_text(encoding="utf-8").splitlines()]
    return {"steps": len(losses), "loss": [round(float(part.mean()), 4) for part in np.array_split(np.array(losses), 4)]}


def by_domain(credits: FloatArray, truths: Sequence[Truth]) -> tuple[dict[str, FloatArray], FloatArray]:
    """The credits of every domain, and its means over resamples [D, N]: the same items for every model."""
    names = sorted({truth.subset for truth in truths})
    groups = {name: credits[[i for i, truth in enumerate(truths) if truth.subset == name]] for name in names}
    rng = np.random.default_rng(0)
    return groups, np.stack([own[rng.integers(0, len(own), (RESAMPLES, len(own)))].mean(axis=1) for own in groups.values()])


def section(credits: FloatArray, truths: Sequence[Truth]) -> dict[str, Any]:
    """Accuracy over all items, by domain, and how far domains lie apart."""
    groups, resampled = by_domain(credits, truths)
    names = list(groups)
    means = {name: float(group.mean()) for name, group in groups.items()}
    spread = np.quantile(np.ptp(resampled, axis=0), QUANTILES)
    kinds = {kind: np.array([(name in OPEN) == (kind == "open") for name in names]) for kind in ("open", "checkable")}
    return {
        "accuracy": [float(credits.mean()), *interval(credits.tolist())],
        "domains": {name: [means[name], *interval(group.tolist())] for name, group in groups.items()},
        "spread": [max(means.values()) - min(means.values()), *map(float, spread)],
        **{
            kind: [
                float(np.mean([means[n] for n in np.array(names)[own]])),
                *map(float, np.quantile(resampled[own].mean(axis=0), QUANTILES)),
            ]
            for kind, own in kinds.items()
        },
    }


def spread_difference(credits: FloatArray, base: FloatArray, truths: Sequence[Truth]) -> list[float]:
    """How much further the domains of `credits` lie apart than those of `base`, with the interval over the same resamples."""
    (own, resampled), (other, others) = by_domain(credits, truths), by_domain(base, truths)
    spreads = [np.ptp([group.mean() for group in groups.values()]) for groups in (own, other)]
    return [float(spreads[0] - spreads[1]), *map(float, np.quantile(np.ptp(resampled, axis=0) - np.ptp(others, axis=0), QUANTILES))]


def report(models: dict[str, tuple[FloatArray, float]], truths: Sequence[Truth], reference: str) -> dict[str, Any]:
    """Every model's section over items with several responses, its accuracy on single ones, and its paired difference from `reference`."""
    several = [i for i, truth in enumerate(truths) if truth.num_responses > 1]
    single = [i for i, truth in enumerate(truths) if truth.num_responses == 1]
    chosen = [truths[i] for i in several]
    told: dict[str, Any] = {
        "bench": "baselines",
        "items": len(several),
        "single_items": len(single),
        "chance": float(np.mean([t.chance for t in chosen])),
    }
    told["models"] = {}
    for name, (credits, tokens) in models.items():
        own = section(credits[several], chosen)
        own["single"] = float(credits[single].mean()) if single else None
        own["tokens"] = tokens
        if name != reference:
            base = models[reference][0]
            own["difference"] = paired_difference(credits[several].tolist(), base[several].tolist())
            for kind in ("open", "checkable"):
                rows = [i for i in several if (truths[i].subset in OPEN) == (kind == "open")]
                own[f"difference_{kind}"] = paired_difference(credits[rows].tolist(), base[rows].tolist())
            own["difference_spread"] = spread_difference(credits[several], base[several], chosen)
        told["models"][name] = own
    told["reference"] = reference
    rounded: dict[str, Any] = json.loads(json.dumps(told), parse_float=lambda text: round(float(text), 5))
    return rounded


def _count(name: str, total: int) -> Any:
    seen = 0

    def done(_: str) -> None:
        nonlocal seen
        seen += 1
        if seen % 100 == 0 or seen == total:
            print(f"{name}: {seen} of {total}", file=sys.stderr, flush=True)

    return done


def main() -> int:
    """Judges, computes, writes; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--baseline", "--judge", action="append", dest="models", required=True, metavar="NAME=MODEL")
    parser.add_argument("--reference", help="the model that differences are from (default: the last)")
    parser.add_argument("--items", type=int, default=1200)
    parser.add_argument(
        "--rows", type=Path, default=Path("baselines.rows"), help="folder of what was judged; an interrupted run resumes there"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "baselines.json")
    parser.add_argument("--machine", default="", help="what to say of this machine in the result")
    args = parser.parse_args()
    items = embedded_test.load(args.items)
    truths = [embedded_test.truth_of(item) for item in items]
    args.rows.mkdir(parents=True, exist_ok=True)
    named = [word.partition("=") for word in args.models]
    models = {name: credits_of(name, model, items, truths, args.rows) for name, _, model in named}
    told = report(models, truths, args.reference or named[-1][0])
    for name, _, model in named:
        if (trained := curve(Path(model))) is not None:
            told["models"][name]["training"] = trained
    date = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    # A folder goes by its last name; "DIR@8/0.5" is no path of three parts.
    shown = " ".join(
        f"--judge '{name}={Path(folder).name}{at}{rule}'" for name, _, model in named for folder, at, rule in [model.partition("@")]
    )
    command = f"python bench/baselines.py {shown} --reference {told['reference']!r} --items {args.items}"
    told["measured"] = {"date": date, "machine": args.machine, "command": command}
    args.output.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=1) + b"\n")
    print(baselines_table(told))
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How often the embedded judge's single verdicts are right, by criterion: where its mistakes come from.

    python bench/embedded_checks.py [--limit 700] [--samples 2] [--data-seed 7]

A sample's analysis holds one verdict (ok or no) for each of its criteria and each response; the generator knows the truth of every one.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict

from spct import Engine, SamplingParams, VotingParams
from spct.evaluation import embedded_test
from spct.training.tasks import Item
from spct.types import Sample

BY_DOMAIN = ("exact result", "count", "order")
_VERDICT = re.compile(r"\d: (?:.*?) (ok|no) \d+[;.]")


def verdicts(item: Item, sample: Sample) -> list[tuple[str, bool]] | None:
    """(criterion, the verdict is right) for every verdict of a sample; None if its analysis is not laid out as it should be."""
    heading = re.search(r"Specific Criteria: (.*)\n", sample.text)
    given = [word == "ok" for word in _VERDICT.findall(sample.text)]
    names = [part.rsplit(" (", 1)[0] for part in heading[1].split(", ")] if heading else []
    if not names or len(given) != len(names) * len(sample.order):
        return None
    truth = {c.label: c.met for c in item.criteria}
    pairs = [(name, place) for name in names for place in sample.order]
    known = [(name, right == truth[name][i]) for (name, i), right in zip(pairs, given, strict=True) if name in truth]
    return [(f"{name} ({item.domain})" if name in BY_DOMAIN else name, right) for name, right in known]


def main() -> None:
    """Judges, counts and prints, the weakest criterion first."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--limit", type=int, default=700)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--data-seed", type=int, default=7)
    args = parser.parse_args()
    items = embedded_test.load(args.limit, args.data_seed)
    counts: dict[str, list[bool]] = defaultdict(list)
    unread = 0
    with Engine.from_pretrained("embedded") as engine:
        sampling = SamplingParams(samples=args.samples, max_tokens=400)
        for judgement in engine.score_batch([i.request() for i in items], sampling=sampling, voting=VotingParams(filter="none")):
            for sample in judgement.samples:
                found = verdicts(items[judgement.index], sample)
                unread += found is None
                for name, right in found or ():
                    counts[name].append(right)
    for name, rights in sorted(counts.items(), key=lambda entry: sum(entry[1]) / len(entry[1])):
        print(f"{name:<28}{len(rights):>7}{100 * sum(rights) / len(rights):>8.1f}")
    print(f"samples without such an analysis: {unread}")


if __name__ == "__main__":
    main()

"""Writes the tables of README.md and docs/ from the JSON files under bench/results/.

    python bench/tables.py            rewrite what has changed
    python bench/tables.py --check    exit 1 if a table does not say what its JSON says

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; NAME is the stem of a file in bench/results/.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

from judge_report import baselines_table, best_of_n_table
from meta_report import meta_forms_table
from peer_report import peers_table, startup_table
from published_report import published_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
_MARK = re.compile(r"(<!-- table:([\w-]+) -->\n)(.*?)(<!-- /table:\2 -->)", re.DOTALL)


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return f"{100 * value:.1f}"


def accuracy_table(report: dict[str, Any]) -> str:
    """Accuracy of a judge on one data set: a row per subset, a column per number of samples; of many, the smallest, a quarter and all."""
    ks = sorted(report["voting"], key=int)
    if len(ks) > 3:
        ks = [k for k in ks if int(k) in (int(ks[0]), int(ks[-1]) // 4, int(ks[-1]))]
    columns = [("voting", k, f"{k} sample{'s' * (k != '1')}") for k in ks]
    columns += [("meta", k, f"{k}, meta RM") for k in ks if "meta" in report and k != "1"]
    has_greedy = "greedy" in report
    head = ["domain", "items", "chance", "valid samples", *(["greedy"] if has_greedy else []), *(label for _, _, label in columns)]
    rows = [("**all**", report), *sorted(report["subsets"].items())]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name, section in rows:
        cells = [name, str(section["items"]), percent(section["chance"]), percent(section["valid_rate"])]
        cells += [percent(section["greedy"])] if has_greedy else []
        for curve, k, _ in columns:
            low, high = section["intervals"][curve][k]
            cells.append(f"{percent(section[curve][k])} ({percent(low)} to {percent(high)})")
        lines.append("| " + " | ".join(cells) + " |")
    note = report["measured"]
    lines.append("")
    guided = "; meta RM: the half of them that it ranks highest" if "meta" in report else ""
    greedy = "; greedy: one sample at temperature 0, averaged over the orders" if has_greedy else ""
    lines.append(f"Accuracy in % with 95% intervals (bootstrap over items), plain votes, temperature 1{guided}{greedy}.")
    lines.append(f"{note['date']}, {note['machine']}: `{note['command']}`.")
    return "\n".join(lines) + "\n"


def stages_table(report: dict[str, Any]) -> str:
    """Accuracy after each stage of training, then what it adds to the stage before, item by item."""
    stages = report["stages"]
    ks = sorted(stages[0]["voting"], key=int)
    lines = ["| | greedy | " + " | ".join(f"{k} sample{'s' * (k != '1')}" for k in ks) + " |", "|---" * (len(ks) + 2) + "|"]
    for stage in stages:
        lines.append("| " + " | ".join([stage["name"], percent(stage["greedy"]), *(percent(stage["voting"][k]) for k in ks)]) + " |")
    for before, stage in itertools.pairwise(stages):
        rows = [stage["against"]["greedy"], *(stage["against"]["voting"][k] for k in ks)]
        cells = [f"{100 * mean:+.1f} ({100 * low:.1f} to {100 * high:.1f})" for mean, low, high in rows]
        lines.append("| " + " | ".join([f"{stage['name']} - {before['name']}", *cells]) + " |")
    note = report["measured"]
    lines += ["", f"The same {stages[0]['items']} items; paired differences in points with 95% intervals (bootstrap over items)."]
    lines.append(f"{note['date']}, {note['machine']}: `{note['command']}`.")
    return "\n".join(lines) + "\n"


def certificates_table(report: dict[str, Any]) -> str:
    """Rows of a model's own text without a certificate, a temperature a row."""
    lines = ["| temperature | rows | without a certificate | wrong with one | tokens kept (50, 90, 99%) |", "|---" * 5 + "|"]
    for row in report["rows"]:
        low, high = row["interval"]
        share = f"{row['uncertified']} = {100 * row['share']:.2f}% ({100 * low:.2f} to {100 * high:.2f})"
        kept = ", ".join(map(str, row["nucleus_50_90_99"]))
        lines.append(f"| {row['temperature']} | {row['rows']} | {share} | {row['wrong_where_certified']} | {kept} |")
    kernels = [row["kernel"] for row in report["rows"]]
    rows, missed, flags, tokens = (
        sum(one[name] for one in kernels) for name in ("rows", "uncertified", "flags_that_differ", "tokens_that_differ")
    )
    lines += [
        "",
        f"Top-p {report['rows'][0]['top_p']}, by a numpy model of the certificate; 95% intervals (Wilson, independent rows).",
    ]
    lines.append(
        f"The kernels themselves, under Triton's interpreter, drew {rows} of these rows, {missed} without a certificate: "
        f"{flags} flags and {tokens} tokens differ from the model's."
    )
    machine, versions = report["machine"], report["versions"]
    lines.append(
        f"{report['date']}, {machine['threads']} thread of an {machine['cpu']} ({machine['level']}), torch {versions['torch']}, "
        f"Triton {versions['triton']}: `{report['command']}`."
    )
    return "\n".join(lines) + "\n"


# What a report's "bench" names; a report without it is one of accuracies.
TABLES = {
    "peers": peers_table,
    "startup": startup_table,
    "certificates": certificates_table,
    "best-of-n": best_of_n_table,
    "baselines": baselines_table,
    "stages": stages_table,
    "published-model": published_table,
    "meta-forms": meta_forms_table,
}


def fill(text: str) -> str:
    """The text with every table made afresh."""

    def table(match: re.Match[str]) -> str:
        report = json.loads((RESULTS / f"{match[2]}.json").read_text())
        return match[1] + TABLES.get(report.get("bench", ""), accuracy_table)(report) + match[4]

    return _MARK.sub(table, text)


def main() -> int:
    """Rewrites or checks every document; returns the exit code."""
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        before = path.read_text()
        after = fill(before)
        if after != before:
            stale.append(path)
            if "--check" not in sys.argv:
                path.write_text(after)
    for path in stale:
        print(f"{path.relative_to(ROOT)}: {'differs from bench/results' if '--check' in sys.argv else 'rewritten'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())

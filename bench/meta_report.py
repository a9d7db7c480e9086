"""The table of both forms of the meta RM, from the report of `spct train meta --form both`."""

from __future__ import annotations

from typing import Any

ROWS = (
    ("all samples vote", "fused", "voting"),
    ("half, by the fused head", "fused", "meta"),
    ("half, by the scalar model", "scalar", "meta"),
    ("half, by log-probability", "fused", "logprob"),
)
DIFFERENCES = (
    ("fused half - all", "fused", "meta-voting"),
    ("scalar half - all", "scalar", "meta-voting"),
    ("fused half - log-probability half", "fused", "meta-logprob"),
    ("scalar half - log-probability half", "scalar", "meta-logprob"),
)


def meta_forms_table(told: dict[str, Any]) -> str:
    """Votes with and without each form, what it adds on the same items, then how well it ranks and what it costs."""
    ks = [k for k in told["fused"]["accuracy"]["voting"] if k != "1"]
    lines = ["| votes | " + " | ".join(f"k = {k}" for k in ks) + " |", "|---" * (len(ks) + 1) + "|"]
    for label, form, rule in ROWS:
        cells = [f"{100 * mean:.1f} ({100 * low:.1f} to {100 * high:.1f})" for mean, low, high in map(told[form]["accuracy"][rule].get, ks)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    for label, form, rule in DIFFERENCES:
        cells = [f"{100 * mean:+.1f} ({100 * low:.1f} to {100 * high:.1f})" for mean, low, high in map(told[form]["paired"][rule].get, ks)]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    lines += ["", "| form | AUC | within items | calibration error | operations beside the judge's | CPU seconds, all |", "|---" * 6 + "|"]
    for form in ("judge", "fused", "scalar"):
        cost, own = told["cost"][form], told.get(form)
        ranks = [f"{own[name]:.3f}" for name in ("auc", "auc_within", "ece")] if own else ["", "", ""]
        lines.append(f"| {form} | " + " | ".join([*ranks, f"{cost['flops']:.2g}", f"{cost['cpu_seconds']:.1f}"]) + " |")
    fused, note = told["fused"], told["measured"]
    lines += [
        "",
        f"{fused['items']} held-out items, {told['votes']} samples each; {fused['mixed_items']} items have right and wrong ones, which "
        f"the mean log-probability ranks at {fused['logprob_auc_within']:.3f} within items. Accuracy in %, 95% intervals (bootstrap over "
        f"items); differences in points on the same samples. Costs: "
        f"{told['cost']['judge']['generated_tokens']:,.0f} tokens written, the three in turn.",
        f"{note['date']}, {note['machine']}: `{note['command']}`.",
    ]
    return "\n".join(lines) + "\n"

"""Which compilations `compile_check` makes: all that an engine launches, and the covering part that a routine check takes.

Rows come from `model_rows` of the modules `spct_kernels.triton_*`: what an engine launches for the models of `specialisation.MODELS`; a
test holds them against what an engine run records (`spct_kernels.recorded`).
"""

from __future__ import annotations

import importlib
import itertools
import math
import pkgutil
from collections.abc import Iterator, Sequence
from typing import Any

import spct_kernels
from spct_kernels.specialisation import LENGTHS, MODELS, ModelShape, Specialisation


def modules() -> Iterator[str]:
    """Names of the modules that may hold Triton kernels."""
    for module in pkgutil.iter_modules(spct_kernels.__path__):
        if module.name.startswith("triton_"):
            yield f"spct_kernels.{module.name}"


def rows_of(model: ModelShape) -> list[Specialisation]:
    """Every kernel that an engine launches for a model."""
    return [row for module in _with_rows() for row in module.model_rows(model)]


def all_specialisations() -> list[Specialisation]:
    """What an engine launches for `specialisation.MODELS`, and the modules' other rows; of each kind the longest, once."""
    found: dict[tuple[Any, ...], Specialisation] = {}
    for one in [*(row for model in MODELS for row in rows_of(model)), *(row for module in _with_rows() for row in module.other_rows())]:
        kind = one.kind
        if kind not in found or _length(one) > _length(found[kind]):
            found[kind] = one
    return list(found.values())


def _with_rows() -> list[Any]:
    """The modules that know rows."""
    return [module for module in map(importlib.import_module, modules()) if hasattr(module, "model_rows")]


def _length(specialisation: Specialisation) -> int:
    """The product of its lengths."""
    values = [value for name, value in specialisation.constexprs.items() if name in LENGTHS]
    return math.prod(value for value in values if isinstance(value, int) and value)


def covering(rows: Sequence[tuple[int, str]], specialisations: Sequence[Specialisation]) -> list[tuple[int, str]]:
    """The rows that a routine check compiles: of every kernel each target at least once, and each type, constant and launch option.

    For kernels that multiply, where registers are short, each constant that is on or off is taken on each target; for those of PAIRED
    each two of them together, as a spill may come from two branches that each alone do not spill. Greedy: the row that adds the most
    comes first, the earlier one of equals; before them those of ONCE_SPILLED. What is left out combines the same parts otherwise.
    """
    chosen: list[tuple[int, str]] = []
    groups: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        groups.setdefault(specialisations[row[0]].kernel_name, []).append(row)
    for group in groups.values():
        features = {row: covered(specialisations[row[0]], row[1]) for row in group}
        missing = frozenset[tuple[str, ...]]().union(*features.values())
        for row in group:
            if (specialisations[row[0]].kernel_name, row[1], specialisations[row[0]].name) in ONCE_SPILLED:
                missing -= features[row]
                chosen.append(row)
        while missing:
            best = max(group, key=lambda row: len(features[row] & missing))
            missing -= features[best]
            chosen.append(best)
    return sorted(chosen, key=rows.index)


PAIRED = frozenset({"attention", "linear", "head"})
"""Kernels that branch on several constants and hold much in registers. The head's others do a part of what it does."""


ONCE_SPILLED = frozenset(
    {
        ("attention", "sm_90", "embedded decode"),
        ("attention", "sm_100", "embedded decode"),
        ("attention", "sm_100", "embedded prefill, cut tiles"),
        ("attention", "sm_90", "dim 256 decode"),
        ("token_logits", "sm_100", "panels, 2 parts"),
    }
)
"""(kernel, target, specialisation) that spilled while every row covering the same parts did not: always compiled."""


def covered(specialisation: Specialisation, target: str) -> frozenset[tuple[str, ...]]:
    """What a row covers of its kernel."""
    features: set[tuple[str, ...]] = {(target,), *specialisation.features(target)}
    if specialisation.mma:
        switches = sorted((name, value) for name, value in specialisation.features(target) if value in ("True", "False"))
        features |= {(target, *switch) for switch in switches}
        if specialisation.kernel_name in PAIRED:
            features |= {(target, *one, *other) for one, other in itertools.combinations(switches, 2)}
    return frozenset(features)

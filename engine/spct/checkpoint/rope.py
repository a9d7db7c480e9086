"""The rotary parameters of `config.json`, in the spellings of transformers 4 and 5, flat or per layer type."""

from __future__ import annotations

from dataclasses import dataclass

from spct.checkpoint.fields import Fields
from spct.errors import CheckpointError
from spct.layers.rope import yarn_attention_factor
from spct.layers.spec import RopeKind, RopeSpec

_KINDS: dict[str, RopeKind] = {"default": "default", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
_LAYER_TYPES = ("full_attention", "sliding_attention")


@dataclass(frozen=True)
class Ropes:
    """The distinct ropes of a model, which of them a layer type uses, and the context that the model was made for."""

    specs: tuple[RopeSpec, ...]
    index_of: dict[str, int]
    context: int


def read_ropes(fields: Fields, head_dim: int, max_context: int, layer_types: list[str]) -> Ropes:
    """Read `rope_scaling` (older) or `rope_parameters` (newer; the older one wins where both stand there, as in transformers 5).

    Raises: CheckpointError for an unknown rule, a missing or malformed parameter.
    """
    newer, older = fields.nested("rope_parameters"), fields.nested("rope_scaling")
    theta = fields.real("rope_theta", 1e-3, 1e12)
    chosen = older or newer
    specs: list[RopeSpec] = []
    index_of: dict[str, int] = {}
    for kind in layer_types:
        spec = RopeSpec(head_dim, theta)
        if chosen is not None:
            inner = chosen
            if any(name in chosen.values for name in _LAYER_TYPES):
                found = chosen.nested(kind)
                if found is None:
                    raise CheckpointError(f"{chosen.where}: key {kind!r} is missing, and there are layers of this type")
                inner = found
            spec = _rope(inner, head_dim, theta, max_context, fields)
        if spec not in specs:
            specs.append(spec)
        index_of[kind] = specs.index(spec)
    # YaRN checkpoints state the context before the extension as often as the one after it.
    extended = [int(spec.original_context * spec.factor) for spec in specs if spec.kind == "yarn"]
    return Ropes(tuple(specs), index_of, max([max_context, *extended]))


def _rope(fields: Fields, head_dim: int, theta: float, max_context: int, config: Fields) -> RopeSpec:
    name = fields.raw("rope_type", None) or fields.raw("type", "default")
    if not isinstance(name, str) or name not in _KINDS:
        key = "rope_type" if "rope_type" in fields.values else "type"
        fields.fail(key, f"one of {', '.join(_KINDS)}", "other rotary scalings aren't supported")
    kind = _KINDS[name]
    if fields.optional_real("partial_rotary_factor", 0.0, 1.0) not in (None, 1.0):
        fields.fail("partial_rotary_factor", "1.0", "partial rotation isn't supported in these families")
    theta = fields.real("rope_theta", 1e-3, 1e12, theta)
    if kind == "default":
        return RopeSpec(head_dim, theta)
    if kind == "linear":
        return RopeSpec(head_dim, theta, kind, fields.real("factor", 1e-3, 1e6))
    # A top-level value goes first, as in transformers; without any, the context itself is taken.
    original = config.optional_integer("original_max_position_embeddings", 1, 1 << 31)
    if original is None:
        original = fields.integer("original_max_position_embeddings", 1, 1 << 31, max_context)
    if kind == "llama3":
        low, high = fields.real("low_freq_factor", 1e-6, 1e6), fields.real("high_freq_factor", 1e-6, 1e6)
        if high <= low:
            fields.fail("high_freq_factor", f"more than low_freq_factor={low:g}")
        return RopeSpec(head_dim, theta, kind, fields.real("factor", 1e-3, 1e6), original, low, high)
    return _yarn(fields, head_dim, theta, original, max_context)


def _yarn(fields: Fields, head_dim: int, theta: float, original: int, max_context: int) -> RopeSpec:
    factor = fields.optional_real("factor", 1e-3, 1e6) or max_context / original
    mscale, mscale_all = fields.optional_real("mscale", 0.0, 1e6), fields.optional_real("mscale_all_dim", 0.0, 1e6)
    attention_factor = fields.optional_real("attention_factor", 0.0, 1e6)
    if attention_factor is None:
        attention_factor = yarn_attention_factor(factor, mscale, mscale_all)
    if theta <= 1.0:
        fields.fail("rope_theta", "more than 1 for yarn")
    return RopeSpec(
        head_dim,
        theta,
        "yarn",
        factor,
        original,
        beta_fast=fields.optional_real("beta_fast", 1e-6, 1e6) or 32.0,
        beta_slow=fields.optional_real("beta_slow", 1e-6, 1e6) or 1.0,
        truncate=fields.boolean("truncate", True),
        attention_factor=attention_factor,
    )

"""Options as a program writes them and as a configuration file does: checked, and turned into the engine's own types."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from spct.errors import ConfigError
from spct.types import SamplingParams, VotingParams

Params = TypeVar("Params", SamplingParams, VotingParams)


def check_on_missing(on_missing: object, *words: str) -> None:
    """Refuses a stand-in for missing rewards that is neither a finite number nor one of `words`. Raises: ConfigError."""
    is_number = isinstance(on_missing, int | float) and not isinstance(on_missing, bool) and math.isfinite(on_missing)
    if not is_number and on_missing not in words:
        raise ConfigError(f"on_missing: expected a finite number or one of {', '.join(map(repr, words))}, got {on_missing!r}")


def plain(value: Any) -> Any:
    """Mappings and lists of a configuration library as those of Python."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(item) for item in value]
    return value


def params_of(name: str, kind: type[Params], value: Params | Mapping[str, Any] | None, default: Params) -> Params:
    """Parameters as they are, from a mapping of fields over `default`, or the default.

    Raises: ConfigError if a field is unknown or out of range.
    """
    if value is None:
        return default
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}: expected {kind.__name__} or a mapping of its fields, got {type(value).__name__}")
    known = kind.__dataclass_fields__
    unknown = sorted(set(map(str, value)) - set(known))
    if unknown:
        raise ConfigError(f"{name}: unknown field {unknown[0]!r}; known fields: {', '.join(known)}")
    return replace(default, **value)

"""Typed access to the keys of an untrusted JSON object: a value of the wrong type, or out of range, is a CheckpointError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NoReturn

from spct.errors import CheckpointError

_MISSING = object()


class Fields:
    """The keys of one JSON object. Reading a key marks it as known, so that `unread` tells what nobody asked for.

    where      names the file, and the key of a nested object, in messages
    defaults   what a missing key means; an explicit null is handed on as None
    """

    def __init__(self, values: Mapping[str, object], where: str, defaults: Mapping[str, object] | None = None) -> None:
        self.values = values
        self.where = where
        self.defaults = defaults or {}
        self.read: set[str] = set()

    def raw(self, key: str, default: object = _MISSING) -> object:
        """The value as it stands, the default where it is missing.

        Raises: CheckpointError where there is neither.
        """
        self.read.add(key)
        if key in self.values:
            return self.values[key]
        value = self.defaults.get(key, default)
        if value is _MISSING:
            raise CheckpointError(f"{self.where}: key {key!r} is missing")
        return value

    def fail(self, key: str, expected: str, remedy: str = "") -> NoReturn:
        """Refuse the value of `key`.

        Raises: CheckpointError, always.
        """
        got = ascii(self.values.get(key, self.defaults.get(key)))
        if len(got) > 200:
            got = got[:200] + "..."
        raise CheckpointError(f"{self.where}: key {key!r}: expected {expected}, got {got}{'; ' if remedy else ''}{remedy}")

    def integer(self, key: str, low: int, high: int, default: object = _MISSING) -> int:
        """An integer within [low, high].

        Raises: CheckpointError.
        """
        value = self.raw(key, default)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(key, f"an integer from {low} to {high}")
        return value

    def optional_integer(self, key: str, low: int, high: int, default: object = None) -> int | None:
        """An integer within [low, high], or None for null.

        Raises: CheckpointError.
        """
        return None if self.raw(key, default) is None else self.integer(key, low, high, default)

    def real(self, key: str, low: float, high: float, default: object = _MISSING) -> float:
        """A finite number within [low, high].

        Raises: CheckpointError.
        """
        value = self.raw(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high or not math.isfinite(value):
            self.fail(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def optional_real(self, key: str, low: float, high: float, default: object = None) -> float | None:
        """A finite number within [low, high], or None for null.

        Raises: CheckpointError.
        """
        return None if self.raw(key, default) is None else self.real(key, low, high, default)

    def boolean(self, key: str, default: bool) -> bool:
        """True or false; null means the default.

        Raises: CheckpointError.
        """
        value = self.raw(key, default)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(key, "true or false")
        return value

    def optional_string(self, key: str, default: object = None) -> str | None:
        """A string, or None for null.

        Raises: CheckpointError.
        """
        value = self.raw(key, default)
        if value is not None and not isinstance(value, str):
            self.fail(key, "a string")
        return value

    def nested(self, key: str) -> Fields | None:
        """The object under `key`, or None where it is missing, null or empty.

        Raises: CheckpointError.
        """
        value = self.raw(key, None)
        if value is None or value == {}:
            return None
        if not isinstance(value, dict):
            self.fail(key, "an object")
        return Fields(value, f"{self.where}: {key}")

    def unread(self) -> list[str]:
        """Keys that hold something and that nobody asked for."""
        return [key for key, value in self.values.items() if key not in self.read and value not in (None, False, [], {}, "")]

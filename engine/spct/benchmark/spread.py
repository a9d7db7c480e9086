"""A few measurements of one thing, and how they are told."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spread:
    """Repeated measurements of one quantity, in the order in which they were taken."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """From at least one measurement. Raises: ValueError for none."""
        if not values:
            raise ValueError("expected at least one measurement, got none")
        return cls(tuple(values))

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The smallest."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest."""
        return max(self.values)

    def as_json(self) -> dict[str, float | list[float]]:
        """Median, smallest, largest, and all of them."""
        return {"median": self.median, "min": self.low, "max": self.high, "values": list(self.values)}

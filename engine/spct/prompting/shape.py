"""What a rendering depends on: the shape of a request, never its words."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from spct.prompting.marks import UserText
from spct.types import ScoreRequest, Turn

_ROLE_LABELS = {"system": "[System]", "user": "[User]", "assistant": "[Assistant]", "tool": "[Tool]"}


@dataclass(frozen=True, slots=True)
class Shape:
    """Counts and kinds of a request's texts, in the order of its values: turns, responses as shown, reference, principles.

    filled  per value: 0 empty, 1 blank, 2 with words
    """

    roles: tuple[str, ...]
    num_responses: int
    num_principles: int | None
    has_reference: bool
    filled: tuple[int, ...]

    def name(self, index: int) -> str:
        """Name value number `index` as the caller knows it."""
        for label, count in (("query", len(self.roles)), ("responses", self.num_responses), ("reference", int(self.has_reference))):
            if index < count:
                return label
            index -= count
        return "principles"

    def variables(self) -> dict[str, Any]:
        """Give a judge template its variables: query, turns, responses, reference, principles, num_responses."""
        numbered = (UserText.value(index, filled) for index, filled in enumerate(self.filled))
        turns = [{"role": role, "content": next(numbered)} for role in self.roles]
        responses = [next(numbered) for _ in range(self.num_responses)]
        reference = next(numbered) if self.has_reference else None
        principles = None if self.num_principles is None else UserText.join_all([next(numbered) for _ in range(self.num_principles)], "\n")
        return {
            "query": _flat(turns),
            "turns": turns,
            "responses": responses,
            "reference": reference,
            "principles": principles,
            "num_responses": self.num_responses,
        }


def shape_and_values(request: ScoreRequest, shown: Iterable[int]) -> tuple[Shape, tuple[str, ...]]:
    """Take a request apart into its shape and its texts, the responses in the order `shown`."""
    turns = (Turn("user", request.query),) if isinstance(request.query, str) else tuple(t for t in request.query if isinstance(t, Turn))
    principles = (request.principles,) if isinstance(request.principles, str) else request.principles
    values = (
        *(turn.content for turn in turns),
        *(request.responses[i] for i in shown),
        *(() if request.reference is None else (request.reference,)),
        *(principles or ()),
    )
    shape = Shape(
        roles=tuple(turn.role for turn in turns),
        num_responses=len(request.responses),
        num_principles=None if principles is None else len(principles),
        has_reference=request.reference is not None,
        filled=tuple(2 if value and not value.isspace() else 1 if value else 0 for value in values),
    )
    return shape, values


def plain_shape(num_responses: int, *, everything: bool = False) -> Shape:
    """Give the shape of the plainest request with so many responses, or of one with a reference and principles too."""
    extra = int(everything)
    return Shape(("user",), num_responses, extra or None, everything, (2,) * (1 + num_responses + 2 * extra))


def _flat(turns: list[dict[str, Any]]) -> UserText:
    """Write a conversation as one text: a lone user turn as it is, else every turn under its role."""
    if len(turns) == 1 and turns[0]["role"] == "user":
        content: UserText = turns[0]["content"]
        return content
    return UserText.join_all([f"{_ROLE_LABELS[turn['role']]}\n" + turn["content"] for turn in turns], "\n\n")

"""Placeholders that stand for user text while a template is rendered.

A template never sees what a user wrote. It sees a `UserText`: a string that prints as a marker made of Unicode noncharacters (U+FDD0,
U+FDD1, which template sources may not contain). So whatever a response holds, it cannot act on the template; what was rendered depends on
the shape of a request alone (and can be cached by it); and the rendered text splits into literal parts and user parts without a doubt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from spct.errors import ConfigError

OPEN, CLOSE = "\ufdd0", "\ufdd1"

# The letters around the number are of both cases, so that a filter which changes case breaks the marker and is found out.
_MARKER = re.compile(f"{OPEN}uS([0-9]+)([nlrt]){CLOSE}")
_STRIPS: dict[str, Callable[[str], str]] = {"n": str, "l": str.lstrip, "r": str.rstrip, "t": str.strip}

Strip = Literal["n", "l", "r", "t"]


class TemplateUseError(ConfigError):
    """A template did something to user text that a placeholder can't follow."""


@dataclass(frozen=True, slots=True)
class TemplatePart:
    """Text of the template itself."""

    text: str


@dataclass(frozen=True, slots=True)
class UserPart:
    """Place of user text: value number `index` of the request, whitespace removed at the left (l), right (r) or both ends (t)."""

    index: int
    strip: Strip = "n"

    def text(self, values: tuple[str, ...]) -> str:
        """Give the user's text for this place."""
        return _STRIPS[self.strip](values[self.index])


Part = TemplatePart | UserPart


def _refuse(what: str) -> Callable[..., NoReturn]:
    def refuse(self: object, *args: object, **kwargs: object) -> NoReturn:
        raise TemplateUseError(
            f"{what} on text of the request; templates may place, trim and join such text and test it for emptiness, nothing else"
        )

    return refuse


class UserText(str):
    """A string with markers of user text in it; refuses whatever would need the text itself.

    filled  what is known of the text it stands for: 0 it is empty, 1 it is blank, 2 it says something. So `{% if reference %}` and
            `{% if reference|trim %}` mean what they say.
    """

    __slots__ = ("filled",)

    filled: int

    def __new__(cls, text: str, filled: int = 2) -> UserText:
        """Wrap `text`, which already holds the markers."""
        self = super().__new__(cls, text)
        self.filled = filled
        return self

    @classmethod
    def value(cls, index: int, filled: int, strip: Strip = "n") -> UserText:
        """Make the placeholder of value number `index`."""
        return cls(f"{OPEN}uS{index}{strip}{CLOSE}", filled)

    @classmethod
    def join_all(cls, texts: Sequence[str], separator: str) -> UserText:
        """Join placeholders and plain strings."""
        return cls(separator.join(texts), max((text.filled if isinstance(text, UserText) else 2 for text in texts), default=0))

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        return self.filled > 0

    def __hash__(self) -> int:
        return super().__hash__()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if isinstance(other, str):
            return not self.filled if str.__len__(other) == 0 else _refuse("a comparison")(self)
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __add__(self, other: str) -> UserText:
        return UserText(str.__add__(self, other), 2 if other else self.filled)

    def __radd__(self, other: str) -> UserText:
        return UserText(str.__add__(other, self), 2 if other else self.filled)

    def strip(self, chars: str | None = None, /) -> UserText:
        """Trim both ends."""
        return self._strip("t", str.strip, chars)

    def lstrip(self, chars: str | None = None, /) -> UserText:
        """Trim the left end."""
        return self._strip("l", str.lstrip, chars)

    def rstrip(self, chars: str | None = None, /) -> UserText:
        """Trim the right end."""
        return self._strip("r", str.rstrip, chars)

    def _strip(self, side: Strip, strip: Callable[[str], str], chars: str | None) -> UserText:
        if chars is not None:
            _refuse("trimming of given characters")(self)
        filled = self.filled if self.filled == 2 else 0
        match = _MARKER.fullmatch(self)
        if match is None:
            return UserText(strip(self), filled)
        return UserText.value(int(match[1]), filled, side if match[2] in ("n", side) else "t")


def _forbid() -> None:
    allowed = {"strip", "lstrip", "rstrip", "join"}
    names = [name for name in dir(str) if not name.startswith("_") and name not in allowed]
    for name in names:
        setattr(UserText, name, _refuse(f"`{name}`"))
    operators = {
        "a length": ["__len__"],
        "an index or slice": ["__getitem__"],
        "a loop": ["__iter__"],
        "a search": ["__contains__"],
        "a repetition": ["__mul__", "__rmul__"],
        "formatting": ["__mod__"],
        "a comparison": ["__lt__", "__le__", "__gt__", "__ge__"],
        "escaping": ["__html__"],
        "a conversion": ["__int__", "__float__"],
    }
    for what, hooks in operators.items():
        for name in hooks:
            setattr(UserText, name, _refuse(what))


_forbid()


def split_parts(text: str, where: str = "template") -> tuple[Part, ...]:
    """Split what the template `where` rendered at its markers.

    Raises: TemplateUseError if a marker was cut or changed on the way.
    """
    parts: list[Part] = []
    end = 0
    for match in _MARKER.finditer(text):
        parts.append(TemplatePart(text[end : match.start()]))
        parts.append(UserPart(int(match[1]), match[2]))  # type: ignore[arg-type]  # the pattern has only the four letters
        end = match.end()
    parts.append(TemplatePart(text[end:]))
    for part in parts:
        if isinstance(part, TemplatePart) and (OPEN in part.text or CLOSE in part.text):
            raise TemplateUseError(
                f"{where}: text of the request was cut or changed by a filter; it can only be placed, trimmed and joined"
            )
    return tuple(part for part in parts if isinstance(part, UserPart) or part.text)


def has_marker(text: str) -> bool:
    """Tell whether `text` holds (a piece of) a marker."""
    return OPEN in text or CLOSE in text

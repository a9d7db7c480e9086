"""What a template may spend, and what it may build.

Jinja's sandbox keeps a template from Python's internals but lets it loop and grow strings without end. Here every loop turn, call, operator
and filter costs steps, every string has a largest length, and whatever could exceed it in one stroke is checked before it runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextvars import ContextVar
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from spct.errors import ConfigError
from spct.prompting.marks import UserText, has_marker

T = TypeVar("T")
R = TypeVar("R")
P = ParamSpec("P")

MAX_STEPS = 500_000
MAX_CPU_SECONDS = 10.0
MAX_CHARS = 1024 * 1024
MAX_ITEMS = 100_000
MAX_PAD = 10_000
MAX_BITS = 4096

_PADDING = ("ljust", "rjust", "center", "zfill")
_WIDE_FORMAT = re.compile(r"[0-9]{5}|\{[^{}]*\{")
_CHECK_CLOCK_EVERY = 256


class Budget:
    """Steps of one rendering, with a limit on its CPU time for what steps don't measure."""

    def __init__(self) -> None:
        self.steps = 0
        self._next_check = _CHECK_CLOCK_EVERY
        self._deadline = time.thread_time() + MAX_CPU_SECONDS

    def spend(self, steps: int = 1) -> None:
        """Pay.

        Raises: ConfigError when the budget is used up.
        """
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ConfigError(
                f"expected at most {MAX_STEPS} steps (loop turns, calls, filters) in a rendering, got more; simplify its loops"
            )
        if self.steps >= self._next_check:
            self._next_check = self.steps + _CHECK_CLOCK_EVERY
            if time.thread_time() > self._deadline:
                raise ConfigError(
                    f"expected a rendering to take at most {MAX_CPU_SECONDS:g} s of CPU time, got more; simplify the template"
                )


current: ContextVar[Budget] = ContextVar("template_budget")


def spend(*values: object) -> None:
    """Pay for one operation on `values`, the larger they are the more."""
    steps = 1
    for value in values:
        if isinstance(value, str):
            steps += str.__len__(value) // 256
        elif isinstance(value, list | tuple | dict | Counted):
            steps += len(value)
    current.get().spend(steps)


class Counted:
    """Something to loop over whose turns are paid for."""

    def __init__(self, items: object) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(cast(Sized, self.items))

    def __iter__(self) -> Iterator[object]:
        budget = current.get()
        for item in cast("Iterable[object]", self.items):
            budget.spend()
            yield item


def bounded(value: T) -> T:
    """Pass `value` on.

    Raises: ConfigError if it is larger than anything a prompt needs.
    """
    if isinstance(value, str):
        check_chars(str.__len__(value))
    elif isinstance(value, list | tuple) and len(value) > MAX_ITEMS:
        raise ConfigError(f"expected at most {MAX_ITEMS} items in a list, got {len(value)}")
    elif isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise ConfigError(f"expected integers of at most {MAX_BITS} bits, got {value.bit_length()}")
    return value


def check_chars(count: int) -> None:
    """Refuse a string of more than `MAX_CHARS`.

    Raises: ConfigError.
    """
    if count > MAX_CHARS:
        raise ConfigError(f"expected strings of at most {MAX_CHARS} characters, got {count}")


def concat(pieces: Iterable[str]) -> str:
    """Join what a template wrote; the length is checked while it grows."""
    kept: list[str] = []
    total = 0
    for piece in pieces:
        total += str.__len__(piece)
        check_chars(total)
        kept.append(piece)
    return "".join(kept)


def concat_marked(pieces: Iterable[str]) -> str:
    """Join, keeping the guard on placeholders of user text."""
    return marked(concat(pieces))


def marked(value: T) -> T | UserText:
    """Put the guard back on a string that holds placeholders and lost it."""
    if isinstance(value, str) and not isinstance(value, UserText) and has_marker(value):
        return UserText(value)
    return value


def paid(function: Callable[P, R]) -> Callable[P, R]:
    """Make a filter cost steps, and bound what it gives."""

    @wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        spend(*args, *kwargs.values())
        return bounded(function(*args, **kwargs))

    return wrapper


def check_product(left: object, right: object) -> None:
    """Refuse a repetition or product that would be huge.

    Raises: ConfigError.
    """
    for sized, times in ((left, right), (right, left)):
        if isinstance(sized, str | list | tuple) and isinstance(times, int) and len(sized) * times > MAX_PAD:
            raise ConfigError(f"expected at most {MAX_PAD} characters or items from a repetition, got {times} times {len(sized)}")


def check_power(base: object, exponent: object) -> None:
    """Refuse a power that would be huge.

    Raises: ConfigError.
    """
    small = (
        all(isinstance(v, int | float) for v in (base, exponent)) and abs(cast(float, base)) <= MAX_PAD and abs(cast(float, exponent)) <= 64
    )
    if not small:
        raise ConfigError(
            f"expected numbers up to {MAX_PAD} and exponents up to 64 in a power, got {str(base)[:40]} ** {str(exponent)[:40]}"
        )


def check_format(template: str) -> None:
    """Refuse a format string that could ask for a huge field.

    Raises: ConfigError.
    """
    if _WIDE_FORMAT.search(template):
        raise ConfigError("expected plain fields in `format`, got a width of five digits or more, or a nested field")


def check_method(method: object, args: tuple[object, ...]) -> None:
    """Refuse a call of a string's method that would make a huge string; pay for reading it.

    Raises: ConfigError.
    """
    text, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(text, str) or isinstance(text, UserText):
        return
    spend(text)
    if name in _PADDING and any(isinstance(arg, int) and arg > MAX_PAD for arg in args):
        raise ConfigError(f"expected a width of at most {MAX_PAD} in `{name}`, got {str(args)[:80]}")
    if name == "replace" and len(args) >= 2:
        check_replace(text, *args[:2])


def check_replace(text: str, old: object, new: object) -> None:
    """Refuse a replacement that would make a huge string.

    Raises: ConfigError.
    """
    if isinstance(old, str) and isinstance(new, str):
        check_chars(len(text) + text.count(old) * len(new))

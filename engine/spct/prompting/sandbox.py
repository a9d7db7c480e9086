"""Jinja with the door shut: no code, no unbounded work, no unbounded output, no clock and no dice.

A template file comes with a checkpoint from anywhere, so it is treated as hostile. The sandbox of Jinja keeps it from Python's internals;
this module bounds what it may spend: steps (loop turns and calls), the length of every string it makes, and its output.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from spct.errors import ConfigError, InputError
from spct.prompting.marks import TemplateUseError, UserText, has_marker

MAX_STEPS = 200_000
MAX_CHARS = 4 * 1024 * 1024
MAX_PAD = 10_000
FROZEN_DATE = "26 Jul 2024"

_REMOVED_FILTERS = ("center", "filesizeformat", "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr", "indent", "format")
_REMOVED_GLOBALS = ("cycler", "joiner", "lipsum")
_PADDING = ("ljust", "rjust", "center", "zfill", "expandtabs")


class TemplateRaised(InputError):
    """A template called `raise_exception`: it does not take such a request."""


class _Budget:
    def __init__(self) -> None:
        self.steps = 0

    def spend(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise ConfigError(f"template: expected at most {MAX_STEPS} loop turns and calls in a rendering, got more; simplify its loops")


_budget: ContextVar[_Budget] = ContextVar("template_budget")


class _Counted:
    """A sequence whose loop turns are paid for."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        budget = _budget.get()
        for item in self.items:
            budget.spend()
            yield item


def _counted(items: Any) -> Any:
    if isinstance(items, UserText | jinja2.Undefined):
        return items
    return _Counted(items)


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRaised(f"template: {message}")


def _strftime_now(format: str) -> str:
    """Give the frozen date in the asked format: a prompt may not depend on the day."""
    import_free = {
        "%d": "26",
        "%b": "Jul",
        "%B": "July",
        "%Y": "2024",
        "%y": "24",
        "%m": "07",
        "%H": "00",
        "%M": "00",
        "%S": "00",
        "%A": "Friday",
    }
    for directive, text in import_free.items():
        format = format.replace(directive, text)
    return format


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if has_marker(text) or "\\ufdd0" in text:
        raise TemplateUseError("template: `tojson` on text of the request; place such text as it is")
    return text


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` of training templates: renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own protocol)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Drop the tag, keep the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment that every template runs in."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self, *, strict: bool) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=False,
            undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            # Constant folding would run filters and operators at compile time, outside of the budget.
            optimized=False,
            cache_size=0,
        )
        self.concat = _concat_marked if strict else _concat  # type: ignore[assignment]  # Jinja types it as str.join's bound method
        for name in _REMOVED_FILTERS:
            self.filters.pop(name, None)
        for name in _REMOVED_GLOBALS:
            self.globals.pop(name, None)
        self.filters["tojson"] = _tojson
        self.filters["_counted"] = _counted
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(jinja2.nodes.For)):
            loop.iter = jinja2.nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse operators whose result would be huge."""
        _budget.get().spend()
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(times, int) and len(sized) * times > MAX_PAD:
                    raise ConfigError(
                        f"template: expected at most {MAX_PAD} characters or items from a repetition, got {times} times {len(sized)}"
                    )
        if operator == "**" and not (abs(left) <= MAX_PAD and abs(right) <= 64):
            raise ConfigError(f"template: expected small numbers in a power, got {left!r} ** {right!r}")
        if operator == "%" and isinstance(left, str):
            raise ConfigError("template: formatting with % is not available; join strings with ~")
        return _bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (Jinja's signature)
        """Count the call and bound what it makes."""
        _budget.get().spend()
        return _bounded(super().call(__context, __obj, *args, **kwargs))


def _bounded(value: Any) -> Any:
    if isinstance(value, str) and str.__len__(value) > MAX_CHARS:
        raise ConfigError(f"template: expected strings of at most {MAX_CHARS} characters, got {str.__len__(value)}")
    return value


def _concat(pieces: Iterable[str]) -> str:
    kept: list[str] = []
    total = 0
    for piece in pieces:
        total += str.__len__(piece)
        if total > MAX_CHARS:
            raise ConfigError(f"template: expected a rendering of at most {MAX_CHARS} characters, got more")
        kept.append(piece)
    return "".join(kept)


def _concat_marked(pieces: Iterable[str]) -> str:
    text = _concat(pieces)
    return UserText(text) if has_marker(text) else text


class Template:
    """A compiled template of a judge or of a chat.

    Raises: ConfigError if the source does not compile; the message has the line.
    """

    def __init__(self, source: str, where: str, *, strict: bool) -> None:
        self.where = where
        if has_marker(source):
            raise ConfigError(f"{where}: expected no Unicode noncharacter U+FDD0 or U+FDD1, got one; remove it")
        environment = Sandbox(strict=strict)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{where}, line {error.lineno}: {error.message}") from None
        except RecursionError:
            raise ConfigError(f"{where}: expected a template of sane depth, got one nested too deeply") from None

    def render(self, variables: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Render once; give the text and the variables that the template set at its top level.

        Raises: ConfigError if the template fails or spends too much; InputError if it refuses the request.
        """
        token = _budget.set(_Budget())
        try:
            context = self._template.new_context(dict(variables))
            text = _concat(self._template.root_render_func(context))
            return text, context.get_exported()
        except TemplateRaised as error:
            raise InputError(f"{self.where}: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from None
        except jinja2.TemplateError as error:
            raise ConfigError(f"{self.where}{_line(error)}: {error.message or type(error).__name__}") from None
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{self.where}{_line(error)}: {type(error).__name__}: {error}") from None
        finally:
            _budget.reset(token)


def _line(error: BaseException) -> str:
    """Find the template's line in the traceback, which Jinja has not rewritten (that is done in its own render only)."""
    traceback = error.__traceback__
    line = ""
    while traceback is not None:
        loader: Callable[..., Any] | None = traceback.tb_frame.f_globals.get("__jinja_template__")
        if loader is not None:
            line = f", line {loader.get_corresponding_lineno(traceback.tb_lineno)}"  # type: ignore[attr-defined]  # a jinja2.Template
        traceback = traceback.tb_next
    return line

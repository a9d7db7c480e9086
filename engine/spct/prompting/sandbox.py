"""Jinja with the door shut: no code, no unbounded work, no unbounded output, no clock and no dice.

A template file comes with a checkpoint from anywhere, so it is treated as hostile. A judge template is strict (an unknown variable is an
error) and sees placeholders for user text; a chat template gets what transformers gives it, lenient undefined values included.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, cast

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.visitor

from spct.errors import ConfigError, InputError
from spct.prompting import limits
from spct.prompting.marks import TemplateUseError, UserText, has_marker

MAX_SOURCE_CHARS = 1024 * 1024

# Random or clock-like, or unbounded, or blind to placeholders; no chat template in use needs them.
_REMOVED_FILTERS = (
    "batch", "center", "filesizeformat", "forceescape", "format", "pprint", "random", "round", "slice", "striptags", "sum", "urlencode",
    "urlize", "wordcount", "wordwrap", "xmlattr",
)  # fmt: skip
_REMOVED_GLOBALS = ("cycler", "joiner", "lipsum")

_STRING_METHODS = {
    "capitalize", "casefold", "center", "count", "endswith", "find", "format", "index", "isalnum", "isalpha", "isascii", "isdecimal",
    "isdigit", "islower", "isnumeric", "isspace", "istitle", "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix",
    "removesuffix", "replace", "rfind", "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip",
    "swapcase", "title", "upper", "zfill",
}  # fmt: skip

# Prompts may not depend on the day. This one is what Llama 3's templates fall back to without a clock.
_FROZEN_DATE = {
    "%A": "Friday", "%a": "Fri", "%B": "July", "%b": "Jul", "%d": "26", "%H": "00", "%I": "12", "%j": "208", "%M": "00", "%m": "07",
    "%p": "AM", "%S": "00", "%Y": "2024", "%y": "24", "%F": "2024-07-26", "%T": "00:00:00",
}  # fmt: skip


class TemplateRaised(InputError):
    """A template called `raise_exception`: it does not take such a request."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}` of training templates: renders what it encloses."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own protocol)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """Drop the tag, keep the body."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Meter(jinja2.visitor.NodeTransformer):
    """Puts the budget into the template's own code: around what loops run over, and around `~`."""

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "_counted")
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:
        self.generic_visit(node)
        return _filtered(jinja2.nodes.List(node.nodes, lineno=node.lineno), "_glued")


def _filtered(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(cast("jinja2.nodes.Expr", node), name, [], [], None, None, lineno=node.lineno)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment that every template runs in."""

    intercepted_binops = frozenset(["*", "**", "%", "+"])

    def __init__(self, *, strict: bool) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
            extensions=["jinja2.ext.loopcontrols", _GenerationTag],
            finalize=_refuse_none if strict else None,
            # Constant folding would run filters and operators at compile time. (In constant output Jinja tries it all the same, but what
            # it meets there needs a budget, and without one it leaves the work to the rendering.)
            optimized=False,
            cache_size=0,
        )
        self._strict = strict
        self.concat = limits.concat_marked if strict else limits.concat  # type: ignore[method-assign]  # Jinja's hook for joining output
        for name in _REMOVED_FILTERS:
            self.filters.pop(name, None)
        for name in _REMOVED_GLOBALS:
            self.globals.pop(name, None)
        self.filters.update(tojson=_tojson, join=_join, replace=_replace, indent=_indent)
        for name, function in self.filters.items():
            self.filters[name] = limits.paid(function)
        self.filters.update(_counted=_counted, _glued=self._glued)
        self.globals.update(range=_range, raise_exception=_raise_exception, strftime_now=_strftime_now)

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = cast("jinja2.nodes.Template", _Meter().visit(super()._parse(source, name, filename)))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        """Allow what Jinja's sandbox allows, less the methods of numbers and bytes and those of strings that build without bounds."""
        if isinstance(obj, int | float | complex | bytes):
            return False
        return super().is_safe_attribute(obj, attr, value) and (not isinstance(obj, str) or attr in _STRING_METHODS)

    def wrap_str_format(self, value: object) -> Callable[..., str] | None:
        """Guard `format`: fields may not reach into objects, nor ask for huge widths."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            limits.check_format(getattr(value, "__self__", ""))
        return wrapped

    def _glued(self, values: list[object]) -> str:
        limits.spend(*values)
        return self.concat(str(value) for value in values)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: object, right: object) -> object:
        """Pay for an operator and refuse one whose result would be huge.

        Raises: ConfigError.
        """
        limits.spend(left, right)
        if operator == "*":
            limits.check_product(left, right)
        elif operator == "**":
            limits.check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            raise ConfigError("formatting with % is not available; join strings with ~")
        return limits.bounded(super().call_binop(context, operator, left, right))

    def call(self, context: jinja2.runtime.Context, function: object, /, *args: object, **kwargs: object) -> object:
        """Pay for a call and bound what it gives.

        Raises: ConfigError if that is too large.
        """
        limits.spend(*args, *kwargs.values())
        limits.check_method(function, args)
        if isinstance(function, jinja2.runtime.LoopContext) and args:
            args = (_counted(args[0]), *args[1:])
        text = getattr(function, "__self__", None)
        if isinstance(text, str) and getattr(function, "__name__", "") == "join" and args:
            return _join(self, cast("Iterable[object]", args[0]), text)
        result = limits.bounded(super().call(context, function, *args, **kwargs))
        return limits.marked(result) if self._strict else result


def _counted(items: object) -> object:
    return items if isinstance(items, UserText | jinja2.Undefined) else limits.Counted(items)


def _range(*bounds: int) -> range:
    made = range(*bounds)
    if len(made) > limits.MAX_ITEMS:
        raise ConfigError(f"expected a range of at most {limits.MAX_ITEMS} numbers, got {len(made)}")
    limits.current.get().spend(len(made))
    return made


def _refuse_none(value: object) -> object:
    if value is None:
        raise TemplateRaised("a value that the request does not have, such as a reference, would be printed as None; give it")
    return value


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRaised(str(message))


def _strftime_now(format: str) -> str:
    for directive, text in _FROZEN_DATE.items():
        format = format.replace(directive, text)
    return format


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is not None and indent > 16:
        raise ConfigError(f"expected an indent of at most 16 in `tojson`, got {indent}")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    if has_marker(text) or "\\ufdd0" in text:
        raise TemplateUseError("`tojson` on text of the request, which would change it; place such text as it is")
    return text


@jinja2.pass_environment
def _join(environment: Sandbox, values: Iterable[object], separator: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        values = (environment.getitem(value, attribute) for value in values)
    glue = str(separator)
    pieces: list[str] = []
    for value in values:
        pieces += [glue, str(value)] if pieces else [str(value)]
    return environment.concat(pieces)


def _replace(text: object, old: str, new: str, count: int = -1) -> str:
    whole = text if isinstance(text, str) else str(text)
    limits.check_replace(whole, old, new)
    return whole.replace(old, new, count)


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    if isinstance(width, int) and width > limits.MAX_PAD:
        raise ConfigError(f"expected a width of at most {limits.MAX_PAD} in `indent`, got {width}")
    step = width if isinstance(width, str) else " " * width
    lines = text.splitlines() or [""]
    limits.check_chars(len(text) + len(lines) * len(step))
    rest = [step + line if line or blank else line for line in lines[1:]]
    return "\n".join([step + lines[0] if first else lines[0], *rest])


class Template:
    """A compiled template of a judge (`strict`) or of a chat.

    Raises: ConfigError if the source does not compile; the message has the line.
    """

    def __init__(self, source: str, where: str, *, strict: bool) -> None:
        self.where = where
        if has_marker(source):
            raise ConfigError(f"{where}: expected no Unicode noncharacter U+FDD0 or U+FDD1, got one; remove it")
        if len(source) > MAX_SOURCE_CHARS:
            raise ConfigError(f"{where}: expected at most {MAX_SOURCE_CHARS} characters, got {len(source)}")
        try:
            self._template = Sandbox(strict=strict).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(f"{where}, line {error.lineno}: {error.message}") from None
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
            # What Python's own compiler says of thousands of nested brackets or of digits without end.
            raise ConfigError(f"{where}: expected a template that compiles, got {type(error).__name__}: {str(error)[:200]}") from None

    def render(self, variables: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """Render once; give the text and the variables that the template set at its top level.

        Raises: ConfigError if the template fails or spends too much; InputError if it refuses the request.
        """
        token = limits.current.set(limits.Budget())
        try:
            context = self._template.new_context(dict(variables))
            text = limits.concat(self._template.root_render_func(context))
            return text, context.get_exported()
        except TemplateRaised as error:
            raise InputError(f"{self.where}: {error}") from None
        except TemplateUseError as error:
            raise TemplateUseError(f"{self.where}{_line(error)}: {error}") from None
        except ConfigError as error:
            raise ConfigError(f"{self.where}{_line(error)}: {error}") from None
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            AttributeError,
            RecursionError,
            MemoryError,
        ) as error:
            raise ConfigError(f"{self.where}{_line(error)}: {type(error).__name__}: {str(error)[:500]}") from None
        finally:
            limits.current.reset(token)


def _line(error: BaseException) -> str:
    """Find the line of the template: the traceback holds lines of the code that Jinja made of it."""
    traceback = error.__traceback__
    line = ""
    while traceback is not None:
        template = traceback.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(template, jinja2.Template):
            line = f", line {template.get_corresponding_lineno(traceback.tb_lineno)}"
        traceback = traceback.tb_next
    return line

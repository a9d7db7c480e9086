"""The judging prompt of a request: judge template, chat template and tokenizer in one.

A template is rendered with placeholders, once per shape of request (number of responses, turns, what is there), and its own text is
encoded once with it. A request then costs the encoding of its texts, and an order only puts them together in another way.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spct.errors import CapacityError, ConfigError, InputError
from spct.prompting.folder import read_text_folder
from spct.prompting.marks import TemplatePart, TemplateUseError, UserPart, split_parts
from spct.prompting.sandbox import Template
from spct.prompting.shape import Shape, plain_shape, shape_and_values
from spct.prompting.tokenizer import SafeTokenizer
from spct.types import ScoreRequest

TEMPLATES = Path(__file__).parent / "templates"
FOLDER_TEMPLATE = "judge_template.jinja"
DEFAULT_SCORE_RANGE = (1, 10)
_MAX_CACHED_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Layout:
    """An encoded rendering: token ids of the template's own text, and places of user text."""

    parts: tuple[tuple[int, ...] | UserPart, ...]
    user_first: bool
    score_range: tuple[int, int]
    opens_think: bool


class JudgePrompt:
    """Turns requests into token ids for one model; thread-safe.

    folder                a model folder with tokenizer.json (tokenizer_config.json, chat_template.jinja, generation_config.json)
    template              name of a built-in template ("default", "verify"), a path, or None: the folder's own judge_template.jinja,
                          else "default"
    chat_template_kwargs  extra variables for the chat template, such as {"enable_thinking": False}

    eos_token_ids  ids that end a sample
    control_ids    ids that no text of a request can become
    tokenizer      the `SafeTokenizer` below it
    digest         (hash of the tokenizer, hash of the templates)

    Raises: CheckpointError if the folder's files are missing or malformed; ConfigError if a template is.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        template: str | Path | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        text_folder = read_text_folder(Path(folder))
        self.tokenizer = SafeTokenizer(text_folder)
        self.eos_token_ids = self.tokenizer.eos_token_ids
        self.control_ids = self.tokenizer.control_ids
        source, name = _judge_source(text_folder.path, template)
        self._judge = Template(source, f"template {name}", strict=True)
        kwargs = dict(chat_template_kwargs or {})
        self._chat = None
        if text_folder.chat_template is not None:
            self._chat = Template(text_folder.chat_template, f"chat template of {text_folder.path}", strict=False)
        elif kwargs:
            raise ConfigError(f"chat_template_kwargs: expected none, since {text_folder.path} has no chat template, got {sorted(kwargs)}")
        self._chat_variables = {**text_folder.special, "tools": None, "documents": None, **kwargs}
        templates = repr((source, text_folder.chat_template, sorted(kwargs.items())))
        self.digest = (text_folder.digest, hashlib.blake2b(templates.encode(), digest_size=16).hexdigest())
        self._layout = functools.lru_cache(maxsize=256)(self._make_layout)
        self._spans = _SpanCache(self.tokenizer)
        self._try_out()

    def encode(self, request: ScoreRequest, order: Sequence[int] | None = None, *, max_tokens: int | None = None) -> tuple[int, ...]:
        """Encode the prompt that shows `request.responses[order[0]]`, `request.responses[order[1]]`, … (None: as given).

        max_tokens  refuse at once, by the length of its texts, a request that can't have a prompt as short as this; the caller still
                    compares the length of what comes back

        Raises: InputError if the template refuses such a request, the order is not a permutation, or a character has no token;
        CapacityError past `max_tokens`; ConfigError if the template fails.
        """
        shape, values = shape_and_values(request, _shown(request, order))
        layout = self._layout(shape)
        if max_tokens is not None:
            self._check_fits(layout, values, max_tokens)
        ids: list[int] = []
        for place, part in enumerate(layout.parts):
            if isinstance(part, UserPart):
                try:
                    ids.extend(self._spans.encode(part.text(values), first=layout.user_first and place == 1))
                except InputError as error:
                    raise InputError(f"{shape.name(part.index)}: {error}") from None
            else:
                ids.extend(part)
        return tuple(ids)

    def encode_text(self, text: str, *, user: bool = True) -> tuple[int, ...]:
        """Encode bare text for `generate`: a user's, where control tokens are plain text, or a template's, where they act.

        The tokenizer's own BOS comes first, once.

        Raises: InputError if a character has no token.
        """
        if user:
            return (*self.tokenizer.start_ids, *self.tokenizer.encode_user(text, first=True))
        return self._one_bos((*self.tokenizer.start_ids, *self.tokenizer.encode_template(text, first=True)))

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids; nothing is skipped, incomplete UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode(list(ids))

    def text(self, request: ScoreRequest, order: Sequence[int] | None = None) -> str:
        """Give the prompt as text, for a person to read.

        Raises: as `encode`.
        """
        shape, values = shape_and_values(request, _shown(request, order))
        rendered, _ = self._render(shape)
        return "".join(part.text(values) if isinstance(part, UserPart) else part.text for part in split_parts(rendered))

    def score_range(self, request: ScoreRequest | int) -> tuple[int, int]:
        """Give the lowest and highest score of the template for such a request, or for a plain one with so many responses.

        Raises: as `encode`.
        """
        return self._layout(_shape(request)).score_range

    def opens_think(self, request: ScoreRequest | int) -> bool:
        """Tell whether the prompt ends inside a `<think>` block, so that the judge's text starts in it.

        Raises: as `encode`.
        """
        return self._layout(_shape(request)).opens_think

    def _try_out(self) -> None:
        """Render once, so that a broken template fails when the model is loaded and not at a request.

        A template may refuse pairs, or requests with a reference or principles; whatever is wrong with a request is told there.
        """
        for shape in (plain_shape(2, everything=True), plain_shape(2), plain_shape(1)):
            with contextlib.suppress(InputError):
                self._layout(shape)
                return

    def _check_fits(self, layout: _Layout, values: tuple[str, ...], max_tokens: int) -> None:
        most = self.tokenizer.max_chars
        own = sum(len(part) for part in layout.parts if not isinstance(part, UserPart))
        least = own + (0 if most is None else sum(len(part.text(values)) // most for part in layout.parts if isinstance(part, UserPart)))
        if least > max_tokens:
            raise CapacityError(
                f"request: expected a prompt of at most {max_tokens} tokens, got one of at least {least}; shorten its texts"
            )

    def _make_layout(self, shape: Shape) -> _Layout:
        rendered, score_range = self._render(shape)
        parts: list[tuple[int, ...] | UserPart] = []
        tail = ""
        for position, part in enumerate(split_parts(rendered)):
            if isinstance(part, TemplatePart):
                parts.append(self.tokenizer.encode_template(part.text, first=position == 0))
                tail = part.text
            else:
                parts.append(part)
                tail = ""
        head = () if self._chat is not None else self.tokenizer.start_ids
        opening = parts[0] if parts else ()
        user_first = isinstance(opening, UserPart)
        if not isinstance(opening, UserPart):
            head = (*head, *opening)
            parts = parts[1:]
        return _Layout((self._one_bos(head), *parts), user_first, score_range, tail.rfind("<think>") > tail.rfind("</think>"))

    def _one_bos(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Drop repeated BOS at the start, where the chat template and the post-processor both give one."""
        bos = self.tokenizer.bos_token_id
        start = 0
        while bos is not None and ids[start : start + 2] == (bos, bos):
            start += 1
        return ids[start:]

    def _render(self, shape: Shape) -> tuple[str, tuple[int, int]]:
        judge_text, exported = self._judge.render(shape.variables())
        score_range = _score_range(exported, self._judge.where)
        shown = sorted(part.index for part in split_parts(judge_text, self._judge.where) if isinstance(part, UserPart))
        hidden = set(range(len(shape.filled))).difference(shown)
        missing = {shape.name(index) for index in hidden if shape.filled[index]}
        if missing:
            raise InputError(
                f"{self._judge.where}: does not show {', '.join(sorted(missing))} of the request; leave it out or use another template"
            )
        if self._chat is None:
            return judge_text, score_range
        messages = [{"role": "user", "content": judge_text}]
        text, _ = self._chat.render({**self._chat_variables, "messages": messages, "add_generation_prompt": True})
        kept = sorted(part.index for part in split_parts(text, self._chat.where) if isinstance(part, UserPart))
        if shown != kept:
            raise TemplateUseError(
                f"{self._chat.where}: expected a user message to be shown whole and once, got a prompt that drops or repeats it"
            )
        return text, score_range


class _SpanCache:
    """Recently used encoded texts: the orders of a request share theirs. Bounded by the memory that they take."""

    def __init__(self, tokenizer: SafeTokenizer) -> None:
        self.tokenizer = tokenizer
        self._lock = threading.Lock()
        self._spans: OrderedDict[tuple[str, bool], tuple[int, ...]] = OrderedDict()
        self._bytes = 0

    def encode(self, text: str, *, first: bool) -> tuple[int, ...]:
        key = (text, first)
        with self._lock:
            ids = self._spans.get(key)
            if ids is not None:
                self._spans.move_to_end(key)
                return ids
        ids = self.tokenizer.encode_user(text, first=first)
        with self._lock:
            if key not in self._spans:
                self._spans[key] = ids
                self._bytes += _span_bytes(text, ids)
            while self._bytes > _MAX_CACHED_BYTES:
                (old, _), old_ids = self._spans.popitem(last=False)
                self._bytes -= _span_bytes(old, old_ids)
        return ids


def _span_bytes(text: str, ids: tuple[int, ...]) -> int:
    """At most what a cached text takes, about: its characters, an integer and a reference to it per id, the objects around them."""
    return 4 * len(text) + 40 * len(ids) + 256


def _shown(request: ScoreRequest, order: Sequence[int] | None) -> Sequence[int]:
    places = range(len(request.responses))
    if order is not None and sorted(order) != list(places):
        raise InputError(f"order: expected a permutation of 0 .. {len(places) - 1}, got {list(order)}")
    return places if order is None else order


def _shape(request: ScoreRequest | int) -> Shape:
    return plain_shape(request) if isinstance(request, int) else shape_and_values(request, range(len(request.responses)))[0]


def _judge_source(folder: Path, template: str | Path | None) -> tuple[str, str]:
    builtin = {file.stem: file for file in sorted(TEMPLATES.glob("*.jinja"))}
    own = folder / FOLDER_TEMPLATE
    if template is None:
        path, name = (own, str(own)) if own.exists() else (builtin["default"], "default")
    else:
        name = str(template)
        path = builtin.get(name, Path(name))
    try:
        return path.read_text(encoding="utf-8"), name
    except (OSError, ValueError) as error:
        raise ConfigError(f"template: expected one of {', '.join(builtin)} or a readable UTF-8 file, got {name!r}: {error}") from None


def _score_range(exported: Mapping[str, Any], where: str) -> tuple[int, int]:
    value = exported.get("score_range", DEFAULT_SCORE_RANGE)
    integers = isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not integers or len(value) != 2 or not 0 <= value[0] < value[1] <= 10**6:
        raise ConfigError(
            f"{where}: score_range: expected [lowest, highest], integers with 0 <= lowest < highest <= 1000000, got {value!r}"
        )
    return value[0], value[1]

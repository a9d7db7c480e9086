"""The judging prompt of a request: template, chat template and tokenizer in one."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spct.errors import ConfigError, InputError
from spct.prompting.folder import read_text_folder
from spct.prompting.marks import TemplateUseError, UserPart, UserText, split_parts
from spct.prompting.sandbox import Template
from spct.prompting.tokenizer import SafeTokenizer
from spct.types import ScoreRequest, Turn

TEMPLATES = Path(__file__).parent / "templates"
FOLDER_TEMPLATE = "judge_template.jinja"
DEFAULT_SCORE_RANGE = (1, 10)
_ROLE_LABELS = {"system": "[System]", "user": "[User]", "assistant": "[Assistant]", "tool": "[Tool]"}


@dataclass(frozen=True, slots=True)
class Shape:
    """What a rendering depends on: everything about a request but its words. Flags tell which texts are not empty, and not blank."""

    roles: tuple[str, ...]
    num_responses: int
    num_principles: int | None
    has_reference: bool
    nonempty: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class _Layout:
    """An encoded rendering: token ids of the template's own text, and places of user text."""

    parts: tuple[tuple[int, ...] | UserPart, ...]
    score_range: tuple[int, int]
    opens_think: bool


class JudgePrompt:
    """Turns requests into token ids for one model.

    folder                a model folder with tokenizer.json (tokenizer_config.json, chat_template.jinja, generation_config.json)
    template              name of a built-in template ("default", "verify"), a path, or None: the folder's own judge_template.jinja,
                          else "default"
    chat_template_kwargs  extra variables for the chat template, such as {"enable_thinking": False}

    eos_token_ids  ids that end a sample
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
        source, self.template_name = _judge_source(text_folder.path, template)
        self._judge = Template(source, f"template {self.template_name}", strict=True)
        kwargs = dict(chat_template_kwargs or {})
        self._chat = None
        if text_folder.chat_template is not None:
            self._chat = Template(text_folder.chat_template, f"chat template of {text_folder.path}", strict=False)
        elif kwargs:
            raise ConfigError(f"chat_template_kwargs: expected none, since {text_folder.path} has no chat template, got {sorted(kwargs)}")
        self._chat_variables = {**text_folder.special, "tools": None, "documents": None, **kwargs}
        self.digest = (text_folder.digest, _digest(source, text_folder.chat_template, kwargs))
        self._layout = functools.lru_cache(maxsize=256)(self._make_layout)
        self._encode_user = functools.lru_cache(maxsize=64)(self.tokenizer.encode_user)

    def encode(self, request: ScoreRequest, order: Sequence[int] | None = None) -> tuple[int, ...]:
        """Encode the prompt that shows `request.responses[order[0]]`, `request.responses[order[1]]`, … (None: as given).

        Raises: InputError if the template refuses such a request, the order is not a permutation, or a character has no token.
        """
        count = len(request.responses)
        shown = range(count) if order is None else order
        if sorted(shown) != list(range(count)):
            raise InputError(f"order: expected a permutation of 0 .. {count - 1}, got {list(shown)}")
        shape, values = _shape_and_values(request, shown)
        ids: list[int] = []
        for part in self._layout(shape).parts:
            ids.extend(self._encode_user(part.text(values)) if isinstance(part, UserPart) else part)
        return tuple(ids)

    def encode_text(self, text: str, *, user: bool = True) -> tuple[int, ...]:
        """Encode bare text for `generate`: as a user's (control tokens are plain text) or as a template's (they act, and BOS is added)."""
        if user:
            return (*self.tokenizer.start_ids(), *self.tokenizer.encode_user(text))
        return self._one_bos((*self.tokenizer.start_ids(), *self.tokenizer.encode_template(text, first=True)))

    def decode(self, ids: Iterable[int]) -> str:
        """Decode token ids; nothing is skipped, incomplete UTF-8 becomes U+FFFD."""
        return self.tokenizer.decode(list(ids))

    def text(self, request: ScoreRequest, order: Sequence[int] | None = None) -> str:
        """Give the prompt as text, for a person to read."""
        shown = range(len(request.responses)) if order is None else order
        shape, values = _shape_and_values(request, shown)
        rendered, _ = self._render(shape)
        return "".join(part.text(values) if isinstance(part, UserPart) else part.text for part in split_parts(rendered))

    def score_range(self, request: ScoreRequest | int) -> tuple[int, int]:
        """Give the lowest and highest score of the template for such a request (or a number of responses)."""
        return self._layout(_shape_of(request)).score_range

    def opens_think(self, request: ScoreRequest | int) -> bool:
        """Tell whether the prompt ends inside a `<think>` block, so that the judge's text starts in it."""
        return self._layout(_shape_of(request)).opens_think

    def _make_layout(self, shape: Shape) -> _Layout:
        rendered, score_range = self._render(shape)
        parts: list[tuple[int, ...] | UserPart] = []
        own_texts = []
        start = () if self._chat is not None else self.tokenizer.start_ids()
        for position, part in enumerate(split_parts(rendered)):
            if isinstance(part, UserPart):
                parts.append(part)
            else:
                parts.append(self.tokenizer.encode_template(part.text, first=position == 0))
                own_texts.append(part.text)
        if start:
            parts.insert(0, start)
        if len(parts) > 1 and not isinstance(parts[0], UserPart) and not isinstance(parts[1], UserPart):
            parts[:2] = [(*parts[0], *parts[1])]
        if not isinstance(parts[0], UserPart):
            parts[0] = self._one_bos(parts[0])
        tail = own_texts[-1] if own_texts else ""
        return _Layout(tuple(parts), score_range, tail.rfind("<think>") > tail.rfind("</think>"))

    def _one_bos(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        bos = self.tokenizer.bos_token_id
        start = 0
        while bos is not None and ids[start : start + 2] == (bos, bos):
            start += 1
        return ids[start:]

    def _render(self, shape: Shape) -> tuple[str, tuple[int, int]]:
        judge_text, exported = self._judge.render(_variables(shape))
        score_range = _score_range(exported, self._judge.where)
        if self._chat is None:
            return judge_text, score_range
        messages = [{"role": "user", "content": judge_text}]
        text, _ = self._chat.render({**self._chat_variables, "messages": messages, "add_generation_prompt": True})
        before = sorted(part.index for part in split_parts(judge_text) if isinstance(part, UserPart))
        after = sorted(part.index for part in split_parts(text) if isinstance(part, UserPart))
        if before != after:
            raise TemplateUseError(
                f"{self._chat.where}: expected every text of the request exactly once, as in the judging prompt, got {after}"
            )
        return text, score_range


def _digest(*parts: object) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def _judge_source(folder: Path, template: str | Path | None) -> tuple[str, str]:
    if template is None:
        own = folder / FOLDER_TEMPLATE
        path, name = (own, str(own)) if own.exists() else (TEMPLATES / "default.jinja", "default")
    elif isinstance(template, str) and (TEMPLATES / f"{template}.jinja").is_file() and "/" not in template:
        path, name = TEMPLATES / f"{template}.jinja", template
    else:
        path, name = Path(template), str(template)
    try:
        return path.read_text(encoding="utf-8"), name
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in TEMPLATES.glob("*.jinja")))
        raise ConfigError(f"template: expected one of {known}, or a readable file, got {name!r}: {error}") from None


def _score_range(exported: Mapping[str, Any], where: str) -> tuple[int, int]:
    value = exported.get("score_range", DEFAULT_SCORE_RANGE)
    if (
        not isinstance(value, list | tuple)
        or len(value) != 2
        or not all(isinstance(v, int) and not isinstance(v, bool) and 0 <= v <= 10**6 for v in value)
        or value[0] >= value[1]
    ):
        raise ConfigError(f"{where}: score_range: expected [lowest, highest], two integers with 0 <= lowest < highest, got {value!r}")
    return value[0], value[1]


def _turns(request: ScoreRequest) -> tuple[Turn, ...]:
    if isinstance(request.query, str):
        return (Turn("user", request.query),)
    return tuple(turn for turn in request.query if isinstance(turn, Turn))


def _shape_and_values(request: ScoreRequest, shown: Iterable[int]) -> tuple[Shape, tuple[str, ...]]:
    turns = _turns(request)
    principles = request.principles
    listed = None if principles is None else (principles,) if isinstance(principles, str) else tuple(principles)
    values = (
        *(turn.content for turn in turns),
        *(request.responses[i] for i in shown),
        *(() if request.reference is None else (request.reference,)),
        *(listed or ()),
    )
    shape = Shape(
        roles=tuple(turn.role for turn in turns),
        num_responses=len(request.responses),
        num_principles=None if listed is None else len(listed),
        has_reference=request.reference is not None,
        nonempty=tuple(bool(value) for value in values),
    )
    return shape, values


def _shape_of(request: ScoreRequest | int) -> Shape:
    if isinstance(request, ScoreRequest):
        return _shape_and_values(request, range(len(request.responses)))[0]
    return Shape(roles=("user",), num_responses=request, num_principles=None, has_reference=False, nonempty=(True,) * (1 + request))


def _variables(shape: Shape) -> dict[str, Any]:
    numbered = (UserText.value(index, nonempty) for index, nonempty in enumerate(shape.nonempty))
    turns = [{"role": role, "content": next(numbered)} for role in shape.roles]
    responses = [next(numbered) for _ in range(shape.num_responses)]
    reference = next(numbered) if shape.has_reference else None
    principles = None
    if shape.num_principles is not None:
        principles = _joined([next(numbered) for _ in range(shape.num_principles)], "\n")
    if len(turns) == 1 and turns[0]["role"] == "user":
        query = turns[0]["content"]
    else:
        query = _joined([f"{_ROLE_LABELS[turn['role']]}\n" + turn["content"] for turn in turns], "\n\n")
    return {
        "query": query,
        "turns": turns,
        "responses": responses,
        "reference": reference,
        "principles": principles,
        "num_responses": shape.num_responses,
    }


def _joined(texts: list[UserText], separator: str) -> UserText:
    return UserText(separator.join(texts), any(texts))

"""From the texts and messages of a framework to those of a judging request."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from spct.errors import InputError
from spct.types import Turn

# OpenAI's newer name for the system's role.
_ROLES = {"developer": "system"}


def query_of(prompt: object, name: str = "prompt") -> str | tuple[Turn, ...]:
    """The query of a prompt: a text as it is, messages as turns.

    prompt  a string, or messages (mappings with "role" and "content"; other keys are for the policy alone and left out)
    name    of the prompt, for errors

    Raises: InputError if it is neither, or a message holds what a judge of texts can't read.
    """
    if isinstance(prompt, str):
        return prompt
    return tuple(Turn(role, text) for role, text in _messages(prompt, name))


def response_of(response: object, name: str = "response") -> str:
    """The text to be judged: a text as it is; of messages that of the last one by the assistant.

    With tools, the messages before it are how the response came about. Without a message by the assistant it is empty.

    Raises: as `query_of`.
    """
    if isinstance(response, str):
        return response
    texts = [text for role, text in _messages(response, name) if role == "assistant"]
    return texts[-1] if texts else ""


def reference_of(value: object, name: str) -> str | None:
    """A known good answer; None where a row has none (None or an empty text).

    Raises: InputError if it is no text: a mapping or a list means something to a framework's own checkers alone.
    """
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise InputError(f"{name}: expected a text or a number as the reference, got {type(value).__name__}; switch the reference off")
    return str(value)


def runs(keys: Sequence[object]) -> list[range]:
    """The places of each run of equal keys, in order: a group of responses is a run of equal prompts."""
    starts = [i for i in range(len(keys)) if i == 0 or keys[i] != keys[i - 1]]
    return [range(start, stop) for start, stop in itertools.pairwise([*starts, len(keys)])]


def same_length(**columns: Sequence[Any] | None) -> None:
    """Refuses columns of different lengths. Raises: InputError."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        raise InputError(f"expected one entry a response in every column, got {', '.join(f'{n}: {size}' for n, size in lengths.items())}")


def _messages(messages: object, name: str) -> list[tuple[str, str]]:
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence):
        raise InputError(f"{name}: expected a text or a list of messages, got {type(messages).__name__}")
    found = []
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(message, Mapping) or not isinstance(role, str):
            raise InputError(f'{name}[{i}]: expected a message with "role" and "content", got {message!r:.80}')
        found.append((_ROLES.get(role, role), _content(message.get("content"), f"{name}[{i}].content")))
    return found


def _content(content: object, name: str) -> str:
    """The text of a message: a string, nothing (a mere tool call), or parts that are all text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, Sequence):
        raise InputError(f"{name}: expected a text or a list of text parts, got {type(content).__name__}")
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise InputError(f"{name}: expected parts of text alone, got {kind!r}; this judge reads nothing else")
        texts.append(part["text"])
    return "".join(texts)

"""What a model folder says about text: tokenizer, special tokens, chat template, end-of-sequence ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spct.errors import CheckpointError

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TextFolder:
    """The text side of a checkpoint.

    tokenizer        text of tokenizer.json
    special          name ("bos_token", …) to text, for those that the folder defines
    control_texts    every text that the folder names as a special or added token, outside of tokenizer.json too
    chat_template    Jinja source; None for a base model
    eos_token_ids    from generation_config.json (else config.json)
    add_bos_token    tokenizer_config.json's switch; None where it is silent
    digest           hex hash of the tokenizer and its settings
    """

    path: Path
    tokenizer: str
    special: Mapping[str, str]
    control_texts: tuple[str, ...]
    chat_template: str | None
    eos_token_ids: tuple[int, ...]
    add_bos_token: bool | None
    digest: str


def read_text_folder(path: Path) -> TextFolder:
    """Read the folder.

    Raises: CheckpointError if tokenizer.json is missing or a file is malformed.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path}: expected a model folder, got {'a file' if path.exists() else 'nothing'}")
    tokenizer = _text(path / "tokenizer.json")
    if tokenizer is None:
        raise CheckpointError(
            f"{path / 'tokenizer.json'}: missing; a folder needs the fast tokenizer's file: "
            "save it with transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    config = _json(path / "tokenizer_config.json")
    legacy_map = _json(path / "special_tokens_map.json")
    special, extra = _special_tokens(config, legacy_map)
    template = _chat_template(path, config)
    add_bos = config.get("add_bos_token")
    digest = hashlib.blake2b(tokenizer.encode(), digest_size=16)
    digest.update(json.dumps([special, extra, add_bos], sort_keys=True).encode())
    return TextFolder(
        path=path,
        tokenizer=tokenizer,
        special=special,
        control_texts=tuple(dict.fromkeys([*special.values(), *extra])),
        chat_template=template,
        eos_token_ids=_eos(path),
        add_bos_token=add_bos if isinstance(add_bos, bool) else None,
        digest=digest.hexdigest(),
    )


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: expected UTF-8, got something else at byte {error.start}") from None


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: expected JSON, got something else: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def _token_text(value: object) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _special_tokens(config: Mapping[str, Any], legacy_map: Mapping[str, Any]) -> tuple[dict[str, str], list[str]]:
    special: dict[str, str] = {}
    for name in _NAMED:
        text = _token_text(config.get(name)) or _token_text(legacy_map.get(name))
        if text is not None:
            special[name] = text
    extra: list[str] = []
    for key in ("additional_special_tokens", "extra_special_tokens"):
        for source in (config, legacy_map):
            listed = source.get(key) or ()
            values = listed.values() if isinstance(listed, Mapping) else listed if isinstance(listed, list) else ()
            extra += [text for text in map(_token_text, values) if text is not None]
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, Mapping):
        extra += [text for text in map(_token_text, decoder.values()) if text is not None]
    return special, list(dict.fromkeys(extra))


def _chat_template(path: Path, config: Mapping[str, Any]) -> str | None:
    own = _text(path / "chat_template.jinja")
    if own is not None:
        return own
    template = config.get("chat_template")
    if template is None or isinstance(template, str):
        return template
    if isinstance(template, list):
        for entry in template:
            if isinstance(entry, Mapping) and entry.get("name") == "default" and isinstance(entry.get("template"), str):
                return str(entry["template"])
    raise CheckpointError(
        f'{path / "tokenizer_config.json"}: chat_template: expected a string or a list with an entry named "default", '
        f"got {type(template).__name__}; write the wanted template to chat_template.jinja"
    )


def _eos(path: Path) -> tuple[int, ...]:
    for name in ("generation_config.json", "config.json"):
        value = _json(path / name).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise CheckpointError(f"{path / name}: eos_token_id: expected an integer or a list of integers, got {value!r}")
        return tuple(dict.fromkeys(ids))
    return ()

"""Surgery on a tokenizer.json: without the blank before a text, without control tokens, and what its settings promise."""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer

BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_NEVER = -1e9

# What keeps every character, or at most composes four into one (canonical composition).
_KEEPING_NORMALIZERS = {"Sequence", "NFC", "NFD", "Prepend"}
_KEEPING_PRE_TOKENIZERS = {"Sequence", "ByteLevel", "Metaspace", "Digits"}
_MAX_COMPOSED = 4


def _walk(component: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    if component is None:
        return
    yield component
    for key in ("normalizers", "pretokenizers", "decoders"):
        for child in component.get(key) or ():
            yield from _walk(child)


def drop_prefix(spec: dict[str, Any]) -> bool:
    """Take from the tokenizer its habit of putting a blank before a text, in encoding and decoding; tell whether it had it."""
    before = json.dumps([spec.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")])
    parts = copy.deepcopy({key: spec.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")})
    for key, dropped in (("normalizer", "Prepend"), ("decoder", "Strip")):
        if (parts[key] or {}).get("type") == dropped:
            parts[key] = None
        for part in _walk(parts[key]):
            for children in ("normalizers", "decoders"):
                if children in part:
                    part[children] = [child for child in part[children] if child.get("type") != dropped]
    for part in (*_walk(parts["pre_tokenizer"]), *_walk(parts["decoder"])):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
            part.pop("add_prefix_space", None)
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
    spec.update(parts)
    # Only the encoding side decides: a ByteLevel decoder carries the flag without using it.
    changed: list[object] = json.loads(before)[:2]
    return changed != [parts["normalizer"], parts["pre_tokenizer"]]


def without_control(spec: Mapping[str, Any], control: Mapping[int, str]) -> dict[str, Any]:
    """Copy the tokenizer with every control token out of reach."""
    user = dict(spec)
    user["post_processor"] = None
    nonce = secrets.token_hex(16)
    names = {text: f"\ufdd0{nonce}.{id}\ufdd1" for id, text in control.items()}
    user["added_tokens"] = [{**token, "content": names.get(token["content"], token["content"])} for token in user["added_tokens"]]
    model = user["model"] = dict(spec["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), _NEVER if piece in BYTE_PIECES else score] for piece, score in vocab]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        # Merges may not spell a byte piece either: the text "<0x0A>" would decode to a newline.
        unreachable = names.keys() | BYTE_PIECES
        model["merges"] = [list(pair) for pair in pairs if unreachable.isdisjoint((*pair, "".join(pair)))]
    return user


def unk_id(tokenizer: Tokenizer, model: Mapping[str, Any]) -> int | None:
    """Give the id of the unknown token; None where there is none."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    unk = model.get("unk_token")
    return None if unk is None else tokenizer.token_to_id(unk)


def drops_unknown(model: Mapping[str, Any], pre_tokenizer: dict[str, Any] | None) -> bool:
    """Tell whether the model leaves out, without a word, a character that it has no token for."""
    byte_level = any(part.get("type") == "ByteLevel" for part in _walk(pre_tokenizer))
    return model.get("type") == "BPE" and model.get("unk_token") is None and not model.get("byte_fallback") and not byte_level


def max_chars_per_token(spec: Mapping[str, Any]) -> int | None:
    """Give the most characters of a text that one token can stand for; None where the tokenizer may drop text without a trace."""
    kept = all(
        part.get("type") in _KEEPING_NORMALIZERS or (part.get("type") == "Replace" and _keeps_length(part))
        for part in _walk(spec.get("normalizer"))
    )
    split = all(
        part.get("type") in _KEEPING_PRE_TOKENIZERS or (part.get("type") == "Split" and part.get("behavior") != "Removed")
        for part in _walk(spec.get("pre_tokenizer"))
    )
    if not kept or not split:
        return None
    longest = max((len(piece) for piece in _pieces(spec["model"]["vocab"])), default=1)
    added = max((len(token["content"]) for token in spec["added_tokens"]), default=1)
    return _MAX_COMPOSED * max(longest, added)


def _keeps_length(replace: Mapping[str, Any]) -> bool:
    pattern = replace["pattern"].get("String")
    return pattern is not None and len(pattern) <= len(replace["content"])


def _pieces(vocab: Mapping[str, int] | list[tuple[str, float]]) -> Iterable[str]:
    return vocab if isinstance(vocab, Mapping) else (piece for piece, _ in vocab)

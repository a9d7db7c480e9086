"""A tokenizer that keeps what a user wrote apart from what a template says.

The `tokenizers` library turns the text of a special token into its control id wherever it meets it, in a user's text too, and its
`encode_special_tokens` switch covers only the tokens marked special. So three copies are made from one tokenizer.json:

    whole    as published: for the first piece of a prompt
    inner    the same without the blank that SentencePiece-like tokenizers put before a text: for later pieces, and for decoding
    user     `inner` with every control token renamed to an unguessable string, in the vocabulary too, and without the merges that could
             build one: no text can become a control id

Added tokens that are neither special nor anything but whitespace (runs of blanks or newlines, in GPT-NeoX and Gemma) are text, not
control: they stay usable, since models read them all the time. Normalisers (Qwen: NFC) act on a user's text as on all text.
"""

from __future__ import annotations

import copy
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from spct.errors import CheckpointError, InputError
from spct.prompting.folder import TextFolder

_BYTE_PIECES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
_NEVER = -1e9


class SafeTokenizer:
    """Encodes template text and user text, decodes what a judge wrote.

    control_ids    ids that no user text can become
    eos_token_ids  ids that end a sample: those of generation_config.json and the tokenizer's own
    bos_token_id   None where the tokenizer has none

    Raises: CheckpointError if `tokenizers` does not accept the file.
    """

    def __init__(self, folder: TextFolder) -> None:
        spec = copy.deepcopy(dict(folder.tokenizer))
        spec["truncation"] = spec["padding"] = None
        where = folder.path / "tokenizer.json"
        self._whole = _load(spec, where)
        self._declare(folder)
        added = self._whole.get_added_tokens_decoder()
        control = {id: token.content for id, token in added.items() if token.special or token.content.strip(" \t\r\n\u2581")}
        self.control_ids = frozenset(control)
        spec = json.loads(self._whole.to_str())
        inner = _without_prefix(spec)
        self._inner = _load(inner, where)
        self._user = _load(_without_control(inner, control), where)
        self.bos_token_id = self._id(folder.special.get("bos_token"))
        eos = self._id(folder.special.get("eos_token"))
        self.eos_token_ids = tuple(dict.fromkeys([*folder.eos_token_ids, *([] if eos is None else [eos])]))
        self._unk_id = _unk_id(self._whole, spec)
        self._starts_with = self._prefix_ids(folder.add_bos_token)

    def encode_template(self, text: str, *, first: bool) -> tuple[int, ...]:
        """Encode template text; control tokens act. `first`: it opens the prompt."""
        if first:
            return tuple(self._whole.encode(text, add_special_tokens=False).ids)
        # A legacy SentencePiece tokenizer puts a blank after each control token; text before the first one continues what came before.
        encoding = self._inner.encode(text, add_special_tokens=False)
        for id, (start, _) in zip(encoding.ids, encoding.offsets, strict=True):
            if id in self.control_ids and start > 0:
                head = self._inner.encode(text[:start], add_special_tokens=False).ids
                return (*head, *self._whole.encode(text[start:], add_special_tokens=False).ids)
            if id in self.control_ids:
                return tuple(self._whole.encode(text, add_special_tokens=False).ids)
        return tuple(encoding.ids)

    def encode_user(self, text: str) -> tuple[int, ...]:
        """Encode user text; no control id comes out, and it decodes back to itself (after the tokenizer's own normaliser).

        Raises: InputError if the vocabulary has no token for some character.
        """
        ids = self._user.encode(text, add_special_tokens=False).ids
        if not self.control_ids.isdisjoint(ids) or (self._unk_id is not None and self._unk_id in ids):
            raise InputError(
                f"text: {_unknown(self._user, text)}: the model's vocabulary has no token for it; remove it or use another model"
            )
        return tuple(ids)

    def start_ids(self) -> tuple[int, ...]:
        """Give the ids that the tokenizer's own post-processor puts before a text (a BOS, or nothing)."""
        return self._starts_with

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; control tokens are shown, incomplete UTF-8 becomes U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._whole.get_vocab_size(with_added_tokens=True))

    def _declare(self, folder: TextFolder) -> None:
        known = {token.content for token in self._whole.get_added_tokens_decoder().values()}
        missing = [text for text in folder.control_texts if text not in known and self._whole.token_to_id(text) is not None]
        self._whole.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._whole.token_to_id(text)

    def _prefix_ids(self, add_bos: bool | None) -> tuple[int, ...]:
        if add_bos is not None:
            return (self.bos_token_id,) if add_bos and self.bos_token_id is not None else ()
        plain = self._whole.encode("a", add_special_tokens=False).ids
        full = self._whole.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return tuple(full[:start])
        return ()


def _load(spec: Mapping[str, Any], where: object) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(spec))
    except Exception as error:  # the library raises plain Exception for every malformed file
        raise CheckpointError(f"{where}: expected a tokenizer that the tokenizers library reads, got: {error}") from None


def _walk(component: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    if component is None:
        return
    yield component
    for key in ("normalizers", "pretokenizers", "decoders"):
        for child in component.get(key) or ():
            yield from _walk(child)


def _without_prefix(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Copy the tokenizer without its habit of putting a blank before a text, in encoding and decoding."""
    inner = copy.deepcopy(dict(spec))
    inner["post_processor"] = None
    if (inner.get("normalizer") or {}).get("type") == "Prepend":
        inner["normalizer"] = None
    for part in _walk(inner.get("normalizer")):
        if "normalizers" in part:
            part["normalizers"] = [child for child in part["normalizers"] if child.get("type") != "Prepend"]
    for part in _walk(inner.get("pre_tokenizer")):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
            part.pop("add_prefix_space", None)
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = False
    for part in _walk(inner.get("decoder")):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"
            part.pop("add_prefix_space", None)
        if "decoders" in part:
            part["decoders"] = [child for child in part["decoders"] if child.get("type") != "Strip"]
    return inner


def _without_control(spec: Mapping[str, Any], control: Mapping[int, str]) -> dict[str, Any]:
    """Copy the tokenizer with every control token out of reach."""
    user = copy.deepcopy(dict(spec))
    nonce = secrets.token_hex(16)
    names = {text: f"\ufdd0{nonce}.{id}\ufdd1" for id, text in control.items()}
    for token in user.get("added_tokens") or ():
        token["content"] = names.get(token["content"], token["content"])
    model = user["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): id for piece, id in vocab.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), _NEVER if piece in _BYTE_PIECES else score] for piece, score in vocab]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        model["merges"] = [list(pair) for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    return user


def _unk_id(tokenizer: Tokenizer, spec: Mapping[str, Any]) -> int | None:
    model = spec["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    unk = model.get("unk_token")
    return None if unk is None else tokenizer.token_to_id(unk)


def _unknown(tokenizer: Tokenizer, text: str) -> str:
    for character in dict.fromkeys(text):
        encoding = tokenizer.encode(character, add_special_tokens=False)
        if not encoding.ids or any(token is None or "\ufdd0" in token for token in encoding.tokens):
            return f"character {character!r} (U+{ord(character):04X})"
    return "a character of it"

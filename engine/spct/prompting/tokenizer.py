"""A tokenizer that keeps what a user wrote apart from what a template says.

The `tokenizers` library turns the text of a special token into its control id wherever it meets it, in a user's text too, and its
`encode_special_tokens` switch covers only the tokens marked special. So copies are made from one tokenizer.json:

    whole    as published: for the first piece of a prompt
    inner    the same without the blank that SentencePiece-like tokenizers put before a text: for later pieces, and for decoding
    user     these two with every control token renamed to an unguessable string, in the vocabulary too, and without the merges that could
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
_BLANK = "\u2581"


class SafeTokenizer:
    """Encodes template text and user text, decodes what a judge wrote.

    control_ids    ids that no user text can become
    start_ids      what the tokenizer itself puts before a text (a BOS), as its post-processor or add_bos_token says
    eos_token_ids  ids that end a sample: those of generation_config.json and the tokenizer's own
    bos_token_id   None where the tokenizer has none

    Raises: CheckpointError if `tokenizers` does not accept the file.
    """

    def __init__(self, folder: TextFolder) -> None:
        where = folder.path / "tokenizer.json"
        self._whole = _load(folder.tokenizer, where)
        self._whole.no_truncation()
        self._whole.no_padding()
        self._declare(folder)
        spec = json.loads(self._whole.to_str())
        added = self._whole.get_added_tokens_decoder()
        control = {id: token.content for id, token in added.items() if token.special or token.content.strip(" \t\r\n\u2581")}
        self.control_ids = frozenset(control)
        self.bos_token_id = self._id(folder.special.get("bos_token"))
        eos = self._id(folder.special.get("eos_token"))
        self.eos_token_ids = tuple(dict.fromkeys([*folder.eos_token_ids, *([] if eos is None else [eos])]))
        unk = _unk_id(self._whole, spec["model"])
        self._refused_ids = self.control_ids if unk is None else self.control_ids | {unk}
        self.start_ids = self._own_start(folder.add_bos_token)
        has_prefix = _drop_prefix(dict(spec))
        self._inner, self._user_first = self._whole, None
        if has_prefix:
            self._user_first = _load(_without_control(spec, control), where)
            _drop_prefix(spec)
            self._inner = _load(spec, where)
        self._user = _load(_without_control(spec, control), where)
        self._blank_bytes = self._spelled_blank()

    def encode_template(self, text: str, *, first: bool) -> tuple[int, ...]:
        """Encode template text; control tokens act. `first`: it opens the prompt."""
        if first or self._inner is self._whole:
            return tuple(self._whole.encode(text, add_special_tokens=False).ids)
        # A legacy SentencePiece tokenizer puts a blank after each control token; text before the first one continues what came before.
        encoding = self._inner.encode(text, add_special_tokens=False)
        start = next((offsets[0] for id, offsets in zip(encoding.ids, encoding.offsets, strict=True) if id in self.control_ids), len(text))
        head, tail = text[:start], text[start:]
        return (
            *self._inner.encode(head, add_special_tokens=False).ids,
            *(self._whole.encode(tail, add_special_tokens=False).ids if tail else ()),
        )

    def encode_user(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Encode user text; no control id comes out, and it decodes back to itself (after the tokenizer's own normaliser).

        first  the text opens the prompt

        Raises: InputError if the vocabulary has no token for some character.
        """
        tokenizer = self._user_first if first and self._user_first is not None else self._user
        if self._blank_bytes and _BLANK in text:
            start, *rest = text.split(_BLANK)
            ids = tokenizer.encode(start, add_special_tokens=False).ids if start else []
            for piece in rest:
                ids += (*self._blank_bytes, *self._user.encode(piece, add_special_tokens=False).ids)
        else:
            ids = tokenizer.encode(text, add_special_tokens=False).ids
        if not self._refused_ids.isdisjoint(ids):
            raise InputError(f"text: the model's vocabulary has no token for {self._unknown(text)}; remove it or use another model")
        return tuple(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; control tokens are shown, incomplete UTF-8 becomes U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return int(self._whole.get_vocab_size(with_added_tokens=True))

    def _declare(self, folder: TextFolder) -> None:
        """Add what the folder's other files call special or added and the vocabulary holds, as transformers does.

        Single characters are left alone: some folders name "!" as padding, and it must stay usable as text.
        """
        known = {token.content for token in self._whole.get_added_tokens_decoder().values()}
        missing = [t for t in folder.control_texts if t not in known and len(t) > 1 and self._whole.token_to_id(t) is not None]
        self._whole.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in missing])

    def _id(self, text: str | None) -> int | None:
        return None if text is None else self._whole.token_to_id(text)

    def _own_start(self, add_bos: bool | None) -> tuple[int, ...]:
        """Give the ids that the tokenizer itself puts before a text: a BOS, or nothing."""
        if add_bos is not None:
            return (self.bos_token_id,) if add_bos and self.bos_token_id is not None else ()
        plain = self._whole.encode("a", add_special_tokens=False).ids
        full = self._whole.encode("a", add_special_tokens=True).ids
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return tuple(full[:start])
        return ()

    def _spelled_blank(self) -> tuple[int, ...]:
        """Give the byte tokens of U+2581 where the vocabulary uses that character for a blank, so that a user's own one survives."""
        ids = [self._whole.token_to_id(f"<0x{byte:02X}>") for byte in _BLANK.encode()]
        if None in ids or self.decode(ids) != _BLANK or self.decode(self._user.encode(_BLANK, add_special_tokens=False).ids) == _BLANK:
            return ()
        return tuple(ids)

    def _unknown(self, text: str) -> str:
        for character in dict.fromkeys(text):
            if not self._refused_ids.isdisjoint(self._user.encode(character, add_special_tokens=False).ids):
                return f"the character {character!r} (U+{ord(character):04X})"
        return "a part of it"


def _load(spec: str | Mapping[str, Any], where: object) -> Tokenizer:
    try:
        return Tokenizer.from_str(spec if isinstance(spec, str) else json.dumps(spec))
    except Exception as error:
        # The library raises bare Exception for every malformed file, so no narrower class can be named.
        if type(error) is not Exception:
            raise
        raise CheckpointError(f"{where}: expected a tokenizer that the tokenizers library reads, got: {str(error)[:500]}") from None


def _walk(component: dict[str, Any] | None) -> Iterable[dict[str, Any]]:
    if component is None:
        return
    yield component
    for key in ("normalizers", "pretokenizers", "decoders"):
        for child in component.get(key) or ():
            yield from _walk(child)


def _drop_prefix(spec: dict[str, Any]) -> bool:
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


def _without_control(spec: Mapping[str, Any], control: Mapping[int, str]) -> dict[str, Any]:
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
        model["vocab"] = [[names.get(piece, piece), _NEVER if piece in _BYTE_PIECES else score] for piece, score in vocab]
    if model.get("unk_token") is not None:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
        # Merges may not spell a byte piece either: the text "<0x0A>" would decode to a newline.
        unreachable = names.keys() | _BYTE_PIECES
        model["merges"] = [list(pair) for pair in pairs if unreachable.isdisjoint((*pair, "".join(pair)))]
    return user


def _unk_id(tokenizer: Tokenizer, model: Mapping[str, Any]) -> int | None:
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    unk = model.get("unk_token")
    return None if unk is None else tokenizer.token_to_id(unk)

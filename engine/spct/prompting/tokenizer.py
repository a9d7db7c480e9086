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

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer

from spct.errors import CheckpointError, InputError
from spct.prompting.folder import TextFolder
from spct.prompting.surgery import drop_prefix, drops_unknown, max_chars_per_token, unk_id, without_control

_BLANK = "\u2581"


class SafeTokenizer:
    """Encodes template text and user text, decodes what a judge wrote.

    control_ids    ids that no user text can become
    start_ids      what the tokenizer itself puts before a text (a BOS), as its post-processor or add_bos_token says
    eos_token_ids  ids that end a sample: those of generation_config.json and the tokenizer's own
    bos_token_id   None where the tokenizer has none
    max_chars      the most characters that one token can stand for; None where that is not known

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
        unk = unk_id(self._whole, spec["model"])
        self._refused_ids = self.control_ids if unk is None else self.control_ids | {unk}
        self.start_ids = self._own_start(folder.add_bos_token)
        self.max_chars = max_chars_per_token(spec)
        self._known_chars: set[str] | None = set() if drops_unknown(spec["model"], spec.get("pre_tokenizer")) else None
        has_prefix = drop_prefix(dict(spec))
        self._inner, self._user_first = self._whole, None
        if has_prefix:
            self._user_first = _load(without_control(spec, control), where)
            drop_prefix(spec)
            self._inner = _load(spec, where)
        self._user = _load(without_control(spec, control), where)
        self._blank_bytes = self._spelled_blank()

    def encode_template(self, text: str, *, first: bool) -> tuple[int, ...]:
        """Encode template text; control tokens act. `first`: it opens the prompt."""
        if first or self._inner is self._whole:
            return tuple(_ids(self._whole, text))
        # A legacy SentencePiece tokenizer puts a blank after each control token; text before the first one continues what came before.
        encoding = self._inner.encode(text, add_special_tokens=False)
        start = next((offsets[0] for id, offsets in zip(encoding.ids, encoding.offsets, strict=True) if id in self.control_ids), len(text))
        head, tail = text[:start], text[start:]
        return (
            *_ids(self._inner, head),
            *(_ids(self._whole, tail) if tail else ()),
        )

    def encode_user(self, text: str, *, first: bool = False) -> tuple[int, ...]:
        """Encode user text; no control id comes out, and it decodes back to itself (after the tokenizer's own normaliser).

        first  the text opens the prompt

        Raises: InputError if the vocabulary has no token for some character.
        """
        tokenizer = self._user_first if first and self._user_first is not None else self._user
        ids = self._user_ids(tokenizer, text)
        unknown = self._unknown(text, ids)
        if unknown is not None:
            raise InputError(f"the model's vocabulary has no token for {unknown}; remove it or use another model")
        return tuple(ids)

    def _user_ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        if not self._blank_bytes or _BLANK not in text:
            return _ids(tokenizer, text)
        start, *rest = text.split(_BLANK)
        ids = _ids(tokenizer, start) if start else []
        for piece in rest:
            ids += (*self._blank_bytes, *_ids(self._user, piece))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Decode; control tokens are shown, incomplete UTF-8 becomes U+FFFD."""
        return str(self._inner.decode(list(ids), skip_special_tokens=False))

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
        try:
            plain, full = _ids(self._whole, "a"), _ids(self._whole, "a", add_special_tokens=True)
        except InputError:
            return ()
        for start in range(len(full) - len(plain) + 1):
            if full[start : start + len(plain)] == plain:
                return tuple(full[:start])
        return ()

    def _spelled_blank(self) -> tuple[int, ...]:
        """Give the byte tokens of U+2581 where the vocabulary uses that character for a blank, so that a user's own one survives."""
        ids = [id for byte in _BLANK.encode() if (id := self._whole.token_to_id(f"<0x{byte:02X}>")) is not None]
        if len(ids) < len(_BLANK.encode()) or self.decode(ids) != _BLANK or self.decode(_ids(self._user, _BLANK)) == _BLANK:
            return ()
        return tuple(ids)

    def _unknown(self, text: str, ids: Sequence[int]) -> str | None:
        """Name what the vocabulary can't spell, None if it spells everything."""
        refused = not self._refused_ids.isdisjoint(ids)
        if not refused and self._known_chars is None:
            return None
        for character in dict.fromkeys(text):
            if self._known_chars is not None and character in self._known_chars:
                continue
            alone = _ids(self._user, character)
            if not self._refused_ids.isdisjoint(alone) or (self._known_chars is not None and not alone and not character.isspace()):
                return f"the character {character!r} (U+{ord(character):04X})"
            if self._known_chars is not None:
                self._known_chars.add(character)
        return "a part of it" if refused else None


def _ids(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = False) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
    except Exception as error:
        # The library raises bare Exception for a word without a token, and TypeError for a lone surrogate.
        if type(error) is not Exception and not isinstance(error, TypeError):
            raise
        raise InputError(f"expected text that the model's vocabulary can spell, got {str(error)[:200]!r}; use another model") from None


def _load(spec: str | Mapping[str, Any], where: object) -> Tokenizer:
    try:
        return Tokenizer.from_str(spec if isinstance(spec, str) else json.dumps(spec))
    except Exception as error:
        # The library raises bare Exception for every malformed file, so no narrower class can be named.
        if type(error) is not Exception:
            raise
        raise CheckpointError(f"{where}: expected a tokenizer that the tokenizers library reads, got: {str(error)[:500]}") from None

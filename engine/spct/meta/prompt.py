"""What the separate meta RM reads: the conversation and the responses as a user's turn, one sample of the judge as the answer.

The paper's template (DeepSeek-GRM, arXiv 2504.02495, appendix): "Please score the responses.", context, responses, without the rubric.
Beyond it, a request's reference and principles are shown where it has them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from spct.prompting.judge import TEMPLATES, JudgePrompt
from spct.types import ScoreRequest

TEMPLATE_FILE = "meta_template.jinja"
DEFAULT_TEMPLATE = TEMPLATES / "meta.j2"


class MetaPrompt:
    """Turns requests and samples into token ids for one meta model; thread-safe.

    folder   a model folder with tokenizer.json; its own `meta_template.jinja` goes before the built-in template, and its chat
             template, where there is one, wraps either

    end      the token that closes a sample, at which the model's score is read: the folder's first EOS; empty where it has none
    digest   hash of tokenizer and templates

    Invariant: what follows the prompt of an order depends on the sample's text alone, so that k samples share one prefill.

    Raises: CheckpointError if the folder's files are missing or malformed; ConfigError if a template is.
    """

    def __init__(self, folder: str | Path) -> None:
        own = Path(folder) / TEMPLATE_FILE
        self._prompt = JudgePrompt(folder, template=own if own.exists() else DEFAULT_TEMPLATE)
        self.end = self._prompt.eos_token_ids[:1]
        self.digest = hashlib.blake2b(repr(self._prompt.digest).encode(), digest_size=16).hexdigest()

    def encode(self, request: ScoreRequest, order: Sequence[int] | None = None, *, max_tokens: int | None = None) -> tuple[int, ...]:
        """Encode the prompt of an order, up to where a sample begins.

        Raises: as `JudgePrompt.encode`.
        """
        return self._prompt.encode(request, order, max_tokens=max_tokens)

    def continuation(self, text: str) -> tuple[int, ...]:
        """Encode a sample's text and the end after it. Control tokens in the text are plain text.

        Raises: InputError if the vocabulary has no token for some character.
        """
        return (*self._prompt.tokenizer.encode_user(text), *self.end)

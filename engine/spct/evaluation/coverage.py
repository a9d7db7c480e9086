"""Whether a request lies within what the embedded model has learned to judge.

Honest and simple: nearly every word of the request must be one that the training texts contain (the tokenizer was trained on nothing else,
so such a word is one token), and the request must be of the sizes seen in training. It is a rule about words and sizes, not a promise
about the judgement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from spct.prompting import JudgePrompt
from spct.training.tasks.core import MAX_RESPONSES
from spct.types import ScoreRequest

WORD = re.compile(r"[^\W\d_]+")
MAX_NEW_WORDS = 0.08
MAX_PROMPT_TOKENS = 420


@dataclass(frozen=True, slots=True)
class Coverage:
    """Outcome of the rule: `covered`, and otherwise the reason in a few words."""

    covered: bool
    reason: str = ""


class EmbeddedCoverage:
    """Tells which requests the embedded model has learned to judge.

    prompt  the embedded model's own `JudgePrompt`
    """

    def __init__(self, prompt: JudgePrompt) -> None:
        self._prompt = prompt
        self._known: dict[str, bool] = {}

    def __call__(self, request: ScoreRequest) -> Coverage:
        """Apply the rule to one request."""
        if not isinstance(request.query, str):
            return Coverage(False, "a conversation of several turns")
        if len(request.responses) > MAX_RESPONSES:
            return Coverage(False, f"more than {MAX_RESPONSES} responses")
        text = "\n".join([request.query, *request.responses, request.reference or ""])
        words = WORD.findall(text)
        new = [w for w in words if not self._knows(w)]
        if not words or len(new) > MAX_NEW_WORDS * len(words):
            return Coverage(False, f"words that it has never read: {', '.join(dict.fromkeys(new[:3]))}" if new else "no words")
        if len(self._prompt.encode(request)) > MAX_PROMPT_TOKENS:
            return Coverage(False, "longer than anything that it has read")
        return Coverage(True)

    def _knows(self, word: str) -> bool:
        if word not in self._known:
            self._known[word] = any(len(self._prompt.encode_text(form)) == 1 for form in (f" {word}", word))
        return self._known[word]

"""From a request to token ids, per response order; user text never becomes a control token."""

from spct.prompting.judge import JudgePrompt

__all__ = ["JudgePrompt"]

"""What an engine can hold: context, KV pages, samples. One rule for the engine itself and for a dry run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from spct.config import EngineConfig
from spct.errors import CapacityError, ConfigError

PAGE_SIZE = 16
_DEFAULT_KV_BYTES = 2**30


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one engine.

    max_context   tokens of prompt and sample together
    num_pages     KV memory in pages of `PAGE_SIZE` tokens
    max_samples   per request
    """

    max_context: int
    num_pages: int
    max_samples: int

    def check_samples(self, num_samples: int) -> None:
        """Refuses more samples than a request may ask for. Raises: CapacityError."""
        if num_samples > self.max_samples:
            raise CapacityError(f"samples: at most max_samples={self.max_samples} per request, got {num_samples}")

    def check_context(self, prompt_len: int, reserve: int = 1) -> None:
        """Refuses a prompt that leaves no room for `reserve` more tokens. Raises: CapacityError."""
        if prompt_len + reserve > self.max_context:
            raise CapacityError(
                f"the prompt has {prompt_len} tokens and the context ends at {self.max_context}; shorten the request or raise max_context"
            )

    def max_len(self, prompt_len: int, max_tokens: int) -> int:
        """Tokens that one sample of such a prompt may generate."""
        return min(max_tokens, self.max_context - prompt_len)

    def check_fits(self, prompt_len: int, max_tokens: int) -> None:
        """Refuses a prompt whose sample could never run to its end, alone in an empty cache. Raises: CapacityError."""
        self.check_context(prompt_len)
        max_len = self.max_len(prompt_len, max_tokens)
        # The last token that is drawn is never fed, so it needs no slot.
        needed = num_pages_of(prompt_len) + num_pages_of(max_len - 1)
        if needed > self.num_pages:
            raise CapacityError(
                f"a prompt of {prompt_len} tokens with a sample of up to {max_len} needs {needed} KV pages of {PAGE_SIZE} tokens, "
                f"the engine has {self.num_pages}; raise kv_memory or lower max_tokens"
            )


def plan_limits(checkpoint_context: int, slot_bytes: int, config: EngineConfig) -> Limits:
    """The limits of a model made for `checkpoint_context` tokens that keeps `slot_bytes` bytes of KV per token.

    Raises: ConfigError if `max_context` is past the checkpoint's; CapacityError if `kv_memory` holds less than two pages.
    """
    if config.max_context is not None and config.max_context > checkpoint_context:
        raise ConfigError(f"max_context: the checkpoint was made for {checkpoint_context} tokens, got {config.max_context}")
    max_context = config.max_context or checkpoint_context
    page_bytes = slot_bytes * PAGE_SIZE
    context_pages = num_pages_of(max_context) + 1
    if config.kv_memory is None:
        most = min(_available_bytes() // 4, _DEFAULT_KV_BYTES) // page_bytes
        return Limits(max_context, max(context_pages, min(most, context_pages * config.max_batch)), config.max_samples)
    num_pages = config.kv_memory // page_bytes
    if num_pages < 2:
        raise CapacityError(
            f"kv_memory: {config.kv_memory} bytes hold {num_pages} pages of {PAGE_SIZE} tokens ({page_bytes} bytes each), "
            f"expected at least 2; one full context of {max_context} tokens needs {context_pages * page_bytes} bytes"
        )
    return Limits(max_context, num_pages, config.max_samples)


def num_pages_of(num_tokens: int) -> int:
    """Pages that hold `num_tokens` tokens of one node."""
    return -(-num_tokens // PAGE_SIZE)


def _available_bytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")

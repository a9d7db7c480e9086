"""What is judged where the caller brings nothing: prompts and requests of a wanted length, drawn from a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from spct.prompting import JudgePrompt
from spct.types import ScoreRequest

_WORDS = re.findall(
    r"\w+",
    """
    the a of and to in is that it for on with as was at by from this not are which but have an had they you were their one
    all we can her has there been if more when will would who so no said what up its about into than them only other time
    new some could result number total exact price order paper water house morning engineer answer question table letter
    window bridge bread
    """,
)


def generated_prompt(prompt: JudgePrompt, length: int, seed: int) -> tuple[int, ...]:
    """Token ids of random English words, exactly `length` of them."""
    draw = random.Random(seed)
    ids: list[int] = []
    while len(ids) < length:
        ids.extend(prompt.encode_text(" " + " ".join(draw.choices(_WORDS, k=max(1, length - len(ids))))))
    return tuple(ids[:length])


def fresh_prompt(token_ids: Sequence[int], vocab_size: int, turn: int) -> tuple[int, ...]:
    """The prompt with another first token for every `turn`, so that no cached prefix of an earlier one helps."""
    return ((token_ids[0] + turn) % vocab_size, *token_ids[1:])


def generated_requests(prompt: JudgePrompt, count: int, prompt_len: int, seed: int) -> list[ScoreRequest]:
    """Requests with two responses whose prompts have about `prompt_len` tokens (at least what the template takes)."""
    requests = []
    for i in range(count):
        draw = random.Random(f"{seed} {i}")
        num_words = 6
        request = _request(draw, num_words)
        overhead = len(prompt.encode(request))
        per_word = max(1e-3, (len(prompt.encode(_request(draw, 2 * num_words))) - overhead) / num_words)
        extra = int((prompt_len - overhead) / per_word)
        requests.append(_request(draw, num_words + extra) if extra > 0 else request)
    return requests


def _request(draw: random.Random, num_words: int) -> ScoreRequest:
    """One request with `num_words` words, a third in the query and in each of two responses."""
    share = max(1, num_words // 3)
    query, one, two = (" ".join(draw.choices(_WORDS, k=share)) for _ in range(3))
    return ScoreRequest(query=query, responses=(one, two))

r"""Given demonstrations: the rows of a file that a supervised run learns from instead of the project's own tasks.

A row is what `spct score` reads, and `"demonstration"`, the text of one good sample, or `"demonstrations"`, a list of several; each judges
the responses in the given order. Where a row says which response is `"best"`, every text must agree with it. So the project's own tasks
make such a file, one demonstration a row (some judge by a part of the criteria and may prefer another response, hence no `"best"`):

    python -c "import json; from dataclasses import asdict; from random import Random; from spct.training.tasks import *
    for n, item in enumerate(draw_items('train', 0, 1000)):
        text = demonstrate(item, tuple(range(len(item.responses))), Random(n))
        print(json.dumps(asdict(item.request()) | {'demonstration': text}))" > demonstrations.jsonl
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any, TypeAlias

from spct.errors import CapacityError, CheckpointError, InputError
from spct.prompting.judge import JudgePrompt
from spct.training.correctness import is_correct, middle_of
from spct.training.labelled import best_of, read_rows, request_of
from spct.training.packing import Packed, pack
from spct.types import ScoreRequest
from spct.voting import parse_scores

_TEXTS = ("demonstration", "demonstrations")
_THINK_MARKS = ("<think>", "</think>")
_Shown: TypeAlias = tuple[tuple[int, ...], list[tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class DemonstratedRequest:
    """One row, encoded, as 32-bit integers since a file of them is held at once.

    prompt          ids of the prompt that inference uses for the responses as given
    demonstrations  ids of each text, with the EOS
    """

    prompt: array[int]
    demonstrations: tuple[array[int], ...]


@dataclass(frozen=True, slots=True)
class GivenDemonstrations:
    """The rows of a file, over and over: every pass shows each row once, in a new order drawn from the seed.

    rows      at least one
    num_long  rows left out since they were too long
    """

    rows: tuple[DemonstratedRequest, ...]
    num_long: int

    @property
    def num_texts(self) -> int:
        """Count the demonstrations of all rows."""
        return sum(len(row.demonstrations) for row in self.rows)

    @property
    def digest(self) -> str:
        """Hash what is trained on, to tell a run that goes on from one whose file has changed."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            for ids in (row.prompt, *row.demonstrations, array("i")):
                digest.update(len(ids).to_bytes(8, "little") + ids.tobytes())
        return digest.hexdigest()

    def steps_per_pass(self, num_prompts: int) -> int:
        """Count the steps, of `num_prompts` rows at most, that show every row once."""
        return -(-len(self.rows) // num_prompts)

    def draw(self, step: int, *, seed: int, num_prompts: int, group: int, micro_batches: int) -> list[Packed]:
        """Draw the batches of one step, a function of the file, the settings, the seed and the step alone.

        A pass ends with a step of its own, so no row comes twice before all have come once. Of a row with more than `group`
        demonstrations each pass shows the next ones. Rows of like length share a batch; rows with unlike numbers of demonstrations
        can't, so there may be more batches than `micro_batches`.
        """
        per_pass = self.steps_per_pass(num_prompts)
        turn, part = divmod(step, per_pass)
        # The steps of a pass differ by one row at most: none is made of a few left-over rows.
        first, end = (len(self.rows) * p // per_pass for p in (part, part + 1))
        examples: list[_Shown] = []
        for i in _pass_order(len(self.rows), seed, turn)[first:end]:
            texts = self.rows[i].demonstrations
            shown = [texts[(turn * group + g) % len(texts)] for g in range(min(group, len(texts)))]
            examples.append((tuple(self.rows[i].prompt), [tuple(ids) for ids in shown]))
        examples.sort(key=lambda e: (len(e[1]), len(e[0]) + len(e[1]) * max(map(len, e[1]))))
        most = -(-len(examples) // micro_batches)
        cuts: list[list[_Shown]] = []
        for example in examples:
            if not cuts or len(cuts[-1]) == most or len(cuts[-1][0][1]) != len(example[1]):
                cuts.append([])
            cuts[-1].append(example)
        return [pack(cut) for cut in cuts]


def read_demonstrations(path: Path, prompt: JudgePrompt, max_tokens: int | None, *, skip_long: bool = False) -> GivenDemonstrations:
    """Read and check every row of a file, `{"query", "responses", "demonstration" or "demonstrations", "best"?, …}` (module docstring).

    prompt      of the model that is trained: its template, its range of scores and its tokenizer
    max_tokens  of a prompt with one demonstration and the EOS; None: no limit
    skip_long   leave longer rows out and count them

    Raises: InputError naming the line that is no such row, or whose text has no valid scores or scores that disagree with `best`;
    CapacityError naming a line that is too long, or if all are; CheckpointError if the model has no EOS.
    """
    if not prompt.eos_token_ids:
        raise CheckpointError(f"{path}: expected a model with an EOS, to end demonstrations with; name one in generation_config.json")
    rows = read_rows(path, lambda row: _demonstrated(row, prompt, max_tokens, skip_long))
    kept = tuple(row for row in rows if row is not None)
    if not kept:
        raise CapacityError(f"{path}: expected a row of at most {max_tokens} tokens, got {len(rows)} longer ones; shorten their texts")
    return GivenDemonstrations(kept, len(rows) - len(kept))


def encode_demonstration(prompt: JudgePrompt, text: str) -> tuple[int, ...]:
    """Encode what a judge is to write behind its prompt, with the EOS.

    The marks of a reasoning block are single control tokens of some models, and only as such does a model mean them; every other
    control token stays plain text, as in the prompt.

    Raises: InputError if a character has no token.
    """
    marks = {mark: ids for mark in _THINK_MARKS if len(ids := _template_ids(prompt, mark)) == 1 and ids[0] in prompt.control_ids}
    pieces = re.split("(" + "|".join(map(re.escape, marks)) + ")", text) if marks else [text]
    # No BOS, whatever the tokenizer puts before a text of its own.
    encoded = [marks.get(piece) or prompt.tokenizer.encode_user(piece) for piece in pieces if piece]
    return (*chain.from_iterable(encoded), prompt.eos_token_ids[0])


def _template_ids(prompt: JudgePrompt, text: str) -> tuple[int, ...]:
    """Encode a control token as a template may; nothing if the vocabulary can't spell it."""
    try:
        return prompt.tokenizer.encode_template(text, first=False)
    except InputError:
        return ()


def _demonstrated(row: Any, prompt: JudgePrompt, max_tokens: int | None, skip_long: bool) -> DemonstratedRequest | None:
    """Check and encode a row; None if it is too long and such rows are skipped."""
    request = request_of(row, needed=(), known=_TEXTS)
    texts = _texts_of(row)
    try:
        shown = prompt.encode(request, max_tokens=max_tokens)
    except CapacityError:
        if skip_long:
            return None
        raise
    encoded = []
    for name, text in texts:
        try:
            encoded.append(encode_demonstration(prompt, text))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None
        _check_scores(name, prompt, request, encoded[-1][:-1], row)
    longest = len(shown) + max(map(len, encoded))
    if max_tokens is not None and longest > max_tokens:
        if skip_long:
            return None
        raise CapacityError(
            f"expected at most {max_tokens} tokens of prompt and demonstration, got {longest}; shorten the texts, or --skip-long"
        )
    return DemonstratedRequest(array("i", shown), tuple(array("i", ids) for ids in encoded))


def _texts_of(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Give the demonstrations of a row, each with the name that errors call it by."""
    if sum(name in row for name in _TEXTS) != 1:
        raise InputError("demonstration, demonstrations: expected one of the two fields: a text, or a list of texts")
    texts = [row["demonstration"]] if "demonstration" in row else row["demonstrations"]
    if not isinstance(texts, list) or not texts:
        raise InputError(f"demonstrations: expected a list of at least one string, got {'[]' if texts == [] else type(texts).__name__}")
    names = ["demonstration"] if "demonstration" in row else [f"demonstrations[{i}]" for i in range(len(texts))]
    for name, text in zip(names, texts, strict=True):
        if not isinstance(text, str):
            raise InputError(f"{name}: expected a string, got {type(text).__name__}")
    return list(zip(names, texts, strict=True))


def _check_scores(name: str, prompt: JudgePrompt, request: ScoreRequest, ids: Sequence[int], row: dict[str, Any]) -> None:
    """Refuse a demonstration that inference would not read scores from, or other ones than the truth asks for."""
    text = prompt.decode(ids)
    ends = [prompt.decode([id]) for id in prompt.eos_token_ids]
    end = next((end for end in ends if end and text.rstrip().endswith(end)), None)
    if end is not None:
        raise InputError(f"{name}: ends with the text {end!r}, which would be learnt as text; leave it out, the EOS is added")
    count, score_range = len(request.responses), prompt.score_range(request)
    scores = parse_scores(text, count, score_range, in_think=prompt.opens_think(request))
    if scores is None:
        low, high = score_range
        wanted = f"\\boxed{{…}} with {count} integers from {low} to {high}, after any </think>, as its last box"
        raise InputError(f"{name}: expected a text with {wanted}, got {text if len(text) <= 60 else '…' + text[-60:]!r}")
    if "best" in row and not is_correct(scores, best_of(row, count), middle_of(score_range)):
        right = f"response {row['best']} strictly highest" if count > 1 else "a score on the right side of the middle"
        raise InputError(f"{name}: its scores {list(scores)} disagree with best = {row['best']!r}, which asks for {right}")


@lru_cache(maxsize=2)
def _pass_order(num_rows: int, seed: int, turn: int) -> tuple[int, ...]:
    order = list(range(num_rows))
    Random(f"demonstrations/given/{seed}/{turn}").shuffle(order)
    return tuple(order)

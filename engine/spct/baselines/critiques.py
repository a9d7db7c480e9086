"""The critiques that the semi-scalar form reads: the judge's own greedy sample of every response alone, without its scores."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from spct.baselines.value_model import alone
from spct.engine import Engine
from spct.errors import CapacityError, InputError
from spct.types import SamplingParams, ScoreRequest, VotingParams

_GREEDY = VotingParams(filter="none", orders="given")


def without_scores(text: str) -> str:
    """A sample up to the line that holds its last box; whole where there is none."""
    box = text.rfind("\\boxed")
    return text if box < 0 else text[: max(0, text.rfind("\n", 0, box))]


class CritiqueStore:
    """Critiques by what was judged, in a file that survives a kill.

    path        JSON lines; read at the start, appended to
    num_tokens  written by the judge for what was drawn here, not for what the file held
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.num_tokens = 0
        self._found: dict[str, str] = {}
        self._refused: dict[str, CapacityError] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):
                    row = json.loads(line)
                    self._found[row["key"]] = row["critique"]

    def draw(self, engine: Engine, requests: Iterable[ScoreRequest], max_tokens: int) -> None:
        """Write the critiques that are lacking; what is too long for the judge has none.

        Raises: the engine's error for a request that it can't judge, its length aside.
        """
        lacking = {_key(one): one for request in requests for one in alone(request) if _key(one) not in self._found}
        keys = list(lacking)
        sampling = SamplingParams(samples=1, temperature=0.0, max_tokens=max_tokens)
        file = None if self.path is None else self.path.open("a", encoding="utf-8")
        try:
            for judgement in engine.score_batch(lacking.values(), sampling=sampling, voting=_GREEDY):
                if isinstance(judgement.error, CapacityError):
                    self._refused[keys[judgement.index]] = judgement.error
                    continue
                if judgement.error is not None:
                    raise judgement.error
                critique = without_scores(judgement.samples[0].text)
                self._found[keys[judgement.index]] = critique
                self.num_tokens += judgement.samples[0].num_tokens
                if file is not None:
                    file.write(json.dumps({"key": keys[judgement.index], "critique": critique}) + "\n")
        finally:
            if file is not None:
                file.close()

    def __call__(self, request: ScoreRequest) -> list[str]:
        """The critiques of a request's responses, in their order.

        Raises: InputError if they were not drawn; CapacityError if the judge could not read one of them.
        """
        keys = [_key(one) for one in alone(request)]
        for key in keys:
            if key in self._refused:
                raise self._refused[key]
        try:
            return [self._found[key] for key in keys]
        except KeyError:
            raise InputError("critique: expected one that was drawn, got a request that is new; draw its critiques first") from None


def _key(one: ScoreRequest) -> str:
    return json.dumps(
        [one.query if isinstance(one.query, str) else [str(turn) for turn in one.query], one.responses[0], one.reference, one.principles]
    )

"""The critiques that the semi-scalar form reads: the judge's own greedy sample of every response alone, without its scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from spct.baselines.value_model import alone
from spct.engine import Engine
from spct.errors import CapacityError, InputError
from spct.types import SamplingParams, ScoreRequest, VotingParams

CRITIQUE_VOTING = VotingParams(filter="none", orders="given")


def critique_sampling(max_tokens: int) -> SamplingParams:
    """One greedy sample."""
    return SamplingParams(samples=1, temperature=0.0, max_tokens=max_tokens)


def without_scores(text: str) -> str:
    """A sample up to the line that holds its last box; whole where there is none."""
    box = text.rfind("\\boxed")
    return text if box < 0 else text[: max(0, text.rfind("\n", 0, box))]


Keep = Callable[[ScoreRequest, str, int], None]


class CritiqueStore:
    """Critiques by what was judged, in a file that survives a kill, or wherever `keep` puts them.

    path  JSON lines; read at the start, appended to
    keep  called with a request of one response, its critique and the tokens that it took, as each is drawn
    """

    def __init__(self, path: Path | None, keep: Keep | None = None) -> None:
        self.path, self.keep = path, keep
        self._found: dict[str, str] = {}
        self._tokens: dict[str, int] = {}
        self._refused: dict[str, CapacityError] = {}
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):
                    row = json.loads(line)
                    self._found[row["key"]], self._tokens[row["key"]] = row["critique"], row.get("tokens", 0)

    def add(self, one: ScoreRequest, critique: str, num_tokens: int) -> None:
        """Take up a critique that was drawn before, of a request of one response."""
        self._found[_key(one)], self._tokens[_key(one)] = critique, num_tokens

    def draw(self, engine: Engine, requests: Iterable[ScoreRequest], max_tokens: int) -> None:
        """Write the critiques that are lacking; what is too long for the judge has none.

        Raises: the engine's error for a request that it can't judge, its length aside.
        """
        lacking = {_key(one): one for request in requests for one in alone(request) if _key(one) not in self._found}
        keys = list(lacking)
        sampling = critique_sampling(max_tokens)
        file = None if self.path is None else self.path.open("a", encoding="utf-8")
        try:
            for judgement in engine.score_batch(lacking.values(), sampling=sampling, voting=CRITIQUE_VOTING):
                if isinstance(judgement.error, CapacityError):
                    self._refused[keys[judgement.index]] = judgement.error
                    continue
                if judgement.error is not None:
                    raise judgement.error
                key, (sample,) = keys[judgement.index], judgement.samples
                critique = without_scores(sample.text)
                self.add(lacking[key], critique, sample.num_tokens)
                if file is not None:
                    file.write(json.dumps({"key": key, "critique": critique, "tokens": sample.num_tokens}) + "\n")
                if self.keep is not None:
                    self.keep(lacking[key], critique, sample.num_tokens)
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

    def num_tokens(self, request: ScoreRequest) -> int:
        """Tokens that the judge wrote for a request's critiques, its scores included; 0 for what was not drawn."""
        return sum(self._tokens.get(_key(one), 0) for one in alone(request))


def _key(one: ScoreRequest) -> str:
    return json.dumps(
        [one.query if isinstance(one.query, str) else [str(turn) for turn in one.query], one.responses[0], one.reference, one.principles]
    )

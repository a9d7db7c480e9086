"""What rejective fine-tuning draws and keeps: one row of JSON per request, in a file that survives a kill, and its statistics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from spct.errors import CheckpointError
from spct.training.ranks import Ranks

Outcome = Literal["mixed", "all_correct", "none_correct"]


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One kept sample.

    order      in which it saw the responses of the request
    token_ids  as drawn, with its EOS
    scores     in the request's order
    hinted     it was drawn with the truth in its prompt; what is trained on is the prompt without it
    """

    order: tuple[int, ...]
    token_ids: tuple[int, ...]
    scores: tuple[int, ...]
    hinted: bool


@dataclass(frozen=True, slots=True)
class Drawn:
    """What became of one request in one round.

    round    from 0
    index    of the request in the stream
    outcome  "all_correct" (too easy: nothing is kept), "none_correct" (only hinted samples can be kept) or "mixed"
    samples  drawn without a hint, of which `correct` were right and `invalid` had no scores
    hinted   samples drawn with one
    kept     what is trained on
    """

    round: int
    index: int
    domain: str
    outcome: Outcome
    samples: int
    correct: int
    invalid: int
    hinted: int
    kept: tuple[Trajectory, ...]


def outcome_of(correct: Sequence[bool]) -> Outcome:
    """Sort a request by its samples without a hint."""
    return "all_correct" if all(correct) else "mixed" if any(correct) else "none_correct"


class TrajectoryFile:
    """`trajectories.jsonl`: appended row by row, by every rank in a file of its own until they exchange what they have drawn.

    A torn last row (its process was killed) is cut off when the file is opened.

    Raises: CheckpointError naming the line that is no such row.
    """

    def __init__(self, path: Path, ranks: Ranks | None = None) -> None:
        self.path, self.ranks = path, ranks or Ranks()
        self.rows: list[Drawn] = []
        self._read()

    def append(self, row: Drawn) -> None:
        """Add a row and hand it to the system, so that a kill of this process can't lose it."""
        self._file.write(json.dumps(asdict(row)) + "\n")
        self._file.flush()
        self.rows.append(row)

    def exchange(self) -> None:
        """Wait for all ranks and take up what they have appended."""
        if self.ranks.size > 1:
            self._file.close()
            self._read()

    def _read(self) -> None:
        self.rows = []
        for number, line in enumerate(self.ranks.fold(self.path).splitlines(), 1):
            try:
                self.rows.append(_drawn(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self.path}, line {number}: expected a row of drawn samples ({error}); remove the file") from None
        self._file = self.ranks.part(self.path).open("a", encoding="utf-8")

    def of_round(self, number: int) -> list[Drawn]:
        """Give the rows of a round by the index of their request, in whatever order they were drawn."""
        return sorted((row for row in self.rows if row.round == number), key=lambda row: row.index)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def statistics(rows: Iterable[Drawn]) -> list[dict[str, Any]]:
    """Count what was kept and what was not, by round and domain.

    Each count of a round: `requests` = `mixed` + `all_correct` + `none_correct`; `samples` = `correct` + `incorrect` + `invalid` (without
    hints); `kept` trajectories without a hint, out of the correct ones of mixed requests; `hinted` samples drawn with one, of which
    `hinted_kept`; `trained` = `kept` + `hinted_kept`.
    """
    rounds: dict[int, dict[str, dict[str, int]]] = {}
    for row in rows:
        domains = rounds.setdefault(row.round, {"all": dict.fromkeys(_COUNTS, 0)})
        hinted_kept = sum(t.hinted for t in row.kept)
        counts = {
            "requests": 1,
            row.outcome: 1,
            "samples": row.samples,
            "correct": row.correct,
            "incorrect": row.samples - row.correct - row.invalid,
            "invalid": row.invalid,
            "kept": len(row.kept) - hinted_kept,
            "hinted": row.hinted,
            "hinted_kept": hinted_kept,
            "trained": len(row.kept),
        }
        for name in ("all", row.domain):
            total = domains.setdefault(name, dict.fromkeys(_COUNTS, 0))
            for key, value in counts.items():
                total[key] += value
    return [
        {"round": number, **domains["all"], "domains": {name: domains[name] for name in sorted(domains) if name != "all"}}
        for number, domains in sorted(rounds.items())
    ]


_COUNTS = (
    "requests", "mixed", "all_correct", "none_correct", "samples", "correct", "incorrect", "invalid", "kept", "hinted", "hinted_kept",
    "trained",
)  # fmt: skip


def _drawn(row: dict[str, Any]) -> Drawn:
    kept = tuple(
        Trajectory(tuple(t["order"]), tuple(t["token_ids"]), tuple(t["scores"]), t["hinted"]) for t in row["kept"]
    )  # JSON has lists where these have tuples
    return Drawn(**{**row, "kept": kept})

"""Expected scores: what a judge would have given on average where a sample wrote a score, from the model's own distribution.

A sample writes the score of a response as one or more tokens. Right before the first of them (all that came earlier, the earlier scores
too, stays as it was drawn) the model holds a distribution over tokens, untempered and untruncated, and so one over scores:

    P(v) = sum over the token sequences that spell v of the product of their probabilities, times P(the number ends there)
    expected score = sum of v P(v) / sum of P(v), over the scores v of the template's range

Spellings come from the tokenizer, read in the context at hand: "7" and " 7", one token "10" and the two tokens "1", "0", a token that
holds the closing brace too. A number that could go on to another score ("1" to "10") ends with the probability that no digit follows; one
that could not is taken as ended. To look behind a "1" that the sample did not write, the engine feeds it in place of what was written:
that is what a `ScoreRead` asks for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from spct.errors import ConfigError
from spct.voting.parse import BLANKS, score_spans

MAX_SCORE = 100
_MAX_CONTEXTS = 256
_DIGITS = "0123456789"
_ENDS = BLANKS + ",}"


@dataclass(frozen=True, eq=False, slots=True)
class SpellingNode:
    """A place in the tree of spellings.

    path    tokens that lead here from where the score begins; () there
    digits  what they spell
    value   the score if the number ends here; None if that is no score, and where it begins
    after   what each token that carries the number on makes of it: another node, a score, or None for no score at all
    """

    path: tuple[int, ...]
    digits: str
    value: int | None
    after: Mapping[int, SpellingNode | int | None]

    @property
    def asked(self) -> tuple[int, ...]:
        """The tokens whose probability counts here."""
        return tuple(self.after)

    def ends(self) -> list[SpellingNode]:
        """The nodes below that have no node below them: a path to each passes through all."""
        inner = [then for then in self.after.values() if isinstance(then, SpellingNode)]
        return [end for node in inner for end in (node.ends() or [node])]

    def along(self, path: tuple[int, ...]) -> list[SpellingNode]:
        """The nodes on the way to the one at `path`, this one first."""
        nodes = [self]
        for token in path:
            then = nodes[-1].after[token]
            assert isinstance(then, SpellingNode)
            nodes.append(then)
        return nodes


@dataclass(frozen=True, slots=True)
class ScoreRead:
    """What the engine is asked to look up in a finished sample.

    place     of the score, in the order shown
    start     the tree of its spellings
    position  index among the sample's tokens of the one that begins the score
    path      tokens fed from `position` on, in place of the sample's own
    asked     1 + len(path) lists of token ids, whose log-probabilities are wanted after token position - 1 and after each token of `path`
    """

    place: int
    start: SpellingNode
    position: int
    path: tuple[int, ...]
    asked: tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class SoftReader:
    """Knows how scores are spelled by one tokenizer; thread-safe.

    decode      token ids to text
    vocab_size  of the model
    """

    decode: Callable[[Sequence[int]], str]
    vocab_size: int
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _numeric: tuple[int, ...] | None = None
    _texts: dict[int, dict[int, str]] = field(default_factory=dict)
    _starts: dict[tuple[int, str, tuple[int, int]], SpellingNode] = field(default_factory=dict)

    def check(self, score_range: tuple[int, int]) -> None:
        """Get ready for a template's scores.

        Raises: ConfigError if there are too many of them to look each up.
        """
        if score_range[1] > MAX_SCORE:
            raise ConfigError(
                f'method: "soft" reads the distribution over all scores of the template, expected scores up to {MAX_SCORE}, '
                f'got a range from {score_range[0]} to {score_range[1]}; use "mean"'
            )
        self._numeric_tokens()

    def reads(
        self, token_ids: Sequence[int], max_len: int, num_responses: int, score_range: tuple[int, int], *, in_think: bool = False
    ) -> list[ScoreRead] | None:
        """List what must be looked up for a sample's expected scores, the last place first; None if it has no scores.

        token_ids  what was drawn, without the EOS
        max_len    tokens that the sample might have had: a path never reaches past what was set aside for it

        None too where the tokens and the text can't be laid against each other, or a score stands in the very first token.
        """
        text = self.decode(token_ids)
        spans = score_spans(text, num_responses, score_range, in_think=in_think)
        if spans is None:
            return None
        found: list[ScoreRead] = []
        index = len(token_ids)
        for place in reversed(range(num_responses)):
            offset = spans[place][0]
            before = text
            while index and len(before) > offset:
                index -= 1
                before = self.decode(token_ids[:index])
            if index == 0 or not text.startswith(before):
                return None
            start = self._start(token_ids[index - 1], text[len(before) : offset], score_range)
            if token_ids[index] not in start.after:
                return None
            found += _reads_of(place, start, index)
            # The token may hold the score before it as well.
            index += 1
        return found if all(read.position + len(read.path) < max_len for read in found) else None

    def _start(self, anchor: int, head: str, score_range: tuple[int, int]) -> SpellingNode:
        """The spellings after the token `anchor` where a score's first token begins with `head`; blanks around it are free."""
        key = (anchor, head.strip(BLANKS), score_range)
        with self._lock:
            if key not in self._starts:
                if len(self._starts) >= _MAX_CONTEXTS:
                    self._starts.clear()
                    self._texts.clear()
                after: dict[int, SpellingNode | int | None] = {}
                for token, text in self._texts_after(anchor).items():
                    number = _number_of(text, key[1])
                    if number is not None and (then := self._then((), "", token, number, score_range)) is not None:
                        after[token] = then
                self._starts[key] = SpellingNode((), "", None, after)
            return self._starts[key]

    def _then(self, path: tuple[int, ...], digits: str, token: int, text: str, score_range: tuple[int, int]) -> SpellingNode | int | None:
        """What `digits` become when `token`, which reads `text`, is drawn after `path`."""
        more = len(text) - len(text.lstrip(_DIGITS))
        digits, tail = digits + text[:more], text[more:]
        value = int(digits) if len(digits) <= len(str(score_range[1])) and (digits == "0" or digits[0] != "0") else None
        if value is not None and not score_range[0] <= value <= score_range[1]:
            value = None
        if tail:
            return value if tail[0] in _ENDS else None
        longer = any(len(str(v)) > len(digits) and str(v).startswith(digits) for v in range(score_range[0], score_range[1] + 1))
        if not longer:
            return value
        path = (*path, token)
        after = {t: self._then(path, digits, t, x, score_range) for t, x in self._texts_after(token).items() if x[0] in _DIGITS}
        return SpellingNode(path, digits, value, after)

    def _texts_after(self, anchor: int) -> dict[int, str]:
        """The text of every token with a digit, as it reads after the token `anchor`."""
        if anchor not in self._texts:
            before = len(self.decode([anchor]))
            texts = {token: self.decode([anchor, token])[before:] for token in self._numeric_tokens()}
            self._texts[anchor] = {token: text for token, text in texts.items() if text}
        return self._texts[anchor]

    def _numeric_tokens(self) -> tuple[int, ...]:
        with self._lock:
            if self._numeric is None:
                self._numeric = tuple(t for t in range(self.vocab_size) if not set(_DIGITS).isdisjoint(self.decode([t])))
            return self._numeric


def expected_scores(reads: Sequence[ScoreRead], logprobs: Sequence[Sequence[Sequence[float]]]) -> tuple[float, ...] | None:
    """Work out the expected score at every place from what was looked up.

    reads     as `SoftReader.reads` listed them
    logprobs  for each of them, one list for each list of its `asked`: natural logs, untempered and untruncated
    returns   one per place, in the order shown; None if a distribution has no score in it
    """
    found: dict[int, dict[tuple[int, ...], Mapping[int, float]]] = {}
    starts = {read.place: read.start for read in reads}
    for read, rows in zip(reads, logprobs, strict=True):
        known = found.setdefault(read.place, {})
        for i, (ids, row) in enumerate(zip(read.asked, rows, strict=True)):
            if ids:
                known[read.path[:i]] = dict(zip(ids, row, strict=True))
    scores = []
    for place in sorted(starts):
        masses: dict[int, float] = {}
        first = found[place][()]
        _add_masses(starts[place], found[place], max(first.values()), 1.0, masses)
        total = math.fsum(masses.values())
        if not total > 0.0:
            return None
        scores.append(math.fsum(value * mass for value, mass in masses.items()) / total)
    return tuple(scores)


def _add_masses(
    node: SpellingNode,
    known: Mapping[tuple[int, ...], Mapping[int, float]],
    shift: float,
    weight: float,
    masses: dict[int, float],
) -> None:
    """Add the probability of every score below `node`, which has probability `weight`; `shift` keeps improbable ones from vanishing."""
    ended = weight
    for token, then in node.after.items():
        mass = weight * math.exp(known[node.path][token] - shift)
        ended -= mass
        if isinstance(then, SpellingNode):
            _add_masses(then, known, 0.0, mass, masses)
        elif then is not None:
            masses[then] = masses.get(then, 0.0) + mass
    if node.path and node.value is not None:
        masses[node.value] = masses.get(node.value, 0.0) + max(ended, 0.0)


def _reads_of(place: int, start: SpellingNode, position: int) -> list[ScoreRead]:
    """One read for each end of the tree; what one has asked, the next does not ask again."""
    reads = []
    seen: set[tuple[int, ...]] = set()
    for path in [end.path for end in start.ends()] or [()]:
        nodes = start.along(path)
        reads.append(ScoreRead(place, start, position, path, tuple(() if n.path in seen else n.asked for n in nodes)))
        seen.update(node.path for node in nodes)
    return reads


def _number_of(text: str, head: str) -> str | None:
    """What follows `head` and blanks in `text`, if that begins with a digit."""
    rest = text.lstrip(BLANKS)
    if not rest.startswith(head):
        return None
    rest = rest[len(head) :].lstrip(BLANKS)
    return rest if rest[:1] and rest[0] in _DIGITS else None

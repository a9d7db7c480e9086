"""Judgements as people read them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from spct.cli.console import printable, readable_seconds
from spct.types import Judgement, Sample, ScoreRequest, Turn

_HEADING = re.compile(
    r"""^[#*\s]*(?:
        (?P<principles>specific\ criteria|principles|criteria)
      | (?P<critique>analysis|critique)
      | (?P<scores>scores?)
    )\s*\**\s*:\**[ \t]*""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)


def representative(judgement: Judgement) -> int | None:
    """The index of the sample that voted most like all votes together; without votes the first one, if any.

    Where there is a best response, a sample that says so itself is preferred.
    """
    voters = [(i, s.scores) for i, s in enumerate(judgement.samples) if s.kept and s.scores is not None]
    if not voters:
        return 0 if judgement.samples else None
    means = [sum(column) / len(voters) for column in zip(*(scores for _, scores in voters), strict=True)]

    def distance(voter: tuple[int, tuple[int, ...]]) -> tuple[bool, float]:
        scores, best = voter[1], judgement.best
        agrees = best is None or all(score < scores[best] for i, score in enumerate(scores) if i != best)
        return not agrees, sum((score - mean) ** 2 for score, mean in zip(scores, means, strict=True))

    return min(voters, key=distance)[0]


def sections(text: str) -> tuple[str, str, str] | None:
    """Principles, critique and score line of a sample that keeps to a template's headings; None where it doesn't.

    The last principles before the last critique count, as the parser takes the last scores.
    """
    found: dict[str, tuple[int, int]] = {}
    for match in _HEADING.finditer(text):
        assert match.lastgroup is not None
        found[match.lastgroup] = match.span()
    if len(found) < 3 or not found["principles"][0] < found["critique"][0] < found["scores"][0]:
        return None
    principles = text[found["principles"][1] : found["critique"][0]]
    critique = text[found["critique"][1] : found["scores"][0]]
    return principles.strip(), critique.strip(), text[found["scores"][1] :].strip()


def overview_table(rows: Sequence[tuple[ScoreRequest, Judgement, str]]) -> Table:
    """A line per request: rewards, best response, votes, tokens, time, and what its note says."""
    table = Table(box=None, pad_edge=False, expand=True)
    for heading in ("id", "rewards", "best", "votes", "tokens", "time"):
        table.add_column(heading, justify="left" if heading in ("id", "rewards") else "right", no_wrap=True)
    table.add_column("", no_wrap=True, overflow="ellipsis", ratio=1)
    for request, judgement, remark in rows:
        table.add_row(
            printable(str(request.id)),
            "  ".join(map(number, judgement.rewards)),
            "-" if judgement.best is None else str(judgement.best),
            f"{judgement.num_votes}/{len(judgement.samples)}",
            f"{judgement.usage.generated_tokens:,}",
            readable_seconds(judgement.timings.total_ms / 1000),
            printable(remark if judgement.error is None else f"{type(judgement.error).__name__}: {judgement.error}"),
        )
    return table


def request_report(request: ScoreRequest) -> RenderableType:
    """What is asked: query, reference, responses."""
    if isinstance(request.query, str):
        turns = [("query", request.query)]
    else:
        # A request holds its turns as such, whatever it was made from.
        turns = [(turn.role, turn.content) for turn in request.query if isinstance(turn, Turn)]
    parts = [*turns, *([("reference", request.reference)] if request.reference else [])]
    parts += [(f"response {i}", response) for i, response in enumerate(request.responses)]
    return Group(*(Text.assemble((f"{name}  ", "bold"), printable(text)) for name, text in parts))


def print_judgement(console: Console, request: ScoreRequest, judgement: Judgement) -> None:
    """Rewards, votes, and the sample that voted most like all of them."""
    console.print(rewards_table(request.responses, judgement))
    console.print(votes_line(judgement), markup=False)
    index = representative(judgement)
    if index is not None:
        console.print()
        console.print(sample_report(index, judgement.samples[index]))
    console.print()
    console.print(usage_line(judgement), markup=False)


def rewards_table(responses: Sequence[str], judgement: Judgement) -> Table:
    """A line per response: reward, spread of the votes, the beginning of its text; the best one is marked."""
    table = Table(box=None, pad_edge=False, expand=True)
    for heading in ("", "response", "reward", "stdev"):
        table.add_column(heading, justify="right" if heading in ("reward", "stdev") else "left")
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for i, response in enumerate(responses):
        mark = "*" if judgement.best == i else ""
        table.add_row(mark, str(i), number(judgement.rewards[i]), number(judgement.stdev[i]), printable(" ".join(response.split())))
    return table


def votes_line(judgement: Judgement) -> str:
    """How many samples voted, and what became of the others."""
    counts: dict[str, int] = {}
    for sample in judgement.samples:
        counts[sample.status] = counts.get(sample.status, 0) + 1
    others = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()) if status != "ok")
    best = "none" if judgement.best is None else str(judgement.best)
    return f"best: {best}   votes: {judgement.num_votes} of {len(judgement.samples)} samples" + (f" ({others})" if others else "")


def usage_line(judgement: Judgement) -> str:
    """Tokens and time."""
    usage = judgement.usage
    return (
        f"tokens: {usage.prompt_tokens} prompt, {usage.prefilled_tokens} prefilled, {usage.generated_tokens} written"
        f"   time: {readable_seconds(judgement.timings.total_ms / 1000)}"
    )


def sample_report(index: int, sample: Sample) -> RenderableType:
    """One sample in full: principles, critique, scores, meta score."""
    order = " ".join(map(str, sample.order))
    parts: list[RenderableType] = [
        Text(f"sample {index}: {sample.status}, shown in the order {order}, {sample.num_tokens} tokens", style="bold")
    ]
    split = sections(sample.text)
    if split is None:
        parts.append(printable(sample.text.strip()))
    else:
        for heading, body in (("principles", split[0]), ("critique", split[1])):
            parts += [Text(heading, style="bold"), printable(body)]
    scores = "-" if sample.scores is None else "  ".join(f"{i}: {score}" for i, score in enumerate(sample.scores))
    parts.append(Text.assemble(("scores  ", "bold"), scores))
    parts.append(Text.assemble(("meta score  ", "bold"), number(sample.meta_score)))
    return Group(*parts)


def number(value: float | None) -> str:
    """A number in few characters; a dash where there is none."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) or (value.is_integer() and abs(value) >= 1e6) else f"{value:.4g}"

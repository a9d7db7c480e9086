r"""Scores out of what a judge wrote: strict, linear in the length of the text, and never a guess.

Only the judge's own text comes here, so nothing that a response holds can be read as a score. The last `\boxed{…}` counts, since judges
write scores per criterion first and correct themselves; a last box that is unfinished or malformed is a failure, never a reason to fall
back to an earlier one.
"""

from __future__ import annotations

_BOX = "\\boxed"
_THINK, _END_THINK = "<think>", "</think>"
BLANKS = " \t\r\n"
_DIGITS = frozenset("0123456789")


def parse_scores(text: str, num_responses: int, score_range: tuple[int, int], *, in_think: bool = False) -> tuple[int, ...] | None:
    r"""Read one integer per response, in the order shown, from the last box of `text`; None if there is any doubt.

    text         what the judge wrote, without the prompt and without the EOS
    score_range  lowest and highest score
    in_think     the prompt ended inside a `<think>` block (`JudgePrompt.opens_think`)

    A box is `\boxed`, optional blanks, `{`, integers separated by commas, `}`; blanks around the integers are fine, a second backslash
    and Markdown around the box too. No sign, point, leading zero or other character is. Where the judge thinks first, only what follows
    the last `</think>` counts; a block that is still open gives None.
    """
    spans = score_spans(text, num_responses, score_range, in_think=in_think)
    return None if spans is None else tuple(int(text[start:end]) for start, end in spans)


def score_spans(
    text: str, num_responses: int, score_range: tuple[int, int], *, in_think: bool = False
) -> tuple[tuple[int, int], ...] | None:
    """Find where `parse_scores` reads: (start, end) of the digits of each score in `text`; None where it reads nothing."""
    start = _verdict_start(text, in_think)
    if start is None:
        return None
    box = _last_box(text, start)
    if box is None:
        return None
    content = text[slice(*box)]
    if content.count(",") != num_responses - 1:
        return None
    spans = []
    place = box[0]
    for item in content.split(","):
        digits = item.strip(BLANKS)
        if not _is_score(digits, score_range):
            return None
        first = place + len(item) - len(item.lstrip(BLANKS))
        spans.append((first, first + len(digits)))
        place += len(item) + 1
    return tuple(spans)


def _is_score(digits: str, score_range: tuple[int, int]) -> bool:
    low, high = score_range
    if not 0 < len(digits) <= len(str(high)) or not _DIGITS.issuperset(digits) or (digits[0] == "0" and len(digits) > 1):
        return False
    return low <= int(digits) <= high


def _verdict_start(text: str, in_think: bool) -> int | None:
    """Give the place after the judge's thinking, None while it still thinks."""
    closed = text.rfind(_END_THINK)
    if closed >= 0:
        after = closed + len(_END_THINK)
        return None if text[after:].lstrip(BLANKS).startswith(_THINK) else after
    return None if in_think or text.lstrip(BLANKS).startswith(_THINK) else 0


def _last_box(text: str, start: int) -> tuple[int, int] | None:
    """Give the span of the contents of the last box after `start`, None if there is none or it never ends."""
    end = len(text)
    while True:
        box = text.rfind(_BOX, start, end)
        if box < 0:
            return None
        brace = box + len(_BOX)
        while brace < end and text[brace] in BLANKS:
            brace += 1
        if brace < len(text) and text[brace] == "{":
            close = text.find("}", brace)
            return None if close < 0 else (brace + 1, close)
        # A mere mention of \boxed: look before it. The scan above never passes `end`, so all turns together read the text once.
        end = box

r"""The forms that write: LLM-as-a-judge, and the generative reward model without principles.

Their demonstrations are those of the project's own tasks, changed in one place: the line of principles is left out, or the last line
gives the place of the best response, `Best: \boxed{2}`. The judge's template asks for just that.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

from spct.errors import ConfigError
from spct.prompting import JudgePrompt
from spct.training.tasks import Item, demonstrate
from spct.types import Sample
from spct.voting.parse import parse_scores

_ASKED = "Specific Criteria, Analysis, Scores \\boxed{}"
_ASKS = {"judge": "Specific Criteria, Analysis, Best \\boxed{}", "no-principles": "Analysis, Scores \\boxed{}"}


def template_of(form: str, folder: Path) -> str:
    """The judge template of a form, made of that of the model it starts from.

    Raises: ConfigError if that template does not end as the embedded model's.
    """
    path = folder / "judge_template.jinja"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if text.count(_ASKED) != 1:
        raise ConfigError(
            f"{path}: form {form!r} learns from demonstrations of the project's own tasks and expects a template that asks for "
            f"{_ASKED!r}, as the embedded model's does"
        )
    return text.replace(_ASKED, _ASKS[form])


def write(form: str, item: Item, order: tuple[int, ...], rng: Random) -> str:
    """One demonstration of a form for the responses in this order.

    The judge picks the highest score that its checks came to; of several the truly best one, else any of them.
    """
    text = demonstrate(item, order, rng)
    if form == "no-principles":
        return text.partition("\n")[2]
    checks, _, box = text.rpartition("\nScores: ")
    scores = parse_scores(box, len(order), (1, 10))
    assert scores is not None, "a demonstration has scores"
    top = [place for place, score in enumerate(scores) if score == max(scores)]
    truth = None if item.best is None else order.index(item.best)
    return f"{checks}\nBest: \\boxed{{{1 + (truth if truth in top else rng.choice(top))}}}"


def encode(form: str, prompt: JudgePrompt, item: Item, group: int, rng: Random) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Encode an item under a random order: the prompt's ids, and `group` demonstrations with EOS."""
    order = list(range(len(item.responses)))
    rng.shuffle(order)
    shown = tuple(order)
    texts = [write(form, item, shown, rng) for _ in range(group)]
    return prompt.encode(item.request(), shown), [(*prompt.tokenizer.encode_user(text), prompt.eos_token_ids[0]) for text in texts]


def picked(sample: Sample, num_responses: int) -> tuple[int, ...] | None:
    """The vote of an LLM-as-a-judge's sample as scores: 1 for the response that it names, 0 for the others; None where it names none.

    Only a sample that ended by itself counts, as everywhere.
    """
    if sample.status not in ("ok", "parse_error"):
        return None
    place = parse_scores(sample.text, 1, (1, num_responses))
    return None if place is None else tuple(int(i == sample.order[place[0] - 1]) for i in range(num_responses))

"""What a training step asks of a form: the lesson of an item, its loss, and what is trained."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spct.baselines import text_forms
from spct.baselines.config import BaselineConfig
from spct.baselines.critiques import CritiqueStore
from spct.baselines.sidecar import TEXT_FORMS
from spct.baselines.value_forms import Lesson, PairwiseForm, ScalarForm, SemiScalarForm, ValueForm
from spct.baselines.value_model import ValueModel
from spct.engine import Engine
from spct.errors import ConfigError
from spct.prompting import JudgePrompt
from spct.training.demonstration_loss import demonstration_loss
from spct.training.folder import copy_text_side
from spct.training.labelled import LabelledRequest, open_requests
from spct.training.packing import pack
from spct.training.policy import Policy
from spct.training.tasks import DOMAINS, draw_item

CRITIQUES_FILE, CRITIC = "critiques.jsonl", "critic"
TEMPLATE_FILE = "judge_template.jinja"


class Learner(Protocol):
    """One form in training."""

    def lesson(self, index: int) -> Any:
        """Lay out item `index` of the endless stream: the same whatever was drawn before."""

    def num_tokens(self, lesson: Any) -> int:
        """Tokens that a lesson computes; 0 where nothing is learnt from it."""

    def loss(self, lessons: Sequence[Any]) -> tuple[Tensor, int]:
        """The loss summed over lessons with tokens, and what it counts: items, or tokens."""

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """What is trained: body, and head (which learns faster)."""

    def state(self) -> dict[str, Tensor]:
        """What is trained, by name."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave."""

    def save(self, folder: Path) -> None:
        """Write the finished folder."""


def make_learner(config: BaselineConfig, source: Path, device: torch.device) -> Learner:
    """The learner of a configuration, from the weights in `source`.

    Raises: ConfigError, CheckpointError or InputError if model or data can't be used.
    """
    if config.form in TEXT_FORMS:
        return TextLearner(config, source, device)
    model, requests = ValueModel(source, device), open_requests(config.data, config.data_seed, config.domains)
    if config.form != "semi-scalar":
        return ValueLearner((ScalarForm if config.form == "scalar" else PairwiseForm)(model), requests.draw)
    _keep_critic(source, config.output / CRITIC)
    critiques = CritiqueStore(config.output / CRITIQUES_FILE)
    items = [requests.draw(i) for i in range(config.critiqued)]
    with Engine.from_pretrained(source, device=str(device)) as engine:
        critiques.draw(engine, (item.request for item in items), config.max_tokens)
    return ValueLearner(SemiScalarForm(model, critiques), lambda index: items[index % len(items)])


class ValueLearner:
    """A form that values text.

    form  lays out and counts
    draw  gives item `index`
    """

    def __init__(self, form: ValueForm, draw: Callable[[int], LabelledRequest]) -> None:
        self._form, self._draw = form, draw

    def lesson(self, index: int) -> Lesson:
        """Lay out item `index`. Raises: CapacityError if it is longer than the context."""
        lesson = self._form.lesson(self._draw(index))
        self._form.model.check_fits(lesson.examples)
        return lesson

    def num_tokens(self, lesson: Lesson) -> int:
        """Tokens that a lesson computes."""
        return lesson.num_tokens

    def loss(self, lessons: Sequence[Lesson]) -> tuple[Tensor, int]:
        """Loss summed over items, and their number."""
        values = self._form.model.values([example for lesson in lessons for example in lesson.examples])
        parts = torch.split(values, [lesson.num_values for lesson in lessons])
        return torch.stack([self._form.loss(lesson, part) for lesson, part in zip(lessons, parts, strict=True)]).sum(), len(lessons)

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Body and head."""
        return self._form.model.parameters()

    def state(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self._form.model.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave. Raises: CheckpointError if it is another model's."""
        self._form.model.load_state(state)

    def save(self, folder: Path) -> None:
        """Write the sequence-classification folder."""
        self._form.model.save(folder)


class TextLearner:
    """A form that writes: demonstrations of the project's own tasks, under the form's template.

    Raises: ConfigError if the model's template is not one that the demonstrations fit; CheckpointError if it can't be loaded.
    """

    def __init__(self, config: BaselineConfig, source: Path, device: torch.device) -> None:
        self._config = config
        (config.output / TEMPLATE_FILE).write_text(text_forms.template_of(config.form, source), encoding="utf-8")
        copy_text_side(source, config.output)
        self._policy = Policy(source, device=device)
        self._prompt = JudgePrompt(config.output)
        self._turns = config.domains or tuple(DOMAINS)
        if unknown := [name for name in self._turns if name not in DOMAINS]:
            raise ConfigError(f"domains: expected some of {', '.join(DOMAINS)}, got {unknown[0]!r}")

    def lesson(self, index: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]] | None:
        """Encode item `index` with its demonstrations; None where a judge has nothing to pick from."""
        config = self._config
        item = draw_item("train", config.data_seed, index, domain=self._turns[index % len(self._turns)])
        if config.form == "judge" and len(item.responses) == 1:
            return None
        rng = Random(f"baselines/{config.form}/{config.seed}/{index}")
        return text_forms.encode(config.form, self._prompt, item, config.group, rng)

    def num_tokens(self, lesson: tuple[tuple[int, ...], list[tuple[int, ...]]] | None) -> int:
        """Tokens of prompt and demonstrations."""
        return 0 if lesson is None else len(lesson[0]) + sum(map(len, lesson[1]))

    def loss(self, lessons: Sequence[tuple[tuple[int, ...], list[tuple[int, ...]]]]) -> tuple[Tensor, int]:
        """Loss summed over the demonstrations' tokens (the prompts' count a little), and the number of these."""
        loss, _, count = demonstration_loss(self._policy.model, pack(lessons), self._config.prompt_weight)
        return loss, int(count)

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The whole model; no head."""
        return self._policy.parameters(), []

    def state(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return self._policy.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave. Raises: CheckpointError if it is another model's."""
        self._policy.load_state(state)

    def save(self, folder: Path) -> None:
        """Write the judge's folder."""
        self._policy.save(folder)


def _keep_critic(source: Path, folder: Path) -> None:
    """Keep the judge that wrote the critiques beside what reads them: without it a semi-scalar form can't judge."""
    folder.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors"):
            beside = folder / (path.name + ".tmp")
            shutil.copyfile(path, beside)
            beside.replace(folder / path.name)

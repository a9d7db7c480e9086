"""Settings of `spct train baseline`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spct.baselines.sidecar import FORMS, TEXT_FORMS
from spct.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BaselineConfig:
    """What a run does.

    output        folder of the finished model; training state and metrics.jsonl lie in it too
    form          one of `spct.baselines.sidecar.FORMS`
    model         "embedded", a folder of a supported family, or a hub id: weights and tokenizer to start from, and the critic
    data          file of labelled rows (`spct.training.labelled`); None: the project's own tasks. Forms that write need the latter
    data_seed     of the items, or of the rows' order
    domains       of the own tasks, in turn; (): all
    steps, prompts  gradient steps, and items of each
    group         demonstrations under each prompt, of forms that write
    critiqued     semi-scalar: items with critiques, over which the training goes again and again
    max_tokens    of a critique
    lr, head_lr   highest learning rates of the body and of a value's head
    prompt_weight of a prompt's tokens in the loss of forms that write
    micro_tokens  tokens of one forward and backward pass, an item at least
    time_limit    seconds after which the run stops resumably; None: never

    Raises: ConfigError if a value makes no sense.
    """

    output: Path
    form: str
    model: str = "embedded"
    data: Path | None = None
    data_seed: int = 4
    domains: tuple[str, ...] = ()
    seed: int = 0
    steps: int = 400
    prompts: int = 16
    group: int = 2
    critiqued: int = 2000
    max_tokens: int = 400
    lr: float = 5e-4
    head_lr: float = 2e-3
    weight_decay: float = 0.01
    prompt_weight: float = 0.1
    device: str = "auto"
    micro_tokens: int = 4096
    workers: int = 2
    save_every: float = 60.0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be trained."""
        if self.form not in FORMS:
            raise ConfigError(f"form: expected one of {', '.join(FORMS)}, got {self.form!r}")
        if self.form in TEXT_FORMS and self.data is not None:
            raise ConfigError(
                f"data: form {self.form!r} learns from demonstrations, which are written for the project's own tasks alone; leave it out"
            )
        if self.data is not None and self.domains:
            raise ConfigError("domains: expected none beside data, whose rows name their own; leave one of them out")
        for name in ("steps", "prompts", "group", "critiqued", "max_tokens", "micro_tokens", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("lr", "head_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        for name in ("weight_decay", "prompt_weight"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)!r}")

"""What a training of the meta RM is asked to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from spct.config import parse_dtype
from spct.errors import ConfigError
from spct.models.head import Pooling
from spct.training.meta_data import DataConfig
from spct.types import SamplingParams

FORMS = ("fused", "scalar")
JUDGE = "judge"


@dataclass(frozen=True, slots=True)
class MetaConfig:
    """What a run does.

    output     samples.jsonl and report.json lie here, the model of each form in a folder of its name
    form       "fused", "scalar" or "both"
    model      the judge: "embedded", a folder or a hub id
    adapter    a LoRA folder on the judge; the two are merged into the folder `judge` of `output` first
    weights    of the engine that samples, as `spct score --weights`
    start      scalar form: a folder to start from, instead of the judge's weights
    data       which items are sampled
    samples    per item
    pooling    fused form: how the logits of one sample's tokens become its score
    joint      fused form: train the judge too, from the fitted head on
    within     weight of the within-item loss beside cross-entropy
    anchor     fused and joint: weight of the distance from the starting judge, which keeps it judging
    anchored   "kl" or "ce": how that distance is measured, see `FusedScorer`
    epochs     passes over the items (joint and scalar), `batch` items a step
    lr         highest learning rate of the body; a head's is `head_lr`
    time_limit seconds after which the training stops resumably; None: never

    Raises: ConfigError if a value makes no sense.
    """

    output: Path
    form: str = "fused"
    model: str = "embedded"
    adapter: Path | None = None
    weights: str = "auto"
    start: Path | None = None
    data: DataConfig = field(default_factory=DataConfig)
    samples: int = 8
    temperature: float = 1.0
    max_tokens: int = 400
    seed: int = 0
    pooling: Pooling = "mean"
    joint: bool = False
    within: float = 1.0
    anchor: float = 1.0
    anchored: str = "kl"
    epochs: float = 2.0
    batch: int = 16
    lr: float = 2e-4
    head_lr: float = 1e-3
    weight_decay: float = 0.01
    device: str = "auto"
    dtype: str = "auto"
    micro_tokens: int = 4096
    workers: int = 2
    save_every: float = 60.0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be trained."""
        for name, value, choices in (
            ("form", self.form, (*FORMS, "both")),
            ("pooling", self.pooling, ("last", "mean")),
            ("anchored", self.anchored, ("kl", "ce")),
        ):
            if value not in choices:
                raise ConfigError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
        for name in ("samples", "batch", "micro_tokens", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("epochs", "lr", "head_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        for name in ("within", "anchor", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name}: expected at least 0, got {getattr(self, name)!r}")
        parse_dtype(self.dtype)

    @property
    def judge(self) -> str:
        """What the engine and the forms start from: `model`, or its merged copy."""
        return self.model if self.adapter is None else str(self.output / JUDGE)

    @property
    def engine_options(self) -> dict[str, str]:
        """How the engine computes."""
        return {"device": self.device, "dtype": self.dtype, "weights": self.weights}

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that are trained."""
        return FORMS if self.form == "both" else (self.form,)

    @property
    def sampling(self) -> SamplingParams:
        """How the samples are drawn."""
        return SamplingParams(samples=self.samples, temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed)


def describe(config: MetaConfig) -> dict[str, object]:
    """Give all settings as plain values, for a report."""
    plain: dict[str, object] = json.loads(json.dumps(asdict(config), default=str))
    return plain

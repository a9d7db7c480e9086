"""What a supervised run is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from spct.errors import ConfigError
from spct.training.folder import ModelSize


@dataclass(frozen=True, slots=True)
class SftConfig:
    """What a supervised run does.

    output        folder of the finished model; training state, metrics.jsonl and runs.jsonl (settings of each start) lie in it too
    model         folder of a supported family to start from; None: a fresh model of `size`
    lora          rank of fresh LoRA adapters on `model`; 0: all weights are trained
    lora_alpha    their scale is lora_alpha / lora
    adapter       a LoRA folder to train on, instead
    tokenizer     folder whose tokenizer and template a fresh model takes; None: trained on the tasks
    template      judge template: a name, a file, or None for the model's own (a fresh one's: the embedded model's)
    demonstrations  file of given demonstrations (`spct.training.given`); None: the project's own tasks
    epochs        passes over that file, in place of `steps`; None: 2
    max_length    tokens of a prompt with a demonstration of that file; None: the model's context
    skip_long     leave longer rows out, and count them
    steps         length of the run, of which `warmup` and `decay` change the learning rate; None: 4400, 100 and 1300, or with given
                  demonstrations what `epochs` asks for, a tenth and half of it
    time_limit    seconds after which the run stops resumably; None: never
    tokens        tokens after which the run stops likewise; None: never
    domains       of the own tasks: the domains in turn, some of them more than once for a larger share; (): all alike
    prompts       prompts per step, `group` demonstrations under each (of a given row at most), in `micro_batches` batches by
                  `workers` threads of each process
    device        "auto", "cpu", "cuda" or "cuda:N"; several processes share the GPUs out
    easy_steps    steps after these that show two responses at most
    small_steps   steps at the very start with small warm-up prompts that grow (a fresh model's only)
    mixed_steps   steps after these in which half of the prompts are still small
    prompt_weight weight of a prompt's tokens in the loss
    bf16          matrix products in bfloat16, weights and sums in fp32

    Raises: ConfigError if a value makes no sense.
    """

    output: Path
    model: Path | None = None
    lora: int = 0
    lora_alpha: float = 16.0
    adapter: Path | None = None
    tokenizer: Path | None = None
    template: str | Path | None = None
    size: ModelSize = field(default_factory=ModelSize)
    demonstrations: Path | None = None
    epochs: int | None = None
    max_length: int | None = None
    skip_long: bool = False
    steps: int | None = None
    warmup: int | None = None
    decay: int | None = None
    time_limit: float | None = None
    tokens: int | None = None
    seed: int = 0
    lr: float = 1.5e-3
    weight_decay: float = 0.01
    optimizer: str = "muon"
    domains: tuple[str, ...] = ()
    prompts: int = 8
    group: int = 4
    micro_batches: int = 4
    workers: int = 2
    easy_steps: int = 250
    small_steps: int = 700
    mixed_steps: int = 250
    prompt_weight: float = 0.1
    bf16: bool = True
    save_every: float = 60.0
    device: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what can't be trained."""
        for name in ("steps", "epochs", "max_length", "prompts", "group", "micro_batches", "workers"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.micro_batches > self.prompts:
            raise ConfigError(f"micro_batches: expected at most prompts={self.prompts}, got {self.micro_batches}")
        if not self.lr > 0:
            raise ConfigError(f"lr: expected a positive number, got {self.lr!r}")
        if (self.lora or self.adapter) and self.model is None:
            raise ConfigError("lora, adapter: expected a model to adapt, got none; name it with --model")
        if self.lora < 0 or (self.lora and self.adapter is not None):
            raise ConfigError(f"lora: expected a rank from 1, or 0, and none beside an adapter, got {self.lora}")
        if not self.prompt_weight >= 0:
            raise ConfigError(f"prompt_weight: expected a number from 0, got {self.prompt_weight!r}")
        if not self.lora_alpha > 0:
            raise ConfigError(f"lora_alpha: expected a positive number, got {self.lora_alpha!r}")
        self._check_data()

    def _check_data(self) -> None:
        if self.demonstrations is None and (self.epochs is not None or self.max_length is not None or self.skip_long):
            raise ConfigError("epochs, max_length, skip_long: expected a file that they are about; name it with --demonstrations")
        if self.demonstrations is not None and self.domains:
            raise ConfigError("domains: expected none beside given demonstrations, since they are those of the own tasks")
        if self.epochs is not None and self.steps is not None:
            raise ConfigError(f"epochs: expected either epochs or steps, got epochs={self.epochs} and steps={self.steps}")

    @property
    def has_adapter(self) -> bool:
        """Adapters are trained, not the weights below them."""
        return bool(self.lora) or self.adapter is not None


def describe(config: SftConfig) -> dict[str, object]:
    """Return the settings as plain values, for the log of a run."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in asdict(config).items()}

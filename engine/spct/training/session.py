"""What the sampling methods of training (`rft`, `rl`) have in common: settings, the engine and the model side by side, state on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from spct.checkpoint.folder import find_folder
from spct.config import parse_bytes, parse_dtype
from spct.engine import Engine
from spct.errors import CheckpointError, ConfigError
from spct.training.checkpoints import load_state, save_atomically
from spct.training.correctness import is_correct, middle_of
from spct.training.folder import copy_text_side
from spct.training.labelled import Labelled, LabelledRequest, open_requests
from spct.training.learner import Learner
from spct.training.policy import Policy
from spct.training.progress import Progress
from spct.training.ranks import current
from spct.types import Judgement, SamplingParams, ScoreRequest, VotingParams

STATE_FILE = "training_state.safetensors"
# What a resumed run may change: where it runs and how long, never what it computes.
_FREE = ("output", "device", "kv_memory", "micro_tokens", "workers", "save_every", "time_limit", "steps", "rounds")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSetup:
    """Settings that `rft` and `rl` share.

    output        folder of the finished model or adapter; training state, metrics.jsonl and runs.jsonl lie in it too
    model         "embedded", a folder of a supported family, or a hub id
    template      judge template: a name, a file, or None for the model's own
    adapter       a LoRA folder to train on
    lora          rank of fresh LoRA adapters; 0: all weights are trained
    lora_alpha    their scale is lora_alpha / lora
    device        "auto", "cpu", "cuda", "cuda:N": of engine and trainer; several processes share the GPUs out
    dtype         "float32" or "bfloat16", of both; what is trained stays fp32
    kv_memory     the engine's, bytes or a text such as "512MiB"
    domains       of the project's own tasks, in turn; (): all alike
    data          a file of labelled rows instead (`spct.training.labelled.read_labelled`)
    data_seed     which items are drawn, or in which order the rows come
    seed          of the samples and of fresh adapters
    max_tokens    per sample
    micro_tokens  tokens of one forward and backward pass of the trainer, padding included
    workers       threads of each process
    save_every    seconds between states on disk
    time_limit    seconds after which the run stops resumably; None: never

    Raises: ConfigError if a value makes no sense.
    """

    output: Path
    model: str = "embedded"
    template: str | None = None
    adapter: Path | None = None
    lora: int = 0
    lora_alpha: float = 16.0
    device: str = "auto"
    dtype: str = "float32"
    kv_memory: str | int | None = None
    domains: tuple[str, ...] = ()
    data: Path | None = None
    data_seed: int = 1
    seed: int = 0
    max_tokens: int = 400
    lr: float = 1e-4
    weight_decay: float = 0.0
    micro_tokens: int = 4096
    workers: int = 2
    save_every: float = 60.0
    time_limit: float | None = None

    def __post_init__(self) -> None:
        """Refuse what can't be trained."""
        at_least(self, 1, "max_tokens", "micro_tokens", "workers")
        at_least(self, 0, "lora", "seed", "data_seed", "weight_decay")
        for name in ("lr", "lora_alpha"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name}: expected a positive number, got {getattr(self, name)!r}")
        if self.lora and self.adapter is not None:
            raise ConfigError("lora: expected no rank beside an adapter, which has its own; leave one of them out")
        if self.data is not None and self.domains:
            raise ConfigError("domains: expected none beside data, whose rows name their own; leave one of them out")
        dtype = parse_dtype(self.dtype)
        if dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"dtype: expected float32 or bfloat16, in which sampler and trainer both compute, got {self.dtype!r}")
        object.__setattr__(self, "dtype", dtype)
        if self.kv_memory is not None:
            parse_bytes(self.kv_memory)


def at_least(config: Any, least: float, *names: str) -> None:
    """Refuse settings below `least`, and NaN.

    Raises: ConfigError naming the first.
    """
    for name in names:
        if not getattr(config, name) >= least:
            raise ConfigError(f"{name}: expected at least {least:g}, got {getattr(config, name)!r}")


class Session:
    """One run of a method: its model, engine, requests, and the state that survives a kill. Every rank has its own.

    policy, learner   what is trained, and how
    engine            samples from a copy of its weights, see `refresh_engine`
    requests          the stream of labelled requests
    state             what the run last saved, or None at a fresh start

    weights  scheme of the engine's copy; anything but "auto" makes it another judge than the one that is trained, a little
    """

    def __init__(self, config: TrainingSetup, *, weights: str = "auto") -> None:
        self.config = config
        folder = find_folder(config.model).path
        if folder.resolve() == config.output.resolve():
            raise ConfigError(f"output: expected another folder than the model's, got {str(config.output)!r} for both")
        self.ranks = current()
        device = self.ranks.device(config.device)
        config.output.mkdir(parents=True, exist_ok=True)
        self.state: dict[str, Any] | None = None
        if (config.output / STATE_FILE).exists():
            self.state = load_state(config.output / STATE_FILE)
            _refuse_other_settings(config, self.state)
        self.requests: Labelled = open_requests(config.data, config.data_seed, config.domains)
        for i in range(len(config.domains)):
            self.requests.draw(i)
        if self.ranks.is_first:
            copy_text_side(folder, config.output, adapter=config.adapter, template=config.template)
        # From here on all have read the state, which rank 0 may now write, and see the template.
        self.ranks.expect_alike(None if self.state is None else self.state["step"], f"the step of {config.output / STATE_FILE}")
        self.policy = Policy(
            folder,
            device=device,
            dtype=config.dtype,
            rank=config.lora,
            alpha=config.lora_alpha,
            adapter=config.adapter,
            seed=config.seed,
        )
        self.workers = config.workers if device.type == "cpu" else 1
        self.learner = Learner(self.policy, lr=config.lr, weight_decay=config.weight_decay, workers=self.workers)
        if self.state is not None:
            self.policy.load_state(self.state["policy"])
            self.learner.load_state(self.state["learner"])
        options = {} if config.kv_memory is None else {"kv_memory": config.kv_memory}
        # The judge template is the output folder's if it has one: what is trained is what will be used.
        template = config.output / "judge_template.jinja"
        self.engine = Engine.from_pretrained(
            folder,
            device=str(device),
            dtype=config.dtype,
            weights=weights,
            template=str(template) if template.exists() else None,
            **options,
        )
        if self.ranks.is_first:
            self._log_start()

    def is_correct(self, item: LabelledRequest, scores: tuple[int, ...] | None) -> bool:
        """Tell whether a sample's scores agree with the truth of the request that it judged."""
        return is_correct(scores, item.best, middle_of(self.engine.prompt.score_range(item.request)))

    def refresh_engine(self) -> None:
        """Give the engine the weights of the model, in place."""
        self.engine.load_weights(self.policy.named_tensors())

    def judge(
        self, requests: Iterable[tuple[int, LabelledRequest]], sampling: SamplingParams, voting: VotingParams
    ) -> Iterator[tuple[int, Judgement]]:
        """Draw samples for numbered requests with the engine; yield each number with its judgement, as they finish.

        Raises: the engine's error for a request that it can't judge, with the number and the request's own id.
        """
        # Also in effect where the engine's kernels ask; the trainer's threads are each alone.
        torch.set_num_threads(self.workers)
        own_ids: dict[int, str | int | None] = {}

        def numbered() -> Iterator[ScoreRequest]:
            for number, item in requests:
                own_ids[number] = item.request.id
                yield replace(item.request, id=number, samples=None, seed=None)

        for judgement in self.engine.score_batch(numbered(), sampling=sampling, voting=voting):
            number = judgement.id
            assert isinstance(number, int)
            own_id = own_ids.pop(number)
            if judgement.error is not None:
                raise type(judgement.error)(f"request {number} (id {own_id!r}): {judgement.error}")
            yield number, judgement

    def save(self, step: int, **extra: Any) -> None:
        """Write state and model, each file atomically; rank 0 does, since all have the same."""
        if not self.ranks.is_first:
            return
        state = {"step": step, "settings": _deciding(self.config), "policy": self.policy.state(), "learner": self.learner.state()}
        save_atomically(self.config.output / STATE_FILE, {**state, **extra})
        self.policy.save(self.config.output)

    def close(self) -> None:
        """Free the engine and the threads."""
        self.engine.close()
        self.learner.close()

    def _log_start(self) -> None:
        start = 0 if self.state is None else self.state["step"]
        with (self.config.output / "runs.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps({"from_step": start, "ranks": self.ranks.size, **describe(self.config)}) + "\n")


class RunProgress(Progress):
    """A bar and metrics.jsonl for any method: one row of its own fields per step."""

    def __init__(self, name: str, steps: int, done: int, metrics: Path) -> None:
        super().__init__(steps, done, metrics)
        self._bar.update(self._task, description=name)

    def __enter__(self) -> RunProgress:
        super().__enter__()
        return self

    def record(self, step: int, row: dict[str, Any], shown: str) -> None:
        """Write one row and show `shown` beside the bar; `step` steps are done."""
        if self._file is not None:
            self._file.write(json.dumps({"step": step, **row}) + "\n")
            self._file.flush()
        self._bar.update(self._task, completed=step, description=shown)


def stream_seed(seed: int, *parts: object) -> int:
    """Derive a sampling seed, 0 .. 2^63 - 1: different parts never share noise."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8, person=b"spct.training").digest()
    return int.from_bytes(digest, "little") >> 1


def describe(config: TrainingSetup) -> dict[str, object]:
    """Give all settings as plain values, for the log of a run."""
    return {k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def _deciding(config: TrainingSetup) -> dict[str, str]:
    """The settings that decide what is computed, as text."""
    return {k: str(v) for k, v in describe(config).items() if k not in _FREE}


def _refuse_other_settings(config: TrainingSetup, state: dict[str, Any]) -> None:
    before, now = state.get("settings"), _deciding(config)
    if not isinstance(before, dict) or before.keys() != now.keys():
        raise CheckpointError(f"{config.output / STATE_FILE}: expected a state of this method and version; start afresh in another folder")
    for name, value in now.items():
        if before[name] != value:
            raise ConfigError(
                f"{name}: expected {before[name]}, with which the run in {config.output} began, got {value}; "
                "give the same, or another output folder"
            )

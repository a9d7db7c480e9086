"""Inference engine for generative reward models: one prefill, many critiques, one reward.

Names are loaded when first asked for, so that `import spct` (and `spct --help`) does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spct.errors import BackendError, CapacityError, CheckpointError, ConfigError, InputError, SpctError
from spct.ranking import Ranking
from spct.types import Generation, Judgement, Sample, SamplingParams, ScoreRequest, Timings, Turn, Usage, VotingParams

if TYPE_CHECKING:
    from spct.engine import Engine

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "Engine",
    "Generation",
    "InputError",
    "Judgement",
    "Ranking",
    "Sample",
    "SamplingParams",
    "ScoreRequest",
    "SpctError",
    "Timings",
    "Turn",
    "Usage",
    "VotingParams",
]


def __getattr__(name: str) -> Any:
    if name == "Engine":
        return importlib.import_module("spct.engine").Engine
    raise AttributeError(f"module 'spct' has no attribute {name!r}")

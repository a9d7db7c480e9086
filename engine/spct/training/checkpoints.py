"""Training state that survives kill -9: written beside, flushed, renamed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from spct.errors import CheckpointError


def save_atomically(path: Path, state: object) -> None:
    """Write `state` to `path` so that a crash leaves either the old file or the new one."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state (tensors and plain values only).

    Raises: CheckpointError if the file is no such state.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path}: expected a training state, could not read it: {str(error).splitlines()[0]}; remove it to start afresh"
        ) from None
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path}: expected a training state with a step, got {type(state).__name__}; remove it to start afresh")
    return state

"""Training state that survives kill -9: written beside, flushed, renamed. Tensors and plain values only, as safetensors."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spct.errors import CheckpointError

_STATE = "spct_training_state"


def save_atomically(path: Path, state: object) -> None:
    """Write `state` (nested dicts and lists of tensors and plain values) so that a crash leaves either the old file or the new one."""
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_outline(state, tensors))
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(save(tensors, metadata={_STATE: plain}))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state.

    Raises: CheckpointError if the file is no such state.
    """
    try:
        with safe_open(path, framework="pt") as file:
            outline = json.loads((file.metadata() or {})[_STATE])
            state = _filled(outline, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118  (not a dict)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path}: expected a training state, could not read it: {str(error).splitlines()[0]}; remove it to start afresh"
        ) from None
    if not isinstance(state, dict) or "step" not in state:
        raise CheckpointError(f"{path}: expected a training state with a step, got {type(state).__name__}; remove it to start afresh")
    return state


def _outline(value: object, tensors: dict[str, Tensor]) -> object:
    """The state as JSON: tensors by name, dicts as pairs (optimisers key by number)."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        # A copy: tied weights share memory, which the format refuses.
        tensors[name] = value.detach().clone().contiguous()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _outline(inner, tensors)] for key, inner in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_outline(inner, tensors) for inner in value]}
    return value


def _filled(outline: object, tensors: dict[str, Tensor]) -> object:
    if not isinstance(outline, dict):
        return outline
    if "tensor" in outline:
        return tensors[outline["tensor"]]
    if "dict" in outline:
        return {key: _filled(inner, tensors) for key, inner in outline["dict"]}
    return [_filled(inner, tensors) for inner in outline["list"]]

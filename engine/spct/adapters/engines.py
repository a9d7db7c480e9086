"""Engines and judges that live as long as their process: frameworks name a function by its path and call it from many places."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from typing import Any

from spct.engine import Engine

_lock = threading.Lock()
_engines: dict[str, Engine] = {}


def shared_engine(model: str, options: Mapping[str, Any]) -> Engine:
    """The process's engine for a model and its options; loads it at the first call, also where many threads ask at once.

    Raises: as `Engine.from_pretrained`.
    """
    key = key_of({"model": model, **options})
    with _lock:
        if key not in _engines:
            _engines[key] = Engine.from_pretrained(model, **options)
        return _engines[key]


def key_of(options: Mapping[str, Any]) -> str:
    """A text that is equal for equal options, whatever their order."""
    return json.dumps(options, sort_keys=True, default=repr)


def _forget() -> None:
    """A forked child has none of the engine's threads, and maybe a lock that nobody will release."""
    global _lock
    _lock = threading.Lock()
    _engines.clear()


os.register_at_fork(after_in_child=_forget)

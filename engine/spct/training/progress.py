"""Progress of a training run: a bar for people on stderr, one JSON line per step for programs."""

from __future__ import annotations

import json
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from spct.training.ranks import current


class Progress:
    """Shows and records steps, on rank 0; a context manager.

    steps, done   length of the run, and how much of it is behind us
    metrics       JSONL file, appended to; rows past `done` (a killed run's, which come again) are dropped
    """

    def __init__(self, steps: int, done: int, metrics: Path) -> None:
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
        self._bar = Bar(*columns, console=console, disable=not (console.is_terminal and current().is_first))
        self._task = self._bar.add_task("sft", total=steps, completed=done)
        self._path = metrics
        if metrics.exists() and current().is_first:
            rows = metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:done]
            metrics.write_text("".join(rows), encoding="utf-8")
        self._file: TextIOWrapper | None = None

    def __enter__(self) -> Progress:
        self._file = self._path.open("a", encoding="utf-8") if current().is_first else None
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()

    def step(self, step: int, loss: float, smooth: float, rate: float, norm: float, tokens: int, seconds: float) -> None:
        """Record one step: its loss, the smoothed loss, learning rate, gradient norm, tokens and seconds since the start."""
        row = {"step": step, "loss": loss, "smooth": smooth, "lr": rate, "norm": norm, "tokens": tokens, "seconds": round(seconds, 2)}
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        self._bar.update(self._task, completed=step, description=f"sft loss {smooth:.3f}")

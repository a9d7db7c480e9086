"""What people see: a progress bar and messages on stderr, text made safe to print."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

# Escape sequences in a model's or a user's text must not reach the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> Text:
    """`text` as it stands, with control characters shown by their codes and no markup read from it."""
    return Text(_CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text.replace("\r\n", "\n")))


def note(message: str) -> None:
    """One line on stderr."""
    print(f"spct: {_CONTROL.sub('?', message)}", file=sys.stderr, flush=True)


class ProgressBar:
    """Rows done on stderr, where that is a terminal; silent elsewhere. A context manager."""

    def __init__(self, label: str, total: int | None) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task(label, total=total, note="")

    def advance(self, text: str) -> None:
        """One more row; `text` stands beside the count."""
        self._progress.update(self._task, advance=1, note=text)

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def waiting(label: str) -> AbstractContextManager[object]:
    """A spinner on stderr while the body runs, where that is a terminal."""
    return Console(stderr=True).status(label) if sys.stderr.isatty() else nullcontext()


def readable_bytes(num_bytes: int) -> str:
    """Such as "1.5 GiB"."""
    value, unit = float(num_bytes), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.4g} {unit}"


def readable_seconds(seconds: float) -> str:
    """Such as "0.42 s", "3 min 20 s" or "5 h 12 min"."""
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


@contextmanager
def only_rows_on_stdout() -> Iterator[None]:
    """Sends whatever a library prints to stdout (C code too) to stderr while the body runs."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)

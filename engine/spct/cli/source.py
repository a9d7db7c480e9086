"""Where requests come from: a file, a pipe or a terminal, read line by line without ever waiting in vain."""

from __future__ import annotations

import os
import re
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from spct.cli.console import note
from spct.errors import ConfigError

_CHUNK_BYTES = 2**18
# How long a writer that is about to write is waited for, before the batch is drained without it: a few steps of the engine.
_GRACE_MS = 50
_NOT_BLANK = re.compile(rb"\S")


class Source:
    """Lines of an open file.

    A pipe can be silent for as long as its writer waits for an answer, so `is_ready` tells whether the next line is there.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._buffer = bytearray()
        self._at_end = False
        self._poll = select.poll()
        self._is_regular = stat.S_ISREG(os.fstat(file).st_mode)
        if not self._is_regular:
            self._poll.register(file, select.POLLIN)

    def fileno(self) -> int:
        """The descriptor."""
        return self._file

    def readline(self, limit: int) -> bytes:
        """The next line with its newline, or its first `limit` bytes; empty at the end. Waits for it.

        Raises: OSError if the file can't be read.
        """
        searched = 0
        while True:
            end = self._buffer.find(b"\n", searched, limit)
            if end >= 0:
                return self._take(end + 1)
            searched = len(self._buffer)
            if searched >= limit or self._at_end:
                return self._take(min(searched, limit))
            self._fill()

    def is_ready(self) -> bool:
        """Whether a line that is not blank (or the end) is there already.

        Raises: OSError if the file can't be read.
        """
        if self._is_regular:
            return True
        searched, text = 0, None
        while not self._at_end:
            text = text or _NOT_BLANK.search(self._buffer, searched)
            if text is not None and self._buffer.find(b"\n", max(text.start(), searched)) >= 0:
                return True
            searched = len(self._buffer)
            if not self._poll.poll(_GRACE_MS):
                return False
            self._fill()
        return True

    def count_rows(self) -> int | None:
        """Lines that are not blank from here on; None where the input can't be read twice."""
        if not self._is_regular:
            return None
        with open(os.dup(self._file), "rb") as copy:
            start = copy.tell()
            total = sum(1 for line in copy if line.strip())
            os.lseek(self._file, start, os.SEEK_SET)
        return total

    def _fill(self) -> None:
        try:
            chunk = os.read(self._file, _CHUNK_BYTES)
        except BlockingIOError:
            # Whoever shares a pipe with us may have made it non-blocking.
            self._poll.poll()
            return
        self._buffer += chunk
        self._at_end = not chunk

    def _take(self, count: int) -> bytes:
        line = bytes(self._buffer[:count])
        del self._buffer[:count]
        return line


@contextmanager
def open_source(path: str) -> Iterator[Source]:
    """The lines of a file, or of standard input ("-").

    Raises: ConfigError if the file can't be read.
    """
    if path == "-":
        if sys.stdin.isatty():
            note("reading requests from the terminal, one JSON object per line; end with Ctrl-D")
        yield Source(sys.stdin.fileno())
        return
    if os.path.isdir(path):
        raise ConfigError(f"{path}: expected a file of requests, got a folder")
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None
    try:
        yield Source(file)
    finally:
        os.close(file)

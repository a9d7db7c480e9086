"""JSON out of untrusted folders: bounded in size, no duplicate keys, no NaN, one typed error for everything."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import NoReturn

from spct.errors import CheckpointError


def parse_object(raw: bytes, where: str) -> dict[str, object]:
    """Parse a JSON object.

    raw     the bytes, UTF-8
    where   names the source in messages, such as "config.json"

    Raises: CheckpointError for bad UTF-8 or JSON, a repeated key, NaN or Infinity, nesting too deep, anything but an object.
    """

    def no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
        result = dict(pairs)
        if len(result) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # set.add in a search
            raise CheckpointError(f"{where}: key {twice!r} stands there twice; each key must be unique")
        return result

    def no_constant(name: str) -> NoReturn:
        raise CheckpointError(f"{where}: expected finite numbers, got {name}")

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=no_constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{where}: expected UTF-8, got the byte 0x{raw[error.start]:02x} at {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: not valid JSON ({error}); the file is damaged, fetch it again") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{where}: expected a JSON object, got {type(value).__name__}")
    return value


def read_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file of at most `max_bytes`.

    Raises: CheckpointError if it is missing, unreadable, too large, or no regular file (a pipe would hang the loader).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path}: expected a regular file")
        if status.st_size > max_bytes:
            raise CheckpointError(f"{path}: expected at most {max_bytes} bytes, got {status.st_size}")
        with path.open("rb") as file:
            return file.read(max_bytes)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from None


def read_object(path: Path, max_bytes: int = 8 << 20) -> dict[str, object]:
    """The JSON object in a file.

    Raises: CheckpointError as `read_file` and `parse_object`.
    """
    return parse_object(read_file(path, max_bytes), path.name)

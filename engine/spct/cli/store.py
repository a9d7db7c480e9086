"""The output of `spct score`: JSONL that survives a kill at any point and says itself what it holds.

A row is one `write`, so a kill leaves whole rows and at most one torn last line. The lock is a POSIX record lock: it
belongs to the process and goes with it, however that ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
from collections.abc import Container, Iterator, Mapping
from typing import BinaryIO, Literal, Self

import msgspec

from spct.errors import ConfigError

Mode = Literal["new", "resume", "overwrite"]


class _Row(msgspec.Struct):
    key: str
    run: dict[str, str]
    status: str


class OutputStore:
    """Rows appended to a file, or to standard output ("-").

    `open` locks and refuses; `begin` reads what an earlier run left and repairs it; `append` writes one row; `commit` makes
    them durable. Nothing in the file changes before `begin`.

    done        keys of the rows that an earlier run wrote and that stand
    num_errors  error rows in the file
    """

    def __init__(self, path: str, file: int, mode: Mode, *, is_file: bool) -> None:
        self.path = path
        self.done: set[str] = set()
        self.num_errors = 0
        self._file = file
        self._mode = mode
        self._is_file = is_file
        self._end = 0

    @classmethod
    def open(cls, path: str, mode: Mode) -> Self:
        """The store on `path`, locked.

        Raises: ConfigError if the file is not empty and mode is "new", another process writes it, or it can't be opened.
        """
        if path == "-":
            if mode == "resume":
                raise ConfigError("--resume: standard output can't be resumed; name a file with -o")
            return cls(path, os.dup(1), mode, is_file=False)
        path = os.path.realpath(path)
        try:
            special = os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)
            if special and os.path.isdir(path):
                raise ConfigError(f"{path}: expected a file for the output, got a folder")
            if special:
                if mode == "resume":
                    raise ConfigError(f"--resume: {path} is no regular file and can't be resumed")
                return cls(path, os.open(path, os.O_WRONLY), mode, is_file=False)
            file = _open_locked(path)
        except OSError as error:
            raise ConfigError(f"{path}: can't be opened for writing: {error.strerror}") from None
        if mode == "new" and os.fstat(file).st_size:
            os.close(file)
            raise ConfigError(f"{path} exists and is not empty; continue it with --resume or replace it with --overwrite")
        return cls(path, file, mode, is_file=True)

    def is_same_file(self, other: int) -> bool:
        """Whether the open file `other` is this one."""
        return self._is_file and os.path.samestat(os.fstat(self._file), os.fstat(other))

    def begin(self, run: Mapping[str, str], *, retry_errors: bool = False, asked: Container[str] | None = None) -> None:
        """Makes the file ready for more rows of `run`: reads the rows that are there, then mends a torn last line.

        With `retry_errors` the error rows go, in one step (new file, fsync, rename), so that they are judged again.
        With `asked`, the keys of what this run asks for, a file with rows has to hold one of them: else it is about other items.
        Raises: ConfigError, before anything is changed, if the file holds something else or rows of another run.
        """
        if not self._is_file:
            return
        if self._mode != "resume":
            os.ftruncate(self._file, 0)
            return
        self._end, newline_missing = self._scan(run, retry_errors, asked)
        os.ftruncate(self._file, self._end)
        if newline_missing:
            self._write(b"\n")
        if retry_errors and self.num_errors:
            self._drop_errors()

    def append(self, row: bytes) -> None:
        """Writes one row, whole or not at all.

        Raises: OSError if it can't be written; what the file held before is intact.
        """
        try:
            self._write(row + b"\n")
        except BaseException:
            # Ctrl-C between two partial writes, or a full disk: take the torn row back.
            if self._is_file:
                os.ftruncate(self._file, self._end)
            raise

    def commit(self) -> None:
        """Returns when every row is on the disk. Raises: OSError if that can't be said."""
        try:
            os.fsync(self._file)
            if self._is_file:
                _sync_folder(os.path.dirname(self.path))
        except OSError as error:
            # Pipes and devices have nothing to sync.
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS) or self._is_file:
                raise

    def close(self) -> None:
        """Gives the lock back. Rows that are written stay."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, data: bytes) -> None:
        """`_end` moves when all of `data` is written."""
        view = memoryview(data)
        while view:
            position = self._end + len(data) - len(view)
            try:
                count = os.pwrite(self._file, view, position) if self._is_file else os.write(self._file, view)
            except BlockingIOError:
                # Whoever shares a pipe with us may have made it non-blocking.
                select.select([], [self._file], [])
                continue
            view = view[count:]
        self._end += len(data)

    def _scan(self, run: Mapping[str, str], retry_errors: bool, asked: Container[str] | None) -> tuple[int, bool]:
        """Reads the rows: (end of the last whole one, whether its newline is missing)."""
        end = num_rows = num_asked = 0
        newline_missing = False
        for number, line in enumerate(self._read_lines(), 1):
            row = _decode(line)
            if row is not None:
                self._check_run(row, run, number)
                if row.status != "error" or not retry_errors:
                    self.done.add(row.key)
                self.num_errors += row.status == "error"
                num_rows += 1
                num_asked += asked is None or row.key in asked
            elif _is_torn(line):
                break
            elif line.strip():
                raise ConfigError(f"{self.path}, line {number}: not a row of spct score; mend the line, or use --overwrite")
            end += len(line)
            newline_missing = not line.endswith(b"\n")
        if num_rows and not num_asked:
            raise ConfigError(
                f"--resume: {self.path} holds {num_rows} rows, none of them of an item that is asked for; "
                "resume with the same data, or write to another folder"
            )
        return end, newline_missing

    def _check_run(self, row: _Row, run: Mapping[str, str], number: int) -> None:
        parts = [name for name in sorted(set(run) | set(row.run)) if run.get(name) != row.run.get(name)]
        if parts:
            raise ConfigError(
                f"--resume: {self.path}, line {number} comes from a run with other settings: {', '.join(parts)}; "
                "resume with the same ones, or write to another file"
            )

    def _drop_errors(self) -> None:
        """Replaces the file by one without its error rows."""
        folder, name = os.path.split(self.path)
        temporary = os.path.join(folder, f".{name}.retry")
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(file, stat.S_IMODE(os.fstat(self._file).st_mode))
            # The new file is ours before anyone can open it under the old name.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Closing a duplicate of a descriptor would drop the lock (POSIX), so readers and writers borrow it.
            copy = os.fdopen(file, "wb", closefd=False)
            for line in self._read_lines():
                row = _decode(line)
                if row is None or row.status != "error":
                    copy.write(line)
            copy.flush()
            os.fsync(file)
            end = copy.tell()
            os.rename(temporary, self.path)
        except BaseException:
            os.close(file)
            os.unlink(temporary)
            raise
        old, self._file = self._file, file
        self._end, self.num_errors = end, 0
        os.close(old)
        _sync_folder(folder)

    def _read_lines(self) -> Iterator[bytes]:
        os.lseek(self._file, 0, os.SEEK_SET)
        reader: BinaryIO = os.fdopen(self._file, "rb", closefd=False)
        yield from iter(reader.readline, b"")


def _decode(line: bytes) -> _Row | None:
    try:
        line.decode("utf-8")
        return _DECODER.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _is_torn(line: bytes) -> bool:
    """Whether a kill or a crash can have left `line`: the beginning of a row, or zeros, without the newline that ends every row."""
    return not line.endswith(b"\n") and (line.startswith(b"{") or not line.strip(b"\0"))


def _open_locked(path: str) -> int:
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and lock the writer before us may have put a new file in this one's place.
            if os.path.exists(path) and os.path.samestat(os.fstat(file), os.stat(path)):
                return file
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise ConfigError(f"{path} is being written by another process; wait for it, or write to another file") from None
            raise
        os.close(file)


def _sync_folder(folder: str) -> None:
    """Makes the file's name durable, where the file system lets us."""
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(file)


_DECODER = msgspec.json.Decoder(_Row)

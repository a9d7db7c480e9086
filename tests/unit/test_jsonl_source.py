"""Lines from files and pipes: the same lines whatever the sizes of what arrives, and no waiting in vain."""

import os
import random
import threading
import time

import pytest

from spct.cli import source as source_module
from spct.cli.source import Source, open_source
from spct.errors import ConfigError

LIMIT = 2**20


@pytest.fixture
def pipe(monkeypatch):
    monkeypatch.setattr(source_module, "_GRACE_MS", 0)
    read, write = os.pipe()
    ends = {"write": write}

    def send(data):
        assert os.write(ends["write"], data) == len(data)

    def close():
        os.close(ends.pop("write"))

    yield Source(read), send, close
    for end in ends.values():
        os.close(end)
    os.close(read)


def all_lines(lines, limit=LIMIT):
    return list(iter(lambda: lines.readline(limit), b""))


@pytest.mark.parametrize("data", [b"", b"\n", b"a", b"a\n", b"\n\na\n\nb", b"a\r\nb\r\n", b"x" * 5000 + b"\ny"])
@pytest.mark.parametrize("chunk", [1, 2, 7, 4096])
def test_a_file_comes_line_by_line(tmp_path, monkeypatch, data, chunk):
    monkeypatch.setattr(source_module, "_CHUNK_BYTES", chunk)
    path = tmp_path / "in"
    path.write_bytes(data)
    with open_source(str(path)) as lines:
        assert lines.is_ready()
        assert all_lines(lines) == data.splitlines(keepends=True)
        assert lines.readline(LIMIT) == b""


def test_long_lines_come_in_pieces_of_the_limit(tmp_path):
    path = tmp_path / "in"
    path.write_bytes(b"a" * 25 + b"\n" + b"b" * 10 + b"\n" + b"c" * 9 + b"\n")
    with open_source(str(path)) as lines:
        assert all_lines(lines, 10) == [b"a" * 10, b"a" * 10, b"aaaaa\n", b"b" * 10, b"\n", b"c" * 9 + b"\n"]


def test_a_pipe_is_ready_when_a_line_is_there(pipe):
    lines, send, close = pipe
    assert not lines.is_ready()
    for data, ready in ((b"\n  \n\t", False), (b" ab", False), (b"c", False), (b"\nnext", True)):
        send(data)
        assert lines.is_ready() == ready
    assert [lines.readline(LIMIT) for _ in range(3)] == [b"\n", b"  \n", b"\t abc\n"]
    assert not lines.is_ready()
    close()
    assert lines.is_ready()
    assert lines.readline(LIMIT) == b"next" and lines.readline(LIMIT) == b""
    assert lines.is_ready()


def test_lines_do_not_depend_on_how_they_arrive(pipe):
    lines, send, close = pipe
    rng = random.Random(0)
    data = b"".join(rng.choice([b"\n", b" ", b"row", b"x" * 50]) for _ in range(2000))
    sent, found = 0, []
    while sent < len(data):
        count = rng.randrange(1, 300)
        send(data[sent : sent + count])
        sent += count
        while lines.is_ready():
            found.append(lines.readline(LIMIT))
    close()
    assert found + all_lines(lines) == data.splitlines(keepends=True)


def test_a_pipe_that_does_not_block_is_waited_for(pipe):
    lines, send, close = pipe
    os.set_blocking(lines.fileno(), False)
    timer = threading.Timer(0.1, lambda: (send(b"b\n"), close()))
    send(b"a")
    timer.start()
    assert all_lines(lines) == [b"ab\n"]
    timer.join()


def test_one_line_of_many_pieces_is_quick(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "_CHUNK_BYTES", 512)
    path = tmp_path / "in"
    path.write_bytes(b"x" * 2**22 + b"\n")
    start = time.perf_counter()
    with open_source(str(path)) as lines:
        assert len(lines.readline(2**23)) == 2**22 + 1
    assert time.perf_counter() - start < 2


def test_rows_are_counted_without_being_used_up(tmp_path, pipe):
    path = tmp_path / "in"
    path.write_bytes(b"a\n\n  \nb\nc")
    with open_source(str(path)) as lines:
        assert lines.count_rows() == 3
        assert len(all_lines(lines)) == 5
    assert pipe[0].count_rows() is None


@pytest.mark.parametrize("name", ["", "missing", "missing/in"])
def test_what_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=r"folder|can't be read"), open_source(str(tmp_path / name)):
        pass

"""The output file: refusals, torn tails, dropped error rows, failing writes, and the lock."""

import errno
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from spct.cli.store import OutputStore
from spct.errors import ConfigError

ROOT = Path(__file__).parents[2]
RUN = {"weights": "aa", "sampling": "bb", "voting": "cc"}


def row(key, status="ok", run=RUN, text="häßlich ✓ 漢字"):
    return json.dumps({"id": key, "status": status, "text": text, "key": key, "run": run}, ensure_ascii=False).encode()


def lines(*rows):
    return b"".join(r + b"\n" for r in rows)


def resume(path, run=RUN, **options):
    store = OutputStore.open(str(path), "resume")
    store.begin(run, **options)
    return store


def test_new_rows_are_in_the_file_as_soon_as_they_are_appended(tmp_path):
    out = tmp_path / "out.jsonl"
    with OutputStore.open(str(out), "new") as store:
        store.begin(RUN)
        for i in range(3):
            store.append(row(f"k{i}"))
            assert out.read_bytes() == lines(*(row(f"k{j}") for j in range(i + 1)))
        store.commit()


@pytest.mark.parametrize("mode", ["new", "resume", "overwrite"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_missing_or_empty_file_starts_fresh(tmp_path, mode, exists):
    out = tmp_path / "out.jsonl"
    if exists:
        out.touch()
    with OutputStore.open(str(out), mode) as store:
        store.begin(RUN)
        assert store.done == set()
        store.append(row("a"))
    assert out.read_bytes() == lines(row("a"))


def test_what_exists_is_refused_and_left_alone(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="--resume"):
        OutputStore.open(str(out), "new")
    assert out.read_bytes() == b"precious"


def test_overwriting_waits_until_the_run_begins(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"precious")
    with OutputStore.open(str(out), "overwrite") as store:
        assert out.read_bytes() == b"precious"
        store.begin(RUN)
        store.append(row("a"))
    assert out.read_bytes() == lines(row("a"))


def test_rows_of_other_items_are_refused_and_left_alone(tmp_path):
    out = tmp_path / "out.jsonl"
    content = lines(row("a"), row("b", "error")) + b'{"torn'
    out.write_bytes(content)
    with pytest.raises(ConfigError, match="holds 2 rows, none of them of an item that is asked for"):
        resume(out, asked={"c"}, retry_errors=True)
    assert out.read_bytes() == content
    with resume(out, asked={"b", "c"}, retry_errors=True) as store:
        assert store.done == {"a"}
    out.write_bytes(b"")
    with resume(out, asked={"c"}) as store:
        assert store.done == set()


WHOLE = lines(row("a"), row("b", "error"))
LAST = lines(row("c", text="äöü 漢字 \U0001f600"))


@pytest.mark.parametrize("cut", range(len(LAST) + 1))
def test_a_last_line_torn_at_any_byte_is_mended(tmp_path, cut):
    out = tmp_path / "out.jsonl"
    out.write_bytes(WHOLE + LAST[:cut])
    with resume(out) as store:
        assert store.done == {"a", "b"} | ({"c"} if cut >= len(LAST) - 1 else set())
        assert store.num_errors == 1
        store.append(row("d"))
    assert out.read_bytes() == WHOLE + (LAST if cut >= len(LAST) - 1 else b"") + lines(row("d"))


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 5000, b'{"id": 1', b"{\xff", b'{"a":1}', b"{" * 50_000])
def test_what_a_crash_leaves_is_mended(tmp_path, tail):
    out = tmp_path / "out.jsonl"
    out.write_bytes(WHOLE + tail)
    with resume(out) as store:
        assert store.done == {"a", "b"}
    assert out.read_bytes() == WHOLE


def test_a_file_that_is_one_torn_row_becomes_empty(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(row("a")[:-4])
    with resume(out) as store:
        assert store.done == set()
    assert out.read_bytes() == b""


def test_blank_lines_are_passed_over(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(b"\n" + lines(row("a")) + b"  \n" + lines(row("b")) + b"  ")
    with resume(out) as store:
        assert store.done == {"a", "b"}
        store.append(row("c"))
    with resume(out) as store:
        assert store.done == {"a", "b", "c"}


@pytest.mark.parametrize(
    "foreign",
    [
        b"a note\n",
        b"a note",
        b'{"a": 1}\n',
        row("a")[:-5] + b"\n" + row("b") + b"\n",
        b"{\xff}\n",
        b'{"key": "a", "status": "ok"}\n',
        b'{"key": 1, "status": "ok", "run": {}}\n',
        b"\0\0\n",
    ],
)
def test_a_file_of_something_else_is_refused_unchanged(tmp_path, foreign):
    out = tmp_path / "out.jsonl"
    out.write_bytes(lines(row("x")) + foreign)
    with pytest.raises(ConfigError, match=r"line 2: not a row of spct score"):
        resume(out)
    assert out.read_bytes() == lines(row("x")) + foreign


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weights": "zz"}, "weights"),
        ({"sampling": "z"}, "sampling"),
        ({"new": "1"}, "new"),
        ({"weights": "z", "voting": "z"}, "voting, weights"),
    ],
)
def test_changed_settings_are_named_and_nothing_is_touched(tmp_path, change, named):
    out = tmp_path / "out.jsonl"
    torn = WHOLE + b'{"torn'
    out.write_bytes(torn)
    with pytest.raises(ConfigError, match=f"line 1 .*other settings: {named};"):
        resume(out, {**RUN, **change}, retry_errors=True)
    with pytest.raises(ConfigError, match="voting"):
        resume(out, {name: value for name, value in RUN.items() if name != "voting"})
    assert out.read_bytes() == torn


def test_one_row_of_another_run_is_enough_to_refuse(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(WHOLE + lines(row("c", run={**RUN, "weights": "zz"})))
    with pytest.raises(ConfigError, match=r"line 3 .*weights"):
        resume(out)


def test_error_rows_go_when_they_are_to_be_tried_again(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(lines(row("a"), row("b", "error"), row("c"), row("d", "error")) + row("e")[:-3])
    out.chmod(0o640)
    with resume(out, retry_errors=True) as store:
        # The lock has moved to the new file. (Checked first: this process drops it by reading the file itself.)
        assert second_writer(out).returncode == 2
        assert (store.done, store.num_errors) == ({"a", "c"}, 0)
        assert out.read_bytes() == lines(row("a"), row("c"))
        store.append(row("b"))
    assert out.read_bytes() == lines(row("a"), row("c"), row("b"))
    assert out.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["out.jsonl"]


def test_a_link_stays_a_link_when_error_rows_go(tmp_path):
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "out.jsonl", tmp_path / "link.jsonl"
    target.write_bytes(WHOLE)
    link.symlink_to(target)
    with resume(link, retry_errors=True) as store:
        store.append(row("c"))
    assert link.is_symlink() and target.read_bytes() == lines(row("a"), row("c"))


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_failure_while_error_rows_go_keeps_the_old_file(tmp_path, monkeypatch, call):
    out = tmp_path / "out.jsonl"
    out.write_bytes(WHOLE)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    store = OutputStore.open(str(out), "resume")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="Input/output"):
            store.begin(RUN, retry_errors=True)
    store.close()
    assert out.read_bytes() == WHOLE and os.listdir(tmp_path) == ["out.jsonl"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "I/O"), KeyboardInterrupt()])
def test_a_row_that_is_half_written_is_taken_back(tmp_path, monkeypatch, failure):
    out = tmp_path / "out.jsonl"
    write = os.pwrite
    with OutputStore.open(str(out), "new") as store:
        store.begin(RUN)
        store.append(row("a"))

        def half(file, data, position):
            if position > len(lines(row("a"))):
                raise failure
            return write(file, data[: len(data) // 2], position)

        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", half)
            with pytest.raises(type(failure)):
                store.append(row("b"))
        assert out.read_bytes() == lines(row("a"))
        store.append(row("c"))
    assert out.read_bytes() == lines(row("a"), row("c"))


def test_short_writes_are_continued(tmp_path, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, position: write(file, data[:7], position))
    with OutputStore.open(str(tmp_path / "out"), "new") as store:
        store.begin(RUN)
        store.append(row("a"))
        store.append(row("b"))
    assert (tmp_path / "out").read_bytes() == lines(row("a"), row("b"))


def test_a_file_size_limit_leaves_whole_rows(tmp_path):
    out = tmp_path / "out.jsonl"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with OutputStore.open(str(out), "new") as store:
        store.begin(RUN)
        store.append(row("a"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(row("a")) + 20, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                store.append(row("b"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert out.read_bytes() == lines(row("a"))


def test_a_device_takes_rows_but_is_never_resumed():
    with OutputStore.open("/dev/full", "new") as store:
        store.begin(RUN)
        with pytest.raises(OSError, match="No space"):
            store.append(row("a"))
    with OutputStore.open("/dev/null", "new") as store:
        store.begin(RUN)
        store.append(row("a"))
        store.commit()
    for path in ("/dev/null", "-"):
        with pytest.raises(ConfigError, match="resume"):
            OutputStore.open(path, "resume")


def test_a_full_pipe_that_does_not_block_is_waited_for():
    read, write = os.pipe()
    kept = os.dup(1)
    os.dup2(write, 1)
    os.set_blocking(1, False)
    try:
        store = OutputStore.open("-", "new")
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(write)
    received = bytearray()

    def drain():
        while chunk := os.read(read, 5000):
            received.extend(chunk)

    reader = threading.Thread(target=drain)
    threading.Timer(0.1, reader.start).start()
    rows = [row(f"k{i}", text="x" * 100_000) for i in range(3)]
    with store:
        store.begin(RUN)
        for data in rows:
            store.append(data)
        store.commit()
    reader.join(30)
    os.close(read)
    assert bytes(received) == lines(*rows)


def test_an_unsynced_file_is_no_success(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, "Input/output error")

    with OutputStore.open(str(tmp_path / "out"), "new") as store:
        store.begin(RUN)
        store.append(row("a"))
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output"):
            store.commit()


@pytest.mark.parametrize("path", ["", "missing/out.jsonl"])
def test_a_place_that_cannot_be_written_is_named(tmp_path, path):
    with pytest.raises(ConfigError, match=r"folder|can't be opened"):
        OutputStore.open(str(tmp_path / path), "new")


HOLD = """
import sys, time
from spct.cli.store import OutputStore
from spct.errors import ConfigError
try:
    store = OutputStore.open(sys.argv[1], "resume")
except ConfigError as error:
    print(error); sys.exit(2)
print("locked", flush=True)
time.sleep(float(sys.argv[2]))
"""


def second_writer(out):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "engine")}
    return subprocess.run([sys.executable, "-c", HOLD, str(out), "0"], env=environment, capture_output=True, text=True, timeout=60)


def test_a_second_writer_is_refused_until_the_first_dies(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(WHOLE)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "engine")}
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(out), "60"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "locked\n"
        refused = second_writer(out)
        assert refused.returncode == 2 and "being written by another process" in refused.stdout
        with pytest.raises(ConfigError, match="another process"):
            OutputStore.open(str(out), "overwrite")
        first.send_signal(signal.SIGKILL)
        first.wait(30)
        assert second_writer(out).returncode == 0
    finally:
        first.kill()
        first.wait(30)
        first.stdout.close()


def test_a_file_that_is_replaced_while_it_is_locked_is_opened_again(tmp_path, monkeypatch):
    """The writer before us drops its error rows: what we had opened has no name any more."""
    out = tmp_path / "out.jsonl"
    out.write_bytes(WHOLE)
    lock = fcntl.lockf

    def late(file, flags):
        if not (tmp_path / "new").exists() and out.stat().st_size == len(WHOLE):
            (tmp_path / "new").write_bytes(lines(row("a")))
            (tmp_path / "new").rename(out)
        return lock(file, flags)

    monkeypatch.setattr(fcntl, "lockf", late)
    with resume(out) as store:
        assert store.done == {"a"}
        store.append(row("z"))
    assert out.read_bytes() == lines(row("a"), row("z"))


def test_the_lock_outlives_reading_the_file_and_goes_with_close(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(WHOLE)
    with resume(out) as store:
        store.append(row("c"))
        assert second_writer(out).returncode == 2
    assert second_writer(out).returncode == 0


def test_reading_back_a_long_file_is_quick(tmp_path):
    out = tmp_path / "out.jsonl"
    out.write_bytes(lines(*(row(f"k{i}", text="x" * 500) for i in range(20_000))))
    start = time.perf_counter()
    with resume(out) as store:
        assert len(store.done) == 20_000
    assert time.perf_counter() - start < 5

"""A kill at every boundary of every system call that changes the output: nothing lost, nothing twice."""

import json
import os
import signal
import traceback

import pytest

from spct.cli.store import OutputStore

RUN = {"weights": "aa"}
CALLS = ("pwrite", "ftruncate", "fsync", "rename", "open", "fchmod")
# 1 and 4 failed once; what an earlier run left behind them.
EARLIER = [("k0", "ok"), ("k1", "error"), ("k2", "ok"), ("k4", "error")]
KEYS = [f"k{i}" for i in range(7)]


def row(key, status="ok"):
    return json.dumps({"id": key, "text": "漢字" * 20, "status": status, "key": key, "run": RUN}, ensure_ascii=False).encode()


def one_run(out, retry_errors):
    """What `spct score` does with its output, less the judging."""
    with OutputStore.open(str(out), "resume") as store:
        store.begin(RUN, retry_errors=retry_errors)
        for key in KEYS:
            if key not in store.done:
                store.append(row(key))
        store.commit()


def killed_at(number, when, body):
    """Runs `body` in a child that kills itself at its `number`-th system call; True if it was killed."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.waitstatus_to_exitcode(status) == 0
        return False
    try:
        _plant(number, when)
        body()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def _plant(number, when):
    count = 0

    def plant(name):
        call = getattr(os, name)

        def deadly(*args, **kwargs):
            nonlocal count
            count += 1
            if count != number:
                return call(*args, **kwargs)
            if when == "after":
                call(*args, **kwargs)
            if when == "midway" and name == "pwrite":
                file, data, position = args
                call(file, bytes(data)[: len(data) // 2], position)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(os, name, deadly)

    for name in CALLS:
        plant(name)


@pytest.mark.parametrize("when", ["before", "midway", "after"])
@pytest.mark.parametrize("retry_errors", [False, True])
@pytest.mark.parametrize("torn", [0, 37])
def test_a_kill_at_any_boundary_loses_and_doubles_nothing(tmp_path, when, retry_errors, torn):
    earlier = b"".join(row(*entry) + b"\n" for entry in EARLIER) + row("k5")[:torn]
    still_failed = set() if retry_errors else {"k1", "k4"}
    number = 0
    while True:
        number += 1
        out = tmp_path / f"{number}.jsonl"
        out.write_bytes(earlier)
        killed = killed_at(number, when, lambda out=out: one_run(out, retry_errors))
        if killed:
            survivors = [line for line in out.read_bytes().split(b"\n")[:-1] if b'"status": "ok"' in line]
            assert {row("k0"), row("k2")} <= set(survivors)
            assert not killed_at(0, when, lambda out=out: one_run(out, retry_errors))
        expected = [row(key, "error" if key in still_failed else "ok") for key in KEYS]
        assert sorted(out.read_bytes().splitlines()) == sorted(expected)
        if not killed:
            break
    # Opening, mending, a write per missing row and the syncs: if the calls were no longer seen, this test would prove nothing.
    assert number > 6 + 5 * retry_errors
    assert [name for name in os.listdir(tmp_path) if not name.endswith(".jsonl")] == []

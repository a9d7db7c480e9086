"""Killed, interrupted, cut off: what a run leaves can be continued, and comes out as if nothing had happened."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from command_line import ROOT, environment, essence, numbered, read_rows, spct, start, write_rows
from tiny_model import write_tiny_model

NUM_ROWS = 60
# Equal rows and error rows are part of what must come out once.
ROWS = [*numbered(NUM_ROWS), *numbered(3), b"oops", {"id": "empty", "query": "q", "responses": []}, b"oops"]
# One request at a time, so that there is always a next row to be disturbed at.
SLOW = {"SPCT_MAX_BATCH": "4"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the programs that are started here: the number of threads is a setting that resuming compares."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_model(tmp_path_factory.mktemp("killed") / "tiny")
    return ("--model", folder, "--samples", 4, "--max-tokens", 60)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, model, one_thread):
    folder = tmp_path_factory.mktemp("unbroken")
    source, out = write_rows(folder / "in.jsonl", ROWS), folder / "out.jsonl"
    assert spct("score", source, "-o", out, *model) == 3
    assert len(read_rows(out)) == len(ROWS)
    return out


def is_alive(process_id):
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_rows(process_id, out, count):
    """Waits until OUT holds `count` newlines; fails if the process ends or nothing comes."""
    for _ in range(60_000):
        if out.exists() and out.read_bytes().count(b"\n") >= count:
            return
        assert is_alive(process_id), "the run ended before it could be disturbed"
        time.sleep(0.002)
    raise AssertionError("no rows came")


@pytest.fixture
def fork():
    """Runs a command line in a fork of a process that has imported the program; gives its process id."""
    server = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "helpers" / "fork_server.py"],
        env=environment(**SLOW),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )

    def run(*words):
        print(json.dumps([str(word) for word in words]), file=server.stdin, flush=True)
        return int(server.stdout.readline())

    yield run
    server.stdin.close()
    server.stdout.close()
    server.wait(60)


def test_killed_twelve_times_and_resumed(tmp_path, model, unbroken, fork, capsys):
    state = random.randrange(2**32)
    rng = random.Random(state)
    print(f"random state {state}")
    source, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    words = ("score", source, "-o", out, *model, "--resume")
    for attempt in range(12):
        before = out.read_bytes().count(b"\n") if out.exists() else 0
        if attempt % 4 == 3:
            # Anywhere, while Python starts and imports too; but on a fast machine not so late that it has finished.
            process = start(*words, variables=SLOW, stderr=subprocess.DEVNULL)
            latest = time.monotonic() + rng.uniform(0, 3)
            while time.monotonic() < latest and out.read_bytes().count(b"\n") < before + 2:
                time.sleep(0.001)
            process.kill()
            assert process.wait(60) == -signal.SIGKILL
        else:
            process_id = fork(*words)
            wait_for_rows(process_id, out, before + rng.randrange(1, 4))
            time.sleep(rng.uniform(0, 0.02))
            os.kill(process_id, signal.SIGKILL)
            while is_alive(process_id):
                time.sleep(0.001)
        if attempt % 3 == 1:
            # A power cut may take the end of what was written with it.
            os.truncate(out, max(0, out.stat().st_size - rng.randrange(200)))
    assert len(out.read_bytes().splitlines()) < len(ROWS)
    assert spct(*words) == 3
    assert essence(out) == essence(unbroken)
    ids = [row["id"] for row in read_rows(out)]
    assert sorted(i for i in ids if isinstance(i, int) and i >= 3) == list(range(3, NUM_ROWS))
    before = out.read_bytes()
    assert spct(*words) == 3
    assert "spct: 0 judged" in capsys.readouterr().err and out.read_bytes() == before


def test_a_second_writer_is_refused_and_an_interrupt_leaves_whole_rows(tmp_path, model, unbroken, capsys):
    source, out = write_rows(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl"
    # As a shell starts a background command: with SIGINT ignored.
    process = start(
        "score",
        source,
        "-o",
        out,
        *model,
        variables=SLOW,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    wait_for_rows(process.pid, out, 2)
    process.send_signal(signal.SIGSTOP)
    before = out.read_bytes()
    for words in (("--resume",), ("--overwrite",), ()):
        assert spct("score", source, "-o", out, *model, *words) == 2
        assert "another process" in capsys.readouterr().err
    assert out.read_bytes() == before
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"interrupted" in message and b"--resume" in message and b"Traceback" not in message
    data = out.read_bytes()
    assert data.startswith(before) and data.endswith(b"\n") and 2 <= len(read_rows(out)) < len(ROWS)
    assert spct("score", source, "-o", out, *model, "--resume") == 3
    assert out.read_bytes().startswith(data) and essence(out) == essence(unbroken)


def test_a_reader_that_goes_away_is_no_success(tmp_path, model):
    source = write_rows(tmp_path / "in.jsonl", ROWS)
    process = start("score", source, *model, variables=SLOW, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline().startswith(b'{"id":')
    process.stdout.close()
    message = process.stderr.read()
    process.stderr.close()
    assert process.wait(60) == 1
    assert b"reader" in message and b"Traceback" not in message and b"judged" not in message


def test_a_live_pipe_gets_each_answer_before_it_asks_again(model):
    """A caller that writes a row and waits for its judgement is answered; so the input is never read further than it is there."""
    process = start("score", *model, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
    for rows in ([ROWS[0]], [b"oops"], [ROWS[1], b"", ROWS[2]], [ROWS[3]]):
        for row in rows:
            process.stdin.write((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n\n")
        answers = [json.loads(process.stdout.readline()) for row in rows if row]
        assert {answer["id"] for answer in answers} == {row["id"] if isinstance(row, dict) else None for row in rows if row}
    process.stdin.close()
    assert process.stdout.read() == b"" and process.wait(60) == 3
    process.stdout.close()

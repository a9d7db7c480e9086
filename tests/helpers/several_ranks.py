"""Runs training in several processes, forked from one that has imported what they need, as a launcher would start them."""

import os
import socket
import sys
import time
from multiprocessing import forkserver, get_context
from pathlib import Path

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(["several_ranks_bodies"])


def _start_server():
    """Starts the process that ranks are forked from, once; it imports by the environment's path alone, and says nothing if it can't."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def start(body, *args, size=2, log):
    """Starts `size` ranks that each run a function of `several_ranks_bodies`; what rank r prints is in `log`.r."""
    _start_server()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [CONTEXT.Process(target=_rank, args=(body, args, rank, size, port, f"{log}.{rank}")) for rank in range(size)]
    for process in processes:
        process.start()
    return processes


def finish(processes, seconds=120):
    """Waits for the ranks; gives their exit codes, and the seconds from the first one's end to the last one's."""
    ended = {}
    until = time.monotonic() + seconds
    while len(ended) < len(processes):
        for process in processes:
            if process not in ended and process.exitcode is not None:
                ended[process] = time.monotonic()
        if time.monotonic() > until:
            for process in processes:
                process.kill()
            raise AssertionError(f"ranks hang: {[p.exitcode for p in processes]}")
        time.sleep(0.02)
    return [p.exitcode for p in processes], max(ended.values()) - min(ended.values())


def run(body, *args, size=2, log):
    """Runs the ranks to their end, which must be a good one; gives what they printed."""
    codes, _ = finish(start(body, *args, size=size, log=log))
    printed = [Path(f"{log}.{rank}").read_text() for rank in range(size)]
    assert codes == [0] * size, "\n".join(printed)
    return printed


def _rank(body, args, rank, size, port, log):
    assert "several_ranks_bodies" in sys.modules, "imported before the fork"
    import several_ranks_bodies as bodies

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if size > 1:
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.exit(bodies.main(body, args))

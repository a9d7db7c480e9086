"""Joins the processes that torchrun, or a launcher that sets the same variables, has started, and ends all of them when one fails.

    torchrun --nproc-per-node 2 -m spct train rl …

A rank that fails leaves word in the store that the launcher (or rank 0) holds, where a thread of every other rank looks twice a second:
one that waits in a collective for the failed rank can't be told there. A rank that died without a word breaks its connections, and its
launcher ends the rest; what remains is the limit on how long a rank waits.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store

from spct.errors import BackendError, ConfigError, SpctError
from spct.training.ranks import LostRankError, Ranks, acting_as, current

# The longest that a rank waits for the slowest one.
TIMEOUT = timedelta(minutes=30)
_EXIT_FAILURE = 1


@contextmanager
def join() -> Iterator[Ranks]:
    """Take part in the processes that the environment tells of, which `current` gives while the block lasts; alone if it tells of none.

    Raises: ConfigError if the environment is incomplete; BackendError if the others can't be reached or are lost; on the first rank
    that fails its own error, with the rank named; SystemExit on the others.
    """
    size = _number("WORLD_SIZE", 1, least=1)
    if size == 1:
        yield current()
        return
    ranks, store = _connect(size)
    alarm = _Alarm(ranks, store)
    with acting_as(ranks):
        try:
            yield ranks
            alarm.leave()
        except BaseException as error:
            alarm.end(error)
            raise
    dist.destroy_process_group()


def _number(name: str, default: int | None = None, least: int = 0) -> int:
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal() or int(text) < least:
        raise ConfigError(
            f"environment {name}: expected a number from {least}, set by a launcher, got {text!r}; start several processes with "
            "torchrun --nproc-per-node N -m spct train …, or unset WORLD_SIZE to train in one"
        )
    return int(text)


def _connect(size: int) -> tuple[Ranks, Store]:
    rank, port = _number("RANK"), _number("MASTER_PORT", least=1)
    if rank >= size:
        raise ConfigError(f"environment RANK: expected less than WORLD_SIZE={size}, got {rank}")
    local_rank, local_size = _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size)
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    # NCCL refuses two ranks on one GPU. What is no tensor always goes through gloo.
    backend = "cpu:gloo,cuda:nccl" if devices >= local_size else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        # A connection of its own: one call at a time goes through the other, and may wait.
        store = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False)  # type: ignore[attr-defined]  # torch's own export
    except (RuntimeError, ValueError) as error:
        raise BackendError(f"rank {rank} of {size}: can't reach the other processes: {str(error).splitlines()[0]}") from None
    # A launcher that starts all anew keeps its store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Ranks(rank, size, local_rank, devices), PrefixStore(f"spct/{attempt}", store)


class _Alarm:
    """The word that a failed rank leaves, and the thread that looks for it."""

    def __init__(self, ranks: Ranks, store: Store) -> None:
        self._store, self._is_first = store, ranks.is_first
        self._name = f"rank {ranks.rank} of {ranks.size}"
        self._size, self._leaving, self._off = ranks.size, Event(), Event()
        Thread(target=self._watch, daemon=True, name="spct-ranks").start()

    def leave(self) -> None:
        """Wait until all ranks have come here, however long one takes over what it alone does."""
        self._leaving.set()
        try:
            left = self._store.add("left", 1)
            while left < self._size:
                time.sleep(0.05)
                left = self._store.add("left", 0)
        except RuntimeError:
            # Who holds the store has seen all of them, and ended.
            pass
        self._off.set()

    def end(self, error: BaseException) -> None:
        """Tell the others of this rank's error, or find out whose error it follows from.

        Raises: the error with the rank named, if none failed before; else SystemExit.
        """
        self._off.set()
        if not isinstance(error, LostRankError) and self._tell(f"{self._name}: {str(error) or type(error).__name__}"):
            if isinstance(error, SpctError):
                raise type(error)(f"{self._name}: {error}") from None
            return
        try:
            for _ in range(20):
                told = self._told()
                if told is not None:
                    self._say(told)
                    raise SystemExit(_EXIT_FAILURE)
                time.sleep(0.1)
        except RuntimeError:
            pass
        raise BackendError(f"{self._name}: {error}") from None

    def _tell(self, message: str) -> bool:
        """Leaves word, unless another rank did."""
        try:
            if self._store.add("failures", 1) > 1:
                return False
            self._store.set("failed", message)
        except RuntimeError:
            # Nobody is left to read it.
            pass
        return True

    def _told(self) -> str | None:
        return self._store.get("failed").decode() if self._store.check(["failed"]) else None

    def _watch(self) -> None:
        while not self._off.wait(0.5):
            try:
                told = self._told()
                if told is None or self._off.is_set():
                    continue
                self._say(told)
            except RuntimeError:
                if self._leaving.is_set() or self._off.is_set():
                    return
                print(f"spct: {self._name}: lost contact with rank 0 or the launcher; run again to resume", file=sys.stderr, flush=True)
            # Nothing else ends a thread that waits in a collective. Every file of a run is whole, or repaired, at any time.
            os._exit(_EXIT_FAILURE)

    def _say(self, told: str) -> None:
        # The rank that failed has said so itself, perhaps into a file that nobody watches.
        if self._is_first:
            print(f"spct: ended since another process did: {told}", file=sys.stderr, flush=True)

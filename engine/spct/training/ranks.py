"""Several processes that train one model: which of them this one is, what its share is, and what all of them say together.

Every process (a rank) holds the whole model and an engine of its own, and takes its share of each step's work; what they drew is exchanged
and their gradients are added, so that all take the same step. The loops call this module whether there is one process or many: alone,
nothing is sent. `spct.training.launch` joins the processes that a launcher has started.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from spct.assembly import choose_device
from spct.errors import BackendError, CheckpointError, ConfigError

T = TypeVar("T")
# Gradients are sent together up to so many numbers: fewer messages for little more memory.
_BUCKET = 2**22


class LostRankError(BackendError):
    """A message between ranks failed: another one is gone, which may have left word of why."""


class Ranks:
    """The processes of a run, seen by one of them. All of them must call the methods that send in the same order.

    rank        this one, from 0; rank 0 alone writes what the run leaves behind and shows how far it is
    size        how many there are
    local_rank  this one among those of its machine
    devices     CUDA devices of the machine, which its ranks share out

    Raises: LostRankError from every method that sends, if another rank is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, devices: int = 0) -> None:
        self.rank, self.size = rank, size
        self._local_rank, self._devices = local_rank, devices

    @property
    def is_first(self) -> bool:
        """Tell whether it is rank 0."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Choose the device of this rank: of "auto" and "cuda" each rank gets one GPU, in turn.

        Raises: BackendError as `choose_device`; ConfigError if all ranks are to use one GPU.
        """
        device = choose_device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise ConfigError(f"device: expected auto, cuda or cpu for {self.size} processes, which share the GPUs out, got {name!r}")
        device = torch.device("cuda", self._local_rank % self._devices)
        torch.cuda.set_device(device)
        return device

    def deal(self, items: Sequence[T]) -> Sequence[T]:
        """Give this rank's share of things that cost alike."""
        return items[self.rank :: self.size]

    def weigh(self, costs: Sequence[int]) -> list[int]:
        """Give the indices of this rank's share of things with known costs, ascending; every rank must name the same costs."""
        loads, mine = [0] * self.size, []
        for i in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
            rank = loads.index(min(loads))
            loads[rank] += costs[i]
            if rank == self.rank:
                mine.append(i)
        return sorted(mine)

    def gather(self, value: T) -> list[T]:
        """Give every rank's value, in the order of the ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            with _sending():
                dist.all_gather_object(values, value)
        return values

    def collect(self, drawn: Iterable[tuple[int, T]]) -> dict[int, T]:
        """Exhaust this rank's numbered results; give those of all ranks."""
        return {number: value for part in self.gather(list(drawn)) for number, value in part}

    def first(self, value: T) -> T:
        """Give rank 0's value."""
        values = [value]
        if self.size > 1:
            with _sending():
                dist.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        """Return once every rank has called this."""
        self.gather(None)

    def expect_alike(self, value: object, what: str) -> None:
        """Wait for all ranks, and check that they found the same.

        Raises: CheckpointError naming `what` they read from the output folder.
        """
        values = self.gather(value)
        if any(v != values[0] for v in values):
            raise CheckpointError(f"{what}: expected the same on every rank, got {values}; the output must lie in a folder that all see")

    def add(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Give the sums over the ranks, the same bits on every rank; what was given is used up.

        tensors  of one dtype and device, of the same shapes on every rank
        """
        sums: list[Tensor] = []
        bucket: list[Tensor] = []
        for i, tensor in enumerate(tensors):
            bucket.append(tensor)
            is_full = sum(t.numel() for t in bucket) >= _BUCKET
            if self.size > 1 and (is_full or i + 1 == len(tensors)):
                flat = torch.cat([t.reshape(-1) for t in bucket]) if len(bucket) > 1 else tensor.reshape(-1)
                with _sending():
                    dist.all_reduce(flat)
                sums += [piece.view(t.shape) for piece, t in zip(torch.split(flat, [t.numel() for t in bucket]), bucket, strict=True)]
                bucket = []
        return sums + bucket

    def mean(self, parts: Sequence[Tensor]) -> float:
        """Give the mean over all numbers of all parts of all ranks, NaN if there is none.

        parts  of any number and length, which may differ from rank to rank
        """
        here = (sum(float(p.double().sum()) for p in parts), sum(p.numel() for p in parts))
        totals, counts = zip(*self.gather(here), strict=True)
        return sum(totals) / sum(counts) if sum(counts) else float("nan")

    def part(self, path: Path) -> Path:
        """Name the file to which this rank appends rows of `path`: rank 0 that one, the others one beside it, until `fold`."""
        return path if self.is_first else path.with_name(f"{path.name}.rank{self.rank}")

    def fold(self, path: Path) -> bytes:
        """Wait for all ranks, move to `path` the rows that others have written beside it, of this run or a killed one; give all rows.

        Cuts off torn last lines. A kill in between leaves rows in both files, which the next call knows by their bytes.

        Raises: CheckpointError if this rank doesn't see what rank 0 does.
        """
        self.wait()
        length = self.first(_fold(path) if self.is_first else 0)
        if not length:
            return b""
        try:
            # Rank 0 may have gone on to write.
            content = path.read_bytes()[:length]
        except OSError:
            content = b""
        if len(content) < length:
            raise CheckpointError(f"{path}: not what rank 0 has there; the output must lie in a folder that every process sees")
        return content


_current = Ranks()


def current() -> Ranks:
    """Give the processes of this run: one, unless a launcher has started several."""
    return _current


@contextmanager
def acting_as(ranks: Ranks) -> Iterator[None]:
    """Let `current` give these."""
    global _current
    before, _current = _current, ranks
    try:
        yield
    finally:
        _current = before


@contextmanager
def _sending() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # Behind its place in the source, gloo says what happened, and then a lot.
        told = re.sub(r"^\[\S*\] ", "", str(error).splitlines()[0]).split(". ")[0]
        raise LostRankError(f"lost contact with another process ({told}); run again to resume") from None


def _fold(path: Path) -> int:
    """Returns the length of the file afterwards."""
    parts = sorted(path.parent.glob(f"{path.name}.rank*"))
    known = path.read_bytes() if path.exists() else b""
    length = known.rfind(b"\n") + 1
    if length < len(known):
        os.truncate(path, length)
    if parts:
        lines = set(known[:length].splitlines())
        with path.open("ab") as file:
            for part in parts:
                rows = part.read_bytes()
                file.writelines(row + b"\n" for row in rows[: rows.rfind(b"\n") + 1].splitlines() if row not in lines)
            file.flush()
            os.fsync(file.fileno())
            length = file.tell()
    for part in parts:
        part.unlink()
    return length

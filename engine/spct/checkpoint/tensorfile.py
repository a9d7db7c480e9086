"""One safetensors file: its header checked in full before a byte of data is mapped, its tensors copied out in bounded steps.

The layout (github.com/huggingface/safetensors, "Format"): a little-endian u64 N, N bytes of JSON header, then the data. Each
entry gives dtype, shape and [begin, end) within the data; together the entries cover the data without overlap or hole.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import mmap
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spct.checkpoint.jsonfile import parse_object
from spct.errors import CheckpointError

# 100,000 entries of a real model fill about 12 MiB; the limit bounds what a hostile header can make the parser hold.
MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
_CHUNK_BYTES = 512 << 10

_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_WIDTHS |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies: `begin` and `end` are offsets within the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A validated safetensors file, mapped for reading. A context manager.

    tensors    name -> TensorInfo
    metadata   the free-form strings of the header

    Raises: CheckpointError naming the file, and the tensor where there is one, if the file breaks any rule of the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):  # to open a pipe would hang
                raise CheckpointError(f"{path}: expected a regular file")
            with path.open("rb") as file:
                self.tensors, self.metadata = _read_header(path, file.read(8), file.read, status.st_size)
                # A private mapping: torch wants writable memory, and nothing written there could reach the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from None

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file."""
        mapped, self._map = self._map, None
        if mapped is not None:
            # While an error unwinds, its frames still hold a view of the mapping; it goes with the last of them.
            with contextlib.suppress(BufferError):
                mapped.close()

    def float_dtype(self, name: str) -> torch.dtype:
        """The dtype of a weight.

        Raises: CheckpointError unless it is F32, F16 or BF16.
        """
        stored = self.tensors[name].dtype
        if stored not in _FLOATS:
            raise CheckpointError(f"{self.path}: tensor {name!r}: expected a dtype of {', '.join(_FLOATS)}, got {stored}")
        return _FLOATS[stored]

    def copy_into(self, name: str, target: Tensor, *, digest: hashlib._Hash | None = None) -> None:
        """Copy a small tensor's numbers, converting the dtype; NaN and Inf are refused.

        target   of the tensor's shape, any float dtype and device
        digest   is fed the stored bytes

        Raises: CheckpointError for a dtype that no weight has, and for a number that isn't finite or too large for the target.
        """
        for first, rows in self.chunks(name, digest=digest):
            self.check_numbers(name, rows, first, target.dtype)
            target[first : first + rows.shape[0]].copy_(rows)

    def chunks(self, name: str, *, multiple: int = 1, digest: hashlib._Hash | None = None) -> Iterator[tuple[int, Tensor]]:
        """A weight in steps of half a MiB: pairs of the first row and the rows, in the stored dtype.

        multiple   every chunk but the last has a multiple of so many rows
        digest     is fed the stored bytes

        Invariant: a chunk is valid until the next one is asked for, as its pages go back to the system then; so file and
        weights are never both resident.

        Raises: CheckpointError for a dtype that no weight has.
        """
        dtype, info = self.float_dtype(name), self.tensors[name]
        columns = math.prod(info.shape[1:])
        row_bytes = columns * dtype.itemsize
        if not info.shape or not columns or not info.shape[0]:
            return
        num_rows = max(1, _CHUNK_BYTES // (row_bytes * multiple)) * multiple
        first = 0
        for raw in self._pages(info, num_rows * row_bytes, dtype.itemsize, digest):
            rows = raw.view(dtype).view(-1, *info.shape[1:])
            yield first, rows
            first += rows.shape[0]

    def check_numbers(self, name: str, rows: Tensor, first: int, target: torch.dtype) -> None:
        """Refuse NaN, Inf and what `target` can't hold.

        rows    [rows, ...] floats, those of the tensor from row `first` on

        Cost: one pass, without a temporary: minimum and maximum carry any NaN or Inf.

        Raises: CheckpointError naming the file, the tensor and the row.
        """
        low, high = (float(bound) for bound in torch.aminmax(rows))
        limit = min(torch.finfo(rows.dtype).max, torch.finfo(target).max)
        if -limit <= low and high <= limit:  # false for NaN
            return
        wide = rows.float()
        bad = ~(wide.abs() <= limit)
        where = [int(i) for i in bad.nonzero()[0]]
        value = float(wide[tuple(where)])
        where[0] += first
        remedy = "the weights are damaged, fetch or train them again"
        if math.isfinite(value):
            remedy = f"too large for {target}, load it with dtype='bfloat16' or 'float32'"
        raise CheckpointError(f"{self.path}: tensor {name!r}: expected finite numbers, got {value} at {where}; {remedy}")

    def same_bytes(self, name: str, other: TensorFile, other_name: str) -> bool:
        """Whether two tensors are stored alike, bit for bit."""
        mine, theirs = self.tensors[name], other.tensors[other_name]
        if mine.dtype != theirs.dtype or mine.end - mine.begin != theirs.end - theirs.begin:
            return False
        pairs = zip(self._pages(mine, _CHUNK_BYTES, 1), other._pages(theirs, _CHUNK_BYTES, 1), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)

    def _pages(self, info: TensorInfo, step: int, itemsize: int, digest: hashlib._Hash | None = None) -> Iterator[Tensor]:
        """The stored bytes in steps, each given back to the system once the next is asked for."""
        mapped = self._map
        assert mapped is not None, "the file is closed"
        for begin in range(info.begin, info.end, step):
            end = min(begin + step, info.end)
            if digest is not None:
                with memoryview(mapped) as view, view[begin:end] as part:
                    digest.update(part)
            raw = torch.frombuffer(mapped, dtype=torch.uint8, count=end - begin, offset=begin)
            # Offsets within a file may be odd; wider loads want aligned memory.
            yield raw if raw.data_ptr() % itemsize == 0 else raw.clone()
            del raw
            # All of the mapping: a fault maps a large folio whole, neighbours that were read before included.
            mapped.madvise(mmap.MADV_DONTNEED)


def _read_header(path: Path, prefix: bytes, read: Callable[[int], bytes], file_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if len(prefix) < 8:
        raise CheckpointError(
            f"{path}: not a safetensors file: expected 8 bytes of header length, got {len(prefix)}; the file is truncated"
        )
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise CheckpointError(f"{path}: not a safetensors file: a header of {length} bytes, expected at most {MAX_HEADER_BYTES}")
    if length + 8 > file_bytes:
        raise CheckpointError(f"{path}: truncated: a header of {length} bytes in a file of {file_bytes} bytes; fetch the file again")
    raw = read(length)
    if len(raw) != length:
        raise CheckpointError(f"{path}: truncated within the header; fetch the file again")
    return _parse_header(path, raw, file_bytes - 8 - length)


def _parse_header(path: Path, raw: bytes, data_bytes: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if raw.count(b"{") > MAX_TENSORS + 2 or raw.count(b"[") > 2 * MAX_TENSORS + 2:
        raise CheckpointError(f"{path}: header: expected at most {MAX_TENSORS} tensors")
    header = parse_object(raw, f"{path}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: header: expected strings under '__metadata__'")
    base = 8 + len(raw)
    infos = sorted((_entry(path, name, entry, base) for name, entry in header.items()), key=lambda info: (info.begin, info.end))
    expected = base
    previous = "the header"
    for info in infos:
        if info.begin != expected:
            what = "overlaps" if info.begin < expected else "leaves a hole after"
            raise CheckpointError(f"{path}: tensor {info.name!r}: its data {what} {previous!r}; the file is damaged")
        expected, previous = info.end, info.name
    if expected != base + data_bytes:
        what = "truncated" if expected > base + data_bytes else "too long"
        last = infos[-1].name if infos else "none"
        raise CheckpointError(
            f"{path}: {what}: the tensors end at byte {expected} (the last is {last!r}), the file at {base + data_bytes}; fetch it again"
        )
    return {info.name: info for info in infos}, metadata


def _entry(path: Path, name: str, entry: object, base: int) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: expected exactly 'dtype', 'shape' and 'data_offsets'")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    width = _WIDTHS.get(dtype) if isinstance(dtype, str) else None
    if width is None:
        raise CheckpointError(f"{where}: unknown dtype {ascii(dtype)[:80]}")
    if not _naturals(shape) or len(shape) > 8:
        raise CheckpointError(f"{where}: expected a shape of non-negative integers, got {ascii(shape)[:80]}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{where}: expected data_offsets [begin, end], got {ascii(offsets)[:80]}")
    num_bytes = math.prod(shape) * width
    if num_bytes != offsets[1] - offsets[0]:
        raise CheckpointError(
            f"{where}: {dtype} {shape} takes {num_bytes} bytes, its data_offsets {offsets} span {offsets[1] - offsets[0]}"
        )
    return TensorInfo(name, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _naturals(value: object) -> bool:
    # At most 63 bits: what no file has, and what keeps the product of a shape small.
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in value)

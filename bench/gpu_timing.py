"""Timing on a GPU: CUDA graphs, cold L2, medians of CUDA events; and the peaks that times are compared with, measured in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

_FLUSH_BYTES = 256 << 20
"""Written before every timed call: more than any L2 (an H200 has 50 MB, a B200 126 MB)."""


@dataclass(frozen=True, slots=True)
class Peaks:
    """What the device reaches, or, without one, what its data sheet says: bytes and FLOPs (bf16, tensor cores) a second.

    measured   False: numbers of a data sheet, so that what is derived from them is a prediction
    """

    bytes_per_second: float
    flops_per_second: float
    measured: bool

    def floor_us(self, num_bytes: int, flops: int) -> float:
        """The least time: the slower of memory and arithmetic."""
        return max(num_bytes / self.bytes_per_second, flops / self.flops_per_second) * 1e6


H100 = Peaks(3.35e12, 989e12, False)
"""NVIDIA H100 SXM data sheet: HBM3, bf16 without sparsity."""


class Timer:
    """Medians of single calls, in microseconds."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def measure(self, call: Callable[[], object], cold: bool = True) -> float:
        """Median time of a call, replayed as a CUDA graph where it can be captured; cold: after L2 was overwritten."""
        run = self._captured(call)
        times = []
        for _ in range(self.repeats):
            if cold:
                self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            run()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e3)
        return statistics.median(times)

    def _captured(self, call: Callable[[], object]) -> Callable[[], object]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # compiles, and warms the allocator up
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                call()
        except RuntimeError:  # a rival that waits for the device
            torch.cuda.synchronize()
            return call
        return graph.replay


def measure_peaks(timer: Timer) -> Peaks:
    """The best of a copy of 1 GiB, which reads and writes, and of a product of 8192 x 8192 matrices."""
    source = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    copy_us = timer.measure(lambda: target.copy_(source))
    a, b = (torch.randn((8192, 8192), device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product_us = timer.measure(lambda: a @ b, cold=False)
    return Peaks(2 * source.numel() / copy_us * 1e6, 2 * 8192**3 / product_us * 1e6, True)

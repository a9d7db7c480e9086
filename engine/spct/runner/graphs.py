"""Decode steps as captured graphs: one a bucket of rows, in buffers that stay, replayed for whatever tree is in them.

A step is captured when its bucket is first used, and again when a launch of its plan has changed. A row beyond the step's own is a copy
of the last one: it computes the same bits and writes them to the same slot, so that no scratch memory and no mask are needed. Steps
that do more than decode (prefill, reads, tokens that are forbidden for now) run as in `ModelRunner`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from spct.models.decoder import Decoder, ForwardBatch
from spct.models.kv import KVCache
from spct.runner.runner import Drawn, ModelRunner
from spct.scheduling.layout import Layout
from spct.scheduling.scheduler import Step
from spct.scheduling.sequence import Sequence
from spct_kernels import AttentionPlan
from spct_kernels.triton_attention_plan import to_device

MAX_BUCKET = 256
"""Rows of the largest bucket: beyond, a step's kernels take longer than their launches."""


class Graph(Protocol):
    """A captured step."""

    def replay(self) -> None:
        """Does again what was captured: the same launches with the same arguments, on what is in the buffers now."""


class Capture(Protocol):
    """What captures a step."""

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """(graph of what `run` launches, the tensor that it will write its result to); `run` may be called more than once."""


class CudaCapture:
    """Captures CUDA graphs, which share one pool of memory: a result has to be read before the next replay of any of them.

    Source: CUDA graphs in PyTorch, https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Graph, Tensor]:
        """Runs once to compile kernels and fill caches, beside the current stream as captures want it, then captures."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # torch leaves it untyped
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = run()
        self._pool = graph.pool()
        return graph, result


@dataclass(slots=True)
class _Inputs:
    """What a step reads besides weights, caches and plan, a row each: [B] on the device."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    drawn: Tensor

    @classmethod
    def allocate(cls, rows: int, device: torch.device) -> _Inputs:
        int64, int32, fp32 = torch.int64, torch.int32, torch.float32
        dtypes = (int64, int64, int32, fp32, int32, fp32, fp32, int64, int64)
        return cls(*(torch.zeros(rows, dtype=dtype, device=device) for dtype in dtypes))


class _Bucket:
    """The buffers of one number of rows, its plan, and its graph once it was captured."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        self.inputs = _Inputs.allocate(rows, device)
        self.plan: AttentionPlan | None = None
        self.captured_plan: AttentionPlan | None = None
        self.captured_version = -1
        self.graph: Graph | None = None
        self.result: Tensor | None = None

    @property
    def is_valid(self) -> bool:
        """The graph was captured with the plan and the launches of now."""
        if self.graph is None or self.plan is None or self.captured_plan is not self.plan:
            return False
        return self.captured_version == self.plan.version


class GraphedRunner(ModelRunner):
    """A `ModelRunner` whose decode steps are replays of captured graphs.

    capture       what captures them
    max_bucket    rows of the largest bucket; larger steps run as they are
    num_captures, num_replays   how often either happened

    Memory: a bucket's activations and one [B, V] fp32 scratch of the output head, shared between buckets by the captures' pool.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv: KVCache,
        *,
        backend: str,
        deterministic: bool,
        capture: Capture | None = None,
        max_bucket: int = MAX_BUCKET,
    ) -> None:
        super().__init__(decoder, kv, backend=backend, deterministic=deterministic)
        self.num_captures = self.num_replays = 0
        self._capture: Capture = capture or CudaCapture()
        self._max_bucket = max_bucket
        self._buckets: dict[int, _Bucket] = {}
        self._last: _Bucket | None = None

    @torch.inference_mode()
    def run(self, step: Step) -> Drawn:
        """As `ModelRunner.run`, by a graph where the step is nothing but one row and one draw of each sequence."""
        if step.layout is None or not is_decode(step, self._max_bucket):
            self._last = None
            return super().run(step)
        self._plan = self._params = None  # what a plain step kept for the next one is out of date from here on
        bucket = self._bucket(step.layout.num_rows)
        moved_on = step.is_advance and self._last is bucket
        self._last = None  # until this step has succeeded
        self._fill(bucket, step, moved_on=moved_on)
        if not bucket.is_valid and not self._captured(bucket):
            return super().run(step)
        assert bucket.graph is not None and bucket.result is not None
        bucket.graph.replay()
        self.num_replays += 1
        self._last = bucket
        return self._drawn(bucket.result, step.layout.num_rows)

    def _captured(self, bucket: _Bucket) -> bool:
        """Captures the step that is in the bucket. Where that fails, steps run as they are from here on: slower, not wrong."""
        try:
            bucket.graph, bucket.result = self._capture(lambda: self._decode(bucket))
        except RuntimeError as error:
            warnings.warn(f"spct: decode steps run without CUDA graphs, as capturing one failed: {error}", RuntimeWarning, stacklevel=2)
            self._max_bucket = 0
            return False
        assert bucket.plan is not None
        bucket.captured_plan, bucket.captured_version = bucket.plan, bucket.plan.version
        self.num_captures += 1
        return True

    def _bucket(self, num_rows: int) -> _Bucket:
        """The smallest bucket that holds the rows: powers of two."""
        rows = 1 << (num_rows - 1).bit_length()
        if rows not in self._buckets:
            self._buckets[rows] = _Bucket(rows, self.device)
        return self._buckets[rows]

    def _fill(self, bucket: _Bucket, step: Step, *, moved_on: bool) -> None:
        """Puts a step into the bucket's buffers. `moved_on`: the rows of the step before, one token further."""
        layout, inputs = step.layout, bucket.inputs
        assert layout is not None

        def put(target: Tensor, values: npt.ArrayLike) -> None:
            to_device(target, padded(np.asarray(values), bucket.rows))

        put(inputs.token_ids, layout.token_ids())
        put(inputs.positions, layout.row_position.astype(np.int64))
        put(inputs.slots, layout.row_slot)
        put(inputs.drawn, [len(sequence.token_ids) for sequence in step.draws])
        if moved_on:
            assert bucket.plan is not None
            bucket.plan.update(padded(layout.row_position, bucket.rows))
            return
        params = [sequence.group.sampling for sequence in step.draws]
        put(inputs.temperature, np.array([p.temperature for p in params], np.float32))
        put(inputs.top_k, np.array([p.top_k for p in params], np.int32))
        put(inputs.top_p, np.array([p.top_p for p in params], np.float32))
        put(inputs.min_p, np.array([p.min_p for p in params], np.float32))
        put(inputs.seed, np.array([sequence.noise_seed for sequence in step.draws], np.int64))
        self._assign(bucket, layout)

    def _assign(self, bucket: _Bucket, layout: Layout) -> None:
        """Puts the layout's tree into the bucket's plan; into a new one, twice as large, where it does not fit."""
        tree: dict[str, Any] = {
            "node_parent": layout.node_parent,
            "node_offset": layout.node_offset,
            "node_slots": layout.node_slots,
            "row_node": padded(layout.row_node, bucket.rows),
            "row_position": padded(layout.row_position, bucket.rows),
        }
        num_nodes, num_slots, plan = len(layout.node_parent), len(layout.node_slots), bucket.plan
        if plan is not None and num_nodes <= plan.max_nodes and num_slots <= plan.max_slots:
            plan.assign(**tree)
            return
        spec = self.decoder.spec
        bucket.plan = AttentionPlan.build(
            **tree,
            num_heads=spec.num_heads,
            num_kv_heads=spec.layers[0].kv.num_kv_heads,
            head_dim=spec.head_dim,
            deterministic=self.deterministic,
            max_rows=bucket.rows,
            max_nodes=2 * num_nodes,
            max_slots=2 * num_slots,
            device=self.device,
            fixed=True,
        )

    def _decode(self, bucket: _Bucket) -> Tensor:
        """The step itself, on the bucket's buffers alone: [3, B] fp64, token ids, log-probabilities and meta logits."""
        inputs, head = bucket.inputs, self.decoder.head
        assert bucket.plan is not None
        hidden = self.decoder.forward(ForwardBatch(inputs.token_ids, inputs.positions, inputs.slots, bucket.plan, self.kv))
        output = head.sample(
            hidden,
            temperature=inputs.temperature,
            top_k=inputs.top_k,
            top_p=inputs.top_p,
            min_p=inputs.min_p,
            seed=inputs.seed,
            position=inputs.drawn,
            backend=self.backend,
        )
        meta = torch.zeros_like(output.logprob) if output.meta is None else output.meta
        # One tensor, so that the host waits once; fp64 holds token ids and fp32 numbers exactly.
        return torch.stack((output.token.double(), output.logprob.double(), meta.double()))

    def _drawn(self, result: Tensor, num_rows: int) -> Drawn:
        """The step's one wait for the device."""
        token, logprob, meta = result[:, :num_rows].tolist()
        return Drawn([int(number) for number in token], logprob, None if self.decoder.head.meta_weight is None else meta)


def is_decode(step: Step, max_rows: int) -> bool:
    """Whether a step is one row and one draw of each sequence, in the rows' order, from any token of its vocabulary."""
    layout = step.layout
    if layout is None or step.reads or not 0 < layout.num_rows <= max_rows or step.draw_rows != list(range(layout.num_rows)):
        return False
    return all(_draws_freely(sequence) for sequence in step.draws)


def _draws_freely(sequence: Sequence) -> bool:
    """The sequence has begun (the last row of its prompt is kept for others, which a graph does not do), and no token is forbidden."""
    return len(sequence.token_ids) >= max(1, sequence.group.sampling.min_tokens)


def padded(values: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """The values, followed by copies of the last one up to `rows`."""
    return np.concatenate((values, np.repeat(values[-1:], rows - len(values))))

"""From tensors in files to a decoder: shapes checked for the whole model first, then one parameter at a time.

Peak memory is the weights' own size and a few MiB of file: rows go from the mapped file straight into the packed matrices, and
each page is given back once it has been copied.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from spct.checkpoint.adapter import LowRank
from spct.checkpoint.dtypes import DtypePlan, scheme_of
from spct.checkpoint.shards import Shards
from spct.errors import CheckpointError
from spct.layers.decoder_layer import LayerWeights
from spct.models.decoder import DecoderWeights
from spct.models.families import family_named
from spct.models.head import OutputHead
from spct.models.parameters import Parameter, Piece, parameters
from spct.models.spec import ModelSpec
from spct_kernels.packed import SCHEMES, PackedLinear, packed_bytes

# Buffers that older versions of transformers saved beside the weights; each is computed from config.json.
_DERIVED = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclass(frozen=True)
class LoadedWeights:
    """A decoder's weights and the hash of the stored bytes that they came from."""

    weights: DecoderWeights
    digest: str


def stored_dtype(spec: ModelSpec, shards: Shards) -> torch.dtype:
    """The dtype of the checkpoint's matrices: the first layer's first, as files mix fp32 norms with 16-bit matrices.

    Raises: CheckpointError if it is no float dtype.
    """
    for parameter in parameters(spec):
        if parameter.kind == "linear":
            name = parameter.pieces[0].name
            return shards.file_of[name].float_dtype(name)
    raise AssertionError("every layer has matrices")


def check_tensors(spec: ModelSpec, shards: Shards, extra: Mapping[str, tuple[int, ...]] | None = None) -> None:
    """Compare the names and shapes in the files with those that the model needs.

    extra   names and shapes of tensors beside the decoder's, which must be there too

    Tensors that are ignored: rotary frequencies, which config.json determines, and the LM head of a model with tied
    embeddings, which must then equal the embedding.

    Raises: CheckpointError naming the file and the tensor if one is missing, misshapen, of no float dtype, or not expected.
    """
    family = family_named(spec.family)
    expected = {piece.name: piece.shape for parameter in parameters(spec) for piece in parameter.pieces} | dict(extra or {})
    found = shards.file_of
    missing = [name for name in expected if name not in found]
    if missing:
        where = next(iter(found.values())).path if found else "the checkpoint"
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"{where}: tensor {missing[0]!r}{more} is missing; config.json asks for {len(expected)} tensors, {len(found)} are there"
        )
    head = family.tensors["lm_head"]
    for name, file in found.items():
        if name not in expected:
            if _DERIVED.fullmatch(name) or (name == head and spec.tied_embeddings):
                continue
            raise CheckpointError(
                f"{file.path}: tensor {name!r} is not expected by {family.architecture}; the file and config.json disagree"
            )
        shape = file.tensors[name].shape
        if shape != expected[name]:
            raise CheckpointError(f"{file.path}: tensor {name!r}: config.json asks for shape {list(expected[name])}, got {list(shape)}")
        file.float_dtype(name)
    if spec.tied_embeddings and head in found:
        _check_tied(spec, shards, head, family.tensors["embedding"])


def _check_tied(spec: ModelSpec, shards: Shards, head: str, embedding: str) -> None:
    a, b = shards.file_of[head], shards.file_of[embedding]
    if a.tensors[head].shape != b.tensors[embedding].shape or not a.same_bytes(head, b, embedding):
        raise CheckpointError(
            f"{a.path}: tensor {head!r} differs from {embedding!r}, and config.json says tie_word_embeddings; set it to false to use both"
        )


class WeightReader:
    """Reads the parameters of one model from its files, straight into the memory where they stay.

    scan     refuse NaN and Inf; always where the plan quantises
    deltas   tensor name -> what an adapter adds to it
    """

    def __init__(self, shards: Shards, plan: DtypePlan, device: torch.device, scan: bool, deltas: Mapping[str, LowRank]) -> None:
        self.shards = shards
        self.plan = plan
        self.device = device
        self.scan = scan or plan.quantised
        self.deltas = deltas
        self.hash = hashlib.sha256()

    def read(self, parameter: Parameter) -> Tensor | PackedLinear:
        """One parameter in the format that it is kept in, its pieces joined.

        Raises: CheckpointError for a number that isn't finite, unless the scan is off.
        """
        if parameter.kind == "linear":
            return self._packed(parameter)
        target = self._joined(parameter, self._dtype(parameter))
        if parameter.offset:
            target += parameter.offset
        return target

    def _packed(self, parameter: Parameter) -> PackedLinear:
        scheme = self._scheme(parameter)
        packed = PackedLinear.empty((parameter.shape[0], parameter.shape[1]), scheme, self.device, parameter.shard)
        # Whole panels at a time; int8 has a scale per output, so a matrix read in parts is the same as one read whole.
        ends = [piece.start + piece.shape[0] for piece in parameter.pieces]
        if all(end % packed.panel == 0 for end in ends[:-1]):
            for piece in parameter.pieces:
                for start, rows in self._rows(piece, packed.dtype, packed.panel):
                    packed.write(start, rows)
        else:
            # A piece that begins within a panel: joined first, so that one parameter is held twice for a moment.
            packed.replace(self._joined(parameter, packed.dtype))
        return packed

    def _scheme(self, parameter: Parameter) -> str:
        planned = self.plan.head if parameter.key == "lm_head" else self.plan.scheme
        return planned if SCHEMES[planned] == torch.int8 else scheme_of(self._dtype(parameter))

    def _dtype(self, parameter: Parameter) -> torch.dtype:
        if parameter.kind == "vector":
            return torch.float32
        if not self.plan.as_stored:
            return self.plan.weights
        stored = [self.shards.file_of[piece.name].float_dtype(piece.name) for piece in parameter.pieces]
        return functools.reduce(torch.promote_types, stored)

    def _joined(self, parameter: Parameter, dtype: torch.dtype) -> Tensor:
        target = torch.empty(parameter.shape, dtype=dtype, device=self.device)
        for piece in parameter.pieces:
            for start, rows in self._rows(piece, dtype, 1):
                target[start : start + rows.shape[0]].copy_(rows)
        return target

    def _rows(self, piece: Piece, dtype: torch.dtype, multiple: int) -> Iterator[tuple[int, Tensor]]:
        """A tensor's rows, with what the adapter adds, checked, as pairs of the parameter's row and the rows from there on."""
        file = self.shards.file_of[piece.name]
        self.hash.update(f"{piece.name}:{file.tensors[piece.name].dtype}:{piece.shape};".encode())
        delta = self.deltas.get(piece.name)
        for first, rows in file.chunks(piece.name, multiple=multiple, digest=self.hash):
            if delta is not None:
                rows = delta.added_to(rows, first)
            if self.scan:
                file.check_numbers(piece.name, rows, first, dtype)
            yield piece.start + first, rows


def weights_bytes(spec: ModelSpec, plan: DtypePlan, device: torch.device) -> int:
    """Memory that a model's weights take once loaded; matrices that are kept as stored count in the dtype of most."""
    total = 0
    for parameter in parameters(spec):
        if parameter.kind == "linear":
            scheme = plan.head if parameter.key == "lm_head" else plan.scheme
            total += packed_bytes((parameter.shape[0], parameter.shape[1]), scheme, device)
        else:
            dtype = torch.float32 if parameter.kind == "vector" else plan.weights
            total += math.prod(parameter.shape) * dtype.itemsize
    return total


def read_weights(spec: ModelSpec, reader: WeightReader) -> LoadedWeights:
    """Read and pack every parameter.

    Raises: CheckpointError as `WeightReader.read`.
    """
    own: dict[str, object] = {}
    layers: list[dict[str, object]] = [{} for _ in spec.layers]
    for parameter in parameters(spec):
        (own if parameter.layer is None else layers[parameter.layer])[parameter.key] = reader.read(parameter)
        if parameter.kind == "linear":
            return_freed_memory()
    return LoadedWeights(assemble(spec, own, layers, reader.plan.activations), reader.hash.hexdigest()[:32])


def return_freed_memory() -> None:
    """Hand freed temporaries back to the system: of those of a quantised model, glibc would keep some 100 MiB for good."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def assemble(spec: ModelSpec, own: dict[str, object], layers: list[dict[str, object]], activations: torch.dtype) -> DecoderWeights:
    """Put parameters, keyed as in `Parameter.key`, into the decoder's weights."""
    final_norm, lm_head = own["final_norm"], own["lm_head"]
    assert isinstance(final_norm, Tensor)
    assert isinstance(lm_head, PackedLinear)
    embedding = own.get("embedding", lm_head)
    assert isinstance(embedding, Tensor | PackedLinear)
    head = OutputHead(final_norm, spec.norm_eps, lm_head, spec.final_softcap)
    return DecoderWeights(
        embedding=embedding,
        layers=[LayerWeights(**layer) for layer in layers],  # type: ignore[arg-type]  # values of one dict differ in type
        head=head,
        activation_dtype=activations,
    )

"""New weights for a live model, by the checkpoint's own tensor names.

A mapping is checked whole (names, shapes, dtypes, numbers) before anything changes. A stream can't be: it is checked tensor by
tensor, and one that ends early leaves the decoder marked incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from spct.checkpoint.load import LoadedModel
from spct.errors import CheckpointError
from spct.models.families import family_named
from spct.models.parameters import Parameter, parameters
from spct_kernels import PackedLinear

META_WEIGHT = "meta_head.weight"
META_BIAS = "meta_head.bias"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def replace_weights(model: LoadedModel, named_tensors: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], *, scan: bool = True) -> None:
    """Replace all weights of a model.

    named_tensors   the checkpoint's own names and shapes; any float dtype and device. The LM head of a model with tied embeddings
                    may be among them and is ignored; `meta_head.weight` [E] and `meta_head.bias` [1] may be where there is a meta head
    scan            refuse NaN and Inf; always where the weights are in int8

    Invariant: a mapping that is refused changes nothing; after a stream that fails midway `decoder.complete` is False until a
    full replacement succeeds.

    Cost: scratch memory for the parameters of which some tensors have come and some have not.

    Raises: CheckpointError naming the tensor that is missing, misshapen, unknown, repeated or not finite.
    """
    replacement = _Replacement(model, scan)
    decoder = model.decoder
    if isinstance(named_tensors, Mapping):
        for name, tensor in named_tensors.items():
            replacement.check(name, tensor)
        absent = [name for name in replacement.missing() if name not in named_tensors]
        if absent:
            raise CheckpointError(f"weights: tensor {absent[0]!r} is missing, one of {len(absent)}; give all of them, nothing was changed")
        pairs: Iterable[tuple[str, Tensor]] = named_tensors.items()
    else:
        pairs = replacement.checked(named_tensors)
    for name, tensor in pairs:
        decoder.complete = False
        replacement.accept(name, tensor)
    absent = replacement.missing()
    if absent:
        raise CheckpointError(f"weights: the stream ended without tensor {absent[0]!r}, one of {len(absent)}; load all weights again")
    decoder.complete = True


class _Replacement:
    """Collects the tensors of one replacement and installs a parameter as soon as all its pieces are there."""

    def __init__(self, model: LoadedModel, scan: bool) -> None:
        self.decoder = model.decoder
        self.scan = scan or model.dtypes.quantised
        spec = model.spec
        self.owner = {piece.name: parameter for parameter in parameters(spec) for piece in parameter.pieces}
        self.shapes = {piece.name: piece.shape for parameter in parameters(spec) for piece in parameter.pieces}
        self.tied_head = family_named(spec.family).tensors["lm_head"] if spec.tied_embeddings else None
        if self.decoder.head.meta_weight is not None:
            self.shapes |= {META_WEIGHT: (spec.hidden_dim,), META_BIAS: (1,)}
        self.begun: dict[tuple[int | None, str], Tensor] = {}
        self.seen: set[str] = set()

    def check(self, name: object, tensor: object) -> None:
        """Refuse a tensor that doesn't belong here.

        Raises: CheckpointError.
        """
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"weights: expected pairs of name and tensor, got {type(name).__name__} and {type(tensor).__name__}")
        if name == self.tied_head:
            return
        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"weights: tensor {name!r} is not one of this model's; expected the names of its checkpoint")
        if name in self.seen:
            raise CheckpointError(f"weights: tensor {name!r} came twice")
        if tuple(tensor.shape) != shape or tensor.dtype not in _DTYPES or tensor.is_meta or tensor.layout is not torch.strided:
            got = f"{tensor.dtype} {list(tensor.shape)}"
            raise CheckpointError(f"weights: tensor {name!r}: expected floats of shape {list(shape)}, got {got}")
        if self.scan:
            low, high = (float(bound) for bound in torch.aminmax(tensor.detach()))
            limit = torch.finfo(self._dtype(name)).max
            # NaN fails every comparison.
            if not (-limit <= low and high <= limit):
                raise CheckpointError(f"weights: tensor {name!r}: expected finite numbers up to {limit:.6g}, got {low} to {high}")

    def checked(self, stream: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """Check each tensor of a stream just before it is taken."""
        for name, tensor in stream:
            self.check(name, tensor)
            yield name, tensor

    def missing(self) -> list[str]:
        """Names that have not come yet; the meta head may stay as it is."""
        return [name for name in self.shapes if name not in self.seen and name not in (META_WEIGHT, META_BIAS)]

    @torch.no_grad()
    def accept(self, name: str, tensor: Tensor) -> None:
        """Take a checked tensor; install its parameter once complete."""
        if name == self.tied_head:
            return
        self.seen.add(name)
        head = self.decoder.head
        if name == META_WEIGHT:
            assert head.meta_weight is not None
            head.meta_weight.copy_(tensor)
        elif name == META_BIAS:
            head.meta_bias = float(tensor)
        else:
            self._place(name, tensor)

    def _dtype(self, name: str) -> torch.dtype:
        if name not in self.owner:
            return torch.float32
        present = self._present(self.owner[name])
        return present.dtype

    def _present(self, parameter: Parameter) -> Tensor | PackedLinear:
        weights = self.decoder.weights
        owner: object = weights if parameter.layer is None else weights.layers[parameter.layer]
        if parameter.layer is None and parameter.key != "embedding":
            owner = weights.head
        present = getattr(owner, "norm_weight" if parameter.key == "final_norm" else parameter.key)
        assert isinstance(present, Tensor | PackedLinear)
        return present

    def _place(self, name: str, tensor: Tensor) -> None:
        # Copied at once: a stream may reuse one buffer for every tensor that it yields.
        parameter = self.owner[name]
        key = (parameter.layer, parameter.key)
        if key not in self.begun:
            self.begun[key] = torch.empty(parameter.shape, dtype=self._dtype(name), device=self.decoder.device)
        joined = self.begun[key]
        piece = next(piece for piece in parameter.pieces if piece.name == name)
        joined[piece.start : piece.start + piece.shape[0]].copy_(tensor)
        if all(piece.name in self.seen for piece in parameter.pieces):
            self._install(parameter, self.begun.pop(key))

    def _install(self, parameter: Parameter, joined: Tensor) -> None:
        if parameter.offset:
            joined += parameter.offset
        # In the memory of the old weights, so that a captured step and whoever shares the matrix see the new ones.
        present = self._present(parameter)
        if isinstance(present, PackedLinear):
            present.replace(joined)
        else:
            present.copy_(joined)

"""KV memory: one pair of tensors per layer, addressed by slot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spct.models.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class KVCache:
    """Keys and values of every layer; slot s of each belongs to the same token.

    k   per layer [num_slots, K, D], rotated
    v   per layer [num_slots, K, Dv]
    """

    k: list[Tensor]
    v: list[Tensor]

    @classmethod
    def allocate(cls, spec: ModelSpec, num_slots: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> KVCache:
        """Reserve `num_slots` slots, left uninitialised: slots that no row sees may hold anything.

        Cost: num_slots * bytes_per_slot(spec, dtype) bytes.
        """
        k, v = [], []
        for layer in spec.layers:
            kv = layer.kv
            k.append(torch.empty(num_slots, kv.num_kv_heads, kv.key_dim, dtype=dtype, device=device))
            v.append(torch.empty(num_slots, kv.num_kv_heads, kv.value_dim, dtype=dtype, device=device))
        return cls(k, v)

    @property
    def num_slots(self) -> int:
        """Tokens that fit."""
        return self.k[0].shape[0]


def bytes_per_slot(spec: ModelSpec, dtype: torch.dtype) -> int:
    """KV memory of one token over all layers, in bytes."""
    return sum(layer.kv.elements_per_token for layer in spec.layers) * dtype.itemsize

"""LoRA adapters (Hu et al. 2021), merged into the weights on load: W + scale * B A.

The folder is PEFT's: `adapter_config.json` and `adapter_model.safetensors`. What would change the formula (DoRA, biases, replaced
modules, per-module ranks) is refused rather than left out.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spct.checkpoint.fields import Fields
from spct.checkpoint.folder import Folder
from spct.checkpoint.jsonfile import read_object
from spct.checkpoint.tensorfile import TensorFile
from spct.errors import CheckpointError, ConfigError
from spct.models.parameters import parameters
from spct.models.spec import ModelSpec

_NAME = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
_MUST_BE_OFF = (
    ("use_dora", "DoRA adapters aren't supported"),
    ("use_qalora", "QALoRA adapters aren't supported"),
    ("modules_to_save", "adapters that replace whole modules aren't supported"),
    ("trainable_token_indices", "adapters that train single tokens aren't supported"),
    ("rank_pattern", "ranks that differ by module aren't supported"),
    ("alpha_pattern", "scales that differ by module aren't supported"),
    ("fan_in_fan_out", "transposed layers aren't supported"),
    ("lora_bias", "adapters with biases aren't supported"),
    ("megatron_config", "Megatron adapters aren't supported"),
    ("layer_replication", "replicated layers aren't supported"),
    ("auto_mapping", "it asks for code, which is never run"),
)
_MERGE = "merge it into the base model with PEFT's merge_and_unload and save_pretrained, then load that folder"


@dataclass(frozen=True)
class LowRank:
    """What an adapter adds to one matrix: scale * b @ a.

    a   [r, I] fp32
    b   [O, r] fp32
    """

    a: Tensor
    b: Tensor
    scale: float

    def added_to(self, rows: Tensor, first: int) -> Tensor:
        """Rows of the matrix with the product added, in fp32, so that they are rounded once.

        rows      [n, I] any float dtype, on the CPU: those from row `first` on
        returns   [n, I] fp32
        """
        product = self.b[first : first + rows.shape[0]] @ self.a
        return rows.float() + product.mul_(self.scale)


@dataclass(frozen=True)
class Adapter:
    """An adapter's matrices by the name of the base tensor, and the hash of its file."""

    deltas: dict[str, LowRank]
    digest: bytes


def read_adapter(path: str | os.PathLike[str], spec: ModelSpec) -> Adapter:
    """Read and check a LoRA folder against the model that it shall be merged into.

    Raises: ConfigError if there is no such folder; CheckpointError naming file and key or tensor for anything unsupported.
    """
    folder_path = Path(path).expanduser()
    if not folder_path.is_dir():
        raise ConfigError(f"adapter {os.fspath(path)!r}: no such folder")
    real = folder_path.resolve()
    folder = Folder(real, real)
    config = folder.required("adapter_config.json", "expected a LoRA folder as PEFT saves it")
    scale, rank = _scale(Fields(read_object(config), str(config)))
    if folder.file("adapter_model.safetensors") is None and folder.file("adapter_model.bin") is not None:
        raise CheckpointError(f"{real / 'adapter_model.bin'}: pickled weights; save the adapter with safe_serialization=True")
    file_path = folder.required("adapter_model.safetensors", "expected a LoRA folder as PEFT saves it")
    matrices = {piece.name: piece.shape for parameter in parameters(spec) if parameter.kind == "linear" for piece in parameter.pieces}
    digest = hashlib.sha256(f"{scale!r};".encode())
    with TensorFile(file_path) as file:
        sides = {name: _side(file, name, matrices, rank) for name in sorted(file.tensors)}
        loaded: dict[str, dict[str, Tensor]] = {}
        for name, (target, side) in sides.items():
            tensor = torch.empty(file.tensors[name].shape)
            file.copy_into(name, tensor, digest=digest)
            loaded.setdefault(target, {})[side] = tensor
    for target, pair in loaded.items():
        if set(pair) != {"A", "B"}:
            raise CheckpointError(f"{file_path}: {target!r} has lora_{next(iter(pair))} alone; expected lora_A and lora_B")
    if not loaded:
        raise CheckpointError(f"{file_path}: no LoRA tensors; expected names such as 'base_model.model...q_proj.lora_A.weight'")
    return Adapter({target: LowRank(pair["A"], pair["B"], scale) for target, pair in loaded.items()}, digest.digest())


def _scale(fields: Fields) -> tuple[float, int]:
    if fields.raw("peft_type", None) != "LORA":
        fields.fail("peft_type", "'LORA'", _MERGE)
    for key, reason in _MUST_BE_OFF:
        if fields.raw(key, None) not in (None, False, [], {}, ""):
            fields.fail(key, "nothing", f"{reason}; {_MERGE}")
    if fields.raw("bias", "none") != "none":
        fields.fail("bias", "'none'", _MERGE)
    rank = fields.integer("r", 1, 1 << 16)
    alpha = fields.real("lora_alpha", -1e9, 1e9)
    return alpha / (math.sqrt(rank) if fields.boolean("use_rslora", False) else rank), rank


def _side(file: TensorFile, name: str, matrices: dict[str, tuple[int, ...]], rank: int) -> tuple[str, str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise CheckpointError(f"{file.path}: tensor {name!r}: expected 'base_model.model.<module>.lora_A.weight' or lora_B; {_MERGE}")
    target = f"{match['module']}.weight"
    if target not in matrices:
        raise CheckpointError(f"{file.path}: tensor {name!r}: the model has no matrix {target!r} that an adapter could change")
    rows, columns = matrices[target]
    expected = (rank, columns) if match["side"] == "A" else (rows, rank)
    if file.tensors[name].shape != expected:
        raise CheckpointError(f"{file.path}: tensor {name!r}: expected shape {list(expected)}, got {list(file.tensors[name].shape)}")
    return target, match["side"]

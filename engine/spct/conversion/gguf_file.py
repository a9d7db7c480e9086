"""A GGUF file (github.com/ggml-org/ggml, docs/gguf.md): opened, checked to be whole, its metadata and tensors by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spct.checkpoint.fields import Fields
from spct.errors import CheckpointError, ConfigError

EXTRA = "install the extra: pip install 'spct[gguf]'"
EMBEDDING = "token_embd.weight"
_MAGIC = b"GGUF"


@dataclass(frozen=True)
class GGUFFile:
    """One model in one file.

    architecture   llama.cpp's name, such as "qwen2"
    metadata       the numbers, strings and switches of the file under their keys; arrays are in `arrays`
    arrays         the lists, still unread: `array`
    tensors        name -> the library's tensor, unread until `values`
    """

    path: Path
    architecture: str
    metadata: Fields
    arrays: dict[str, Any]
    tensors: dict[str, Any]

    def array(self, key: str) -> list[Any]:
        """A list of the metadata, [] where there is none."""
        return list(self.arrays[key].contents()) if key in self.arrays else []

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor in torch's order: the file counts dimensions from the one that moves fastest."""
        return tuple(reversed(self.tensors[name].shape.tolist()))

    def values(self, name: str) -> torch.Tensor:
        """One tensor, dequantised to fp32.

        Raises: CheckpointError if its number format can't be read.
        """
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except (NotImplementedError, ValueError) as error:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} of type {tensor.tensor_type.name} can't be dequantised ({error})"
            ) from None
        return torch.from_numpy(values.astype("float32", copy=True)).reshape(self.shape(name))


def read_gguf(path: Path) -> GGUFFile:
    """Open a file and read its header; tensors stay on the disk.

    Raises: ConfigError if the path is no file, or the library `gguf` is missing; CheckpointError if it is no GGUF file, cut short,
    malformed, one part of several, or of the other byte order.
    """
    _check_magic(path)
    try:
        from gguf import GGUFReader, GGUFValueType
    except ImportError:
        raise ConfigError(f"GGUF files are read by the library 'gguf', which is not installed; {EXTRA}") from None
    try:
        reader = GGUFReader(path)
    except Exception as error:  # the library indexes into what is there: cut short, a file raises whatever comes first
        raise CheckpointError(
            f"{path}: the header of the GGUF file is cut short or damaged ({type(error).__name__}: {error}); fetch the file again"
        ) from None
    if reader.byte_order != "I":
        raise CheckpointError(f"{path}: numbers of the other byte order; convert the file with llama.cpp's gguf_convert_endian.py")
    size = path.stat().st_size
    for tensor in reader.tensors:
        if tensor.data_offset + tensor.n_bytes > size:
            raise CheckpointError(
                f"{path}: cut short: tensor {tensor.name!r} ends at byte {tensor.data_offset + tensor.n_bytes}, the file has {size}; "
                "fetch the file again"
            )
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    is_array = {name: field.types[:1] == [GGUFValueType.ARRAY] for name, field in fields.items()}
    try:
        values = {name: field.contents() for name, field in fields.items() if not is_array[name]}
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: metadata that is no UTF-8 ({error}); fetch the file again") from None
    metadata = Fields(values, str(path))
    architecture = metadata.optional_string("general.architecture")
    if not architecture:
        raise CheckpointError(f"{path}: no 'general.architecture' in the metadata, so that nothing says what model this is")
    if metadata.integer("split.count", 0, 1 << 16, 0) > 1:
        raise CheckpointError(f"{path}: one part of several; join them first: llama-gguf-split --merge FIRST_PART.gguf WHOLE.gguf")
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if EMBEDDING not in tensors:
        raise CheckpointError(f"{path}: tensor {EMBEDDING!r} is missing; expected a whole model")
    arrays = {name: field for name, field in fields.items() if is_array[name]}
    return GGUFFile(path, architecture, metadata, arrays, tensors)


def _check_magic(path: Path) -> None:
    if not path.exists():
        raise ConfigError(f"{path}: no such file; expected a GGUF file")
    if not path.is_file():
        raise ConfigError(f"{path}: expected a GGUF file, got a folder or a device")
    with path.open("rb") as file:
        start = file.read(len(_MAGIC))
    if start != _MAGIC:
        raise CheckpointError(f"{path}: no GGUF file: expected to begin with {_MAGIC!r}, got {start!r}")

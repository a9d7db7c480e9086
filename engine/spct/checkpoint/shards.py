"""The weights of a folder, one file or many: found, validated and addressed by tensor name."""

from __future__ import annotations

import contextlib
from types import TracebackType

from spct.checkpoint.folder import Folder
from spct.checkpoint.jsonfile import read_object
from spct.checkpoint.tensorfile import TensorFile
from spct.errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.bin.index.json")
_MAX_INDEX_BYTES = 64 << 20

_CONVERT = (
    "only safetensors weights are read, as unpickling runs code; convert the folder once, on a machine where you trust the file: "
    "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('FOLDER').save_pretrained('NEW')\""
)


class Shards:
    """Every safetensors file of a checkpoint, open and with a valid header. A context manager.

    file_of   tensor name -> the file that holds it

    Raises: CheckpointError if there are no weights, only pickled ones, or if an index and its files disagree.
    """

    def __init__(self, folder: Folder) -> None:
        self.file_of: dict[str, TensorFile] = {}
        self._stack = contextlib.ExitStack()
        try:
            self._open(folder)
        except CheckpointError:
            self._stack.close()
            raise

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    def _open(self, folder: Folder) -> None:
        single = folder.file(SINGLE)
        if single is not None:
            file = self._stack.enter_context(TensorFile(single))
            self.file_of = dict.fromkeys(file.tensors, file)
            return
        index = folder.file(INDEX)
        if index is None:
            pickles = sorted(path.name for pattern in _PICKLES for path in folder.path.glob(pattern))
            if pickles:
                raise CheckpointError(f"{folder.path / pickles[0]}: pickled weights; {_CONVERT}")
            raise CheckpointError(f"{folder.path}: no weights: expected {SINGLE}, or {INDEX} and its files")
        self._open_index(folder, index.name)

    def _open_index(self, folder: Folder, index: str) -> None:
        path = folder.path / index
        weight_map = read_object(path, _MAX_INDEX_BYTES).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{path}: expected an object under 'weight_map'")
        opened: dict[str, TensorFile] = {}
        for tensor, name in weight_map.items():
            if not isinstance(name, str) or not name.endswith(".safetensors"):
                raise CheckpointError(f"{path}: tensor {tensor!r}: expected the name of a .safetensors file, got {ascii(name)[:200]}")
            if name not in opened:
                try:
                    shard = folder.required(name, f"{index} lists it for tensor {tensor!r}; fetch the missing file")
                except CheckpointError as error:
                    raise CheckpointError(f"{path}: tensor {tensor!r}: {error}") from None
                opened[name] = self._stack.enter_context(TensorFile(shard))
            if tensor not in opened[name].tensors:
                raise CheckpointError(f"{folder.path / name}: tensor {tensor!r} is missing, {index} says that it is there")
            self.file_of[tensor] = opened[name]
        for name, file in opened.items():
            for tensor in file.tensors:
                if self.file_of.get(tensor) is not file:
                    raise CheckpointError(f"{folder.path / name}: tensor {tensor!r} is not listed for this file by {index}")

"""A GGUF file -> a Hugging Face folder, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from spct.checkpoint.config import read_spec
from spct.checkpoint.dtypes import parse_dtype
from spct.conversion.gguf_config import family_of, read_config, read_generation_config
from spct.conversion.gguf_file import GGUFFile, read_gguf
from spct.conversion.gguf_tokenizer import write_tokenizer
from spct.conversion.gguf_weights import write_weights
from spct.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Converted:
    """What was written: the class that transformers knows the model by, its parameters, and the bytes of its weights."""

    architecture: str
    num_parameters: int
    num_bytes: int


def convert_gguf(
    source: str | os.PathLike[str], output: str | os.PathLike[str], *, dtype: str = "fp32", overwrite: bool = False
) -> Converted:
    """Write the model of a GGUF file (llama.cpp's format) as a folder that the engine, transformers and others load.

    source      the file; weights of any of its formats are dequantised
    output      the folder; missing or empty, else `overwrite`
    dtype       of the weights: "fp32" keeps every value of the file, "bf16" and "fp16" round to half the size
    overwrite   replace a folder that holds a model

    The folder is written beside `output` under another name and renamed when it is complete, so that a run that was killed leaves
    nothing that looks whole.

    Raises: ConfigError if an option, the output or a missing library stands in the way; CheckpointError, naming file and key or
    tensor, if the file is none, cut short, of another architecture, or holds what the folder could not say.
    """
    source, output = Path(source), Path(output)
    target_dtype = parse_dtype(dtype)
    if target_dtype is None:
        raise ConfigError(f"dtype: expected fp32, bf16 or fp16, got {dtype!r}")
    _check_output(source, output, overwrite)
    file = read_gguf(source)
    partial = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.resolve().parent))
    try:
        partial.chmod(0o777 & ~_umask())
        converted = write_model_folder(file, partial, target_dtype)
        _put(partial, output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return converted


def write_model_folder(file: GGUFFile, folder: Path, dtype: torch.dtype) -> Converted:
    """Write a file's model into an existing folder, piece by piece: not atomic, `convert_gguf` is.

    Raises: ConfigError, CheckpointError as `convert_gguf`.
    """
    family = family_of(file)
    config = read_config(file, family, str(dtype).removeprefix("torch."))
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", read_generation_config(file))
    # The engine's own reader goes over it: what it would refuse later is refused before gigabytes are written.
    spec = read_spec(folder / "config.json")
    write_tokenizer(file, folder)
    num_parameters = write_weights(file, spec, folder, dtype)
    return Converted(family.architecture, num_parameters, num_parameters * dtype.itemsize)


def _check_output(source: Path, output: Path, overwrite: bool) -> None:
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"{output}: the folder around it does not exist")
    if not output.exists():
        return
    if not output.is_dir() or output.is_symlink():
        raise ConfigError(f"{output}: expected a folder to write, or nothing there, got a file or a link")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise ConfigError(f"{output}: exists and is not empty; name another folder, or replace it with --overwrite")
    if not (output / "config.json").is_file():
        raise ConfigError(f"{output}: is no model folder (no config.json), so that --overwrite does not replace it")
    if source.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"{output}: holds {source.name}, which replacing it would delete; name another folder")


def _put(partial: Path, output: Path) -> None:
    """Give the complete folder its name. An older one leaves its name first and is deleted last."""
    for path in partial.rglob("*"):
        path.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner may read
        _flush(path)
    output = output.resolve()
    old = None
    if output.exists() and any(output.iterdir()):
        old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
        os.rename(output, old)
    os.rename(partial, output)
    _flush(output.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")

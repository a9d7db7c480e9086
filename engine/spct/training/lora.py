"""LoRA adapters (Hu et al. 2021) through peft, which is optional: attached, continued, merged for the engine, saved."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from spct.errors import CheckpointError, ConfigError

# The matrices of every supported family, by their modules' names; the engine merges adapters of exactly these.
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FILES = ("adapter_model.safetensors", "adapter_config.json")


def attach(model: nn.Module, rank: int, alpha: float, seed: int) -> Any:
    """Put fresh adapters (which change nothing yet) on every matrix of the layers; return peft's model around `model`.

    Raises: ConfigError if peft is not installed.
    """
    peft = _peft()
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), lora_dropout=0.0, bias="none", task_type="CAUSAL_LM")
    return peft.get_peft_model(model, settings)


def continue_adapter(model: nn.Module, folder: Path, *, trainable: bool) -> Any:
    """Put a saved adapter on `model`, to be trained on or frozen.

    Raises: ConfigError if peft is not installed or there is no such folder; CheckpointError if it can't be read.
    """
    peft = _peft()
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"adapter {str(folder)!r}: expected a LoRA folder with adapter_config.json")
    try:
        return peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: peft can't read this adapter: {str(error).splitlines()[0]}") from None


@torch.no_grad()
def merged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a model with its adapters merged in, by the checkpoint's own names.

    Cost: one matrix at a time is computed; the model stays as it is.
    """
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        module, _, leaf = name.rpartition(".")
        if not module.endswith(".base_layer"):
            yield name, parameter.detach()
            continue
        module = module.removesuffix(".base_layer")
        merged = parameter.detach()
        if leaf == "weight":
            layer: Any = model.get_submodule(module)
            # fp32, as the engine merges on load: the sum is rounded once.
            merged = merged.float() + layer.get_delta_weight("default").float()
        yield f"{module}.{leaf}", merged


def save_adapter(model: Any, folder: Path) -> None:
    """Write the adapter in peft's layout, each file atomically, the settings last."""
    with TemporaryDirectory(dir=folder) as beside:
        model.save_pretrained(beside, safe_serialization=True)
        for name in FILES:
            (Path(beside) / name).replace(folder / name)


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ConfigError("--lora, --adapter: expected the package peft, which is not installed; install the extra spct[train]") from None

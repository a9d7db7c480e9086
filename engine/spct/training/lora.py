"""LoRA adapters (Hu et al. 2021) through peft, which is optional: attached, continued, merged for the engine, saved."""

from __future__ import annotations

import functools
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
    return _fused(peft.get_peft_model(model, settings))


def continue_adapter(model: nn.Module, folder: Path, *, trainable: bool) -> Any:
    """Put a saved adapter on `model`, to be trained on or frozen.

    Raises: ConfigError if peft is not installed or there is no such folder; CheckpointError if it can't be read.
    """
    peft = _peft()
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"adapter {str(folder)!r}: expected a LoRA folder with adapter_config.json")
    try:
        return _fused(peft.PeftModel.from_pretrained(model, str(folder), is_trainable=trainable))
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


class _Adapted(torch.autograd.Function):
    """x Wᵀ + scale (x Aᵀ) Bᵀ in one number format, W frozen: beside the two wide products only thin ones, and x is kept once.

    peft's own forward turns x to the adapter's fp32 and autocast turns it back, for each of the thin products and in both passes.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Give [N, out] for x [N, in], weight [out, in], a [rank, in] and b [out, rank]."""
        thin = x @ a.mT
        ctx.save_for_backward(x, weight, a, b, thin)
        ctx.scale = scale
        return torch.nn.functional.linear(x, weight, bias).addmm_(thin, b.mT, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of x, a and b."""
        x, weight, a, b, thin = ctx.saved_tensors
        (grad,) = grads
        inner = (grad @ b).mul_(ctx.scale)
        to_x = (grad @ weight).addmm_(inner, a) if ctx.needs_input_grad[0] else None
        return to_x, None, None, inner.mT @ x, (grad.mT @ thin).mul_(ctx.scale), None


def _fused(model: Any) -> Any:
    """Let every adapted matrix of a peft model compute through `_Adapted`, where its adapter is plain LoRA on a plain matrix."""
    layers = importlib.import_module("peft.tuners.lora")
    for layer in model.modules():
        if not isinstance(layer, layers.Linear) or type(layer.base_layer) is not nn.Linear or set(layer.lora_A) != {"default"}:
            continue
        is_plain = isinstance(layer.lora_dropout["default"], nn.Identity) and not layer.lora_variant and not layer.fan_in_fan_out
        if is_plain and layer.lora_A["default"].bias is None and layer.lora_B["default"].bias is None:
            layer.forward = functools.partial(_adapted, layer, layer.forward)
    return model


def _adapted(layer: Any, plain: Any, x: Tensor) -> Tensor:
    if layer.disable_adapters or layer.merged:
        unchanged: Tensor = plain(x)
        return unchanged
    base, kind = layer.base_layer, x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    a, b = (matrix["default"].weight.to(dtype) for matrix in (layer.lora_A, layer.lora_B))
    bias = None if base.bias is None else base.bias.to(dtype)
    flat = x.to(dtype).reshape(-1, x.shape[-1])
    out: Tensor = _Adapted.apply(flat, base.weight.to(dtype), bias, a, b, layer.scaling["default"])  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], -1)


def _peft() -> Any:
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        if error.name != "peft":
            raise
        raise ConfigError("--lora, --adapter: expected the package peft, which is not installed; install the extra spct[train]") from None

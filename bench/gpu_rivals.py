"""What the kernels are compared with: calls that give the same result by other means, and, where one can't run here, why."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from gpu_shapes import Batch, ModelShape
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

Rival = Callable[[], Tensor]


def per_row_keys(inputs: dict[str, Any], batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(q [k, H, 1, D], keys and values [k, K, P+S, D]): every row with a copy of the prefix, as without sharing."""
    own = torch.arange(batch.rows * batch.suffix, device=inputs["q"].device).view(batch.rows, -1) + batch.prefix
    shared = torch.arange(batch.prefix, device=own.device).expand(batch.rows, -1)
    slots = torch.cat((shared, own), dim=1)
    keys, values = (inputs[name][slots].transpose(1, 2).contiguous() for name in ("k_cache", "v_cache"))
    return inputs["q"][:, :, None, :], keys, values


def attention_rivals(inputs: dict[str, Any], batch: Batch, *, compiles: bool) -> dict[str, Rival | str]:
    """Name -> a call that gives [k, H, D], or why there is none."""
    if inputs["softcap"] is not None:
        return {"sdpa": "SDPA has no soft cap", "flex": "not compared under a soft cap", "flashinfer": "not compared under a soft cap"}
    q, keys, values = per_row_keys(inputs, batch)
    scale = inputs["scale"]
    found: dict[str, Rival | str] = {"sdpa": lambda: F.scaled_dot_product_attention(q, keys, values, scale=scale, enable_gqa=True)[:, :, 0]}
    if compiles:
        compiled = torch.compile(functools.partial(flex_attention, scale=scale, enable_gqa=True))
        found["flex"] = lambda: compiled(q, keys, values)[:, :, 0]
    else:
        found["flex"] = "FlexAttention is compared on a GPU only"
    found["flashinfer"] = _flashinfer_cascade(inputs, batch)
    return found


def _flashinfer_cascade(inputs: dict[str, Any], batch: Batch) -> Rival | str:
    """FlashInfer's cascade over pages of one token, which is how slots are addressed here."""
    try:
        flashinfer = importlib.import_module("flashinfer")
    except ImportError:
        return "flashinfer is not installed"
    device, q = inputs["q"].device, inputs["q"]
    int32 = functools.partial(torch.tensor, dtype=torch.int32, device=device)
    workspace = torch.empty(256 << 20, dtype=torch.uint8, device=device)
    wrapper = flashinfer.MultiLevelCascadeAttentionWrapper(2, workspace, "NHD")
    rows, num_own = batch.rows, batch.rows * batch.suffix
    wrapper.plan(
        [int32([0, rows]), torch.arange(rows + 1, dtype=torch.int32, device=device)],
        [int32([0, batch.prefix]), torch.arange(rows + 1, dtype=torch.int32, device=device) * batch.suffix],
        [
            torch.arange(batch.prefix, dtype=torch.int32, device=device),
            torch.arange(num_own, dtype=torch.int32, device=device) + batch.prefix,
        ],
        [int32([1]), torch.ones(rows, dtype=torch.int32, device=device)],
        q.shape[1],
        inputs["k_cache"].shape[1],
        q.shape[2],
        1,
        q_data_type=q.dtype,
    )
    cache = torch.stack((inputs["k_cache"], inputs["v_cache"]), dim=1)[:, :, None]
    return lambda: wrapper.run(q, cache)


def sampled_with_torch(inputs: dict[str, Any]) -> Tensor:
    """The output head from cuBLAS and torch's ops: norm, logits, top-p by a sort, softmax, draw, log-probability, meta logit."""
    normed = F.rms_norm(inputs["hidden"], (inputs["hidden"].shape[1],), inputs["norm_weight"], inputs["norm_eps"])
    logits = (normed @ inputs["lm_head"].T).float()
    if inputs["softcap"] is not None:
        logits = torch.tanh(logits / inputs["softcap"]) * inputs["softcap"]
    meta = normed.float() @ inputs["meta_weight"]
    probabilities = torch.softmax(logits / inputs["temperature"][:, None], dim=1)
    if bool((inputs["top_p"] < 1.0).any()):
        ordered, order = probabilities.sort(dim=1, descending=True)
        dropped = ordered.cumsum(dim=1) - ordered >= inputs["top_p"][:, None]
        probabilities = torch.zeros_like(probabilities).scatter_(1, order, ordered.masked_fill(dropped, 0.0))
    # Exponential race: the same distribution as torch.multinomial, without its wait for the device.
    token = (probabilities / torch.empty_like(probabilities).exponential_()).argmax(dim=1)
    logprob = torch.log_softmax(logits, dim=1).gather(1, token[:, None])[:, 0]
    return torch.stack((token.float(), logprob, meta))


def generate_with_transformers(shape: ModelShape, batch: Batch, layers: int) -> Rival | str:
    """Nine tokens of `generate(num_return_sequences=k)` by a Llama of this shape and some layers, its prefill included."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return "transformers is not installed"
    config = transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner_width,
        num_hidden_layers=layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=1 << 16,
    )
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    prompt = torch.zeros((1, batch.prefix), dtype=torch.int64, device="cuda")
    options = {"do_sample": True, "num_return_sequences": batch.rows, "pad_token_id": 0, "eos_token_id": None}
    return lambda: model.generate(prompt, max_new_tokens=9, **options)

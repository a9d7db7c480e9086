"""The model that is trained: a transformers decoder, whole or through LoRA adapters, and what the engine needs of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM

from spct.checkpoint.quiet import quiet_transformers
from spct.errors import CheckpointError, ConfigError
from spct.training import lora
from spct.training.packed_model import ATTENTION
from spct.training.sample_batches import Example, TokenBatch, packed_batch, padded_batch, split_examples

# Families whose attention takes nothing but causal masks, soft caps and windows; the first needs none of the rest.
_PACKED_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
# Logits held at once: beyond that many they are computed chunk by chunk, and once more in the backward pass.
_MAX_LOGITS = 2**25


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What a model says of the tokens of a batch.

    logprob  [N] fp32, natural log, with its graph
    entropy  [N] fp32, nats, of the whole distribution at that place, detached
    """

    logprob: Tensor
    entropy: Tensor


class Policy:
    """A decoder in training.

    folder   of the checkpoint that it starts from
    device   where it is
    dtype    "float32" or "bfloat16", of its matrix products; what is trained stays fp32
    rank     of fresh LoRA adapters; 0: all weights are trained
    adapter  a saved adapter to train on (its own rank counts)

    Raises: CheckpointError if the folder can't be read; ConfigError for options that make no sense.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        dtype: str = "float32",
        rank: int = 0,
        alpha: float = 16.0,
        adapter: Path | None = None,
        seed: int = 0,
    ) -> None:
        self.folder, self.device, self.dtype = folder, device, getattr(torch, dtype)
        self._adapter = adapter
        self.has_adapter = bool(rank) or adapter is not None
        self.starts_at_base = bool(rank) and adapter is None
        # Frozen matrices under adapters may be stored as they are computed with; what an optimiser changes must not.
        self.model = _load(folder, self.dtype if self.has_adapter else torch.float32, device)
        self.is_packed = packs(self.model.config)
        self._peft: Any = None
        self._frozen: Any = None
        if adapter is not None:
            self._peft = lora.continue_adapter(self.model, adapter, trainable=True)
        elif rank:
            self._peft = lora.attach(self.model, rank, alpha, seed)
        self._set_attention(self.model)

    def parameters(self) -> list[nn.Parameter]:
        """List what is trained, in a fixed order."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def batches(self, examples: Sequence[Example], max_tokens: int) -> tuple[list[list[int]], list[TokenBatch]]:
        """Lay examples out as this model computes them, packed where that is exact, in micro-batches of at most `max_tokens`.

        Returns the indices of the examples of each, and the micro-batches.
        """
        cuts = split_examples(examples, max_tokens, packed=self.is_packed)
        lay_out = packed_batch if self.is_packed else padded_batch
        return cuts, [lay_out([examples[i] for i in cut], self.device) for cut in cuts]

    def scores(self, batch: TokenBatch) -> TokenScores:
        """Give the log-probability of every token of a batch under the model (and the entropy at its place)."""
        return self._scores(self.model, batch)

    @contextmanager
    def reference(self) -> Iterator[Any]:
        """Give a function TokenBatch → TokenScores of the model as it was at the start, without gradients.

        With fresh adapters that is the base below them; else it is a second copy of the weights, kept once loaded.
        """
        if self.starts_at_base:
            # Switching adapters off acts on the model itself, so nothing may train inside this block.
            with self._peft.disable_adapter(), torch.no_grad():
                yield torch.no_grad()(self.scores)
            return
        if self._frozen is None:
            frozen = _load(self.folder, self.dtype if self.has_adapter else torch.float32, self.device)
            if self._adapter is not None:
                frozen = lora.continue_adapter(frozen, self._adapter, trainable=False).merge_and_unload()
            self._set_attention(frozen)
            self._frozen = frozen.requires_grad_(False)
        yield torch.no_grad()(lambda batch: self._scores(self._frozen, batch))

    def named_tensors(self) -> dict[str, Tensor]:
        """Give all weights for `Engine.load_weights`, adapters merged in, by the checkpoint's own names."""
        if self.has_adapter:
            return dict(lora.merged_tensors(self.model))
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def state(self) -> dict[str, Tensor]:
        """Give what is trained, by name, for a training state."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave.

        Raises: CheckpointError if names or shapes are not this policy's.
        """
        own = self.state()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise CheckpointError("training state: expected the tensors of this model; start afresh in another folder")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Write the adapter in peft's layout, or configuration and fp32 weights in Hugging Face's, each file atomically."""
        if self._peft is not None:
            lora.save_adapter(self._peft, folder)
        else:
            self.save_whole(folder)

    def save_whole(self, folder: Path) -> None:
        """Write configuration and fp32 weights, adapters merged in, in Hugging Face's layout, each file atomically."""
        config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)
        _replace(folder / "config.json", (json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True) + "\n").encode())
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.named_tensors().items()}
        _replace(folder / "model.safetensors", save(tensors, metadata={"format": "pt"}))

    def _set_attention(self, model: Any) -> None:
        model.set_attn_implementation(ATTENTION if self.is_packed else "eager")

    def _scores(self, model: Any, batch: TokenBatch) -> TokenScores:
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32, cache_enabled=False):
            hidden = model.model(**batch.inputs, use_cache=False).last_hidden_state[batch.rows, batch.columns]
            step = max(1, _MAX_LOGITS // model.config.vocab_size)
            if len(hidden) <= step:
                return TokenScores(*_head(model, hidden, batch.targets))
            parts = [
                checkpoint(
                    _head, model, hidden[at : at + step], batch.targets[at : at + step], use_reentrant=False, preserve_rng_state=False
                )
                for at in range(0, len(hidden), step)
            ]
        return TokenScores(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]))


def packs(config: Any) -> bool:
    """Tell whether packed attention is exact for a configuration: every layer sees all that came before, and no soft cap.

    config  a transformers configuration
    """
    windows = getattr(config, "layer_types", None)
    if windows is None:
        is_windowed = getattr(config, "sliding_window", None) is not None
    else:
        is_windowed = any(kind != "full_attention" for kind in windows)
    return config.model_type in _PACKED_FAMILIES and not is_windowed


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Give the logits of final hidden states, with the soft cap of a family that has one.

    hidden   [N, E], after the final norm
    returns  [N, V] fp32
    """
    logits: Tensor = model.lm_head(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _head(model: Any, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    logprobs = torch.log_softmax(logits_of(model, hidden), -1)
    with torch.no_grad():
        entropy = torch.special.entr(logprobs.exp()).sum(-1)
    return logprobs.gather(-1, targets[:, None])[:, 0], entropy


def _load(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    if not folder.is_dir():
        raise ConfigError(f"model {str(folder)!r}: no such folder")
    try:
        with quiet_transformers():
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: transformers can't load this model: {str(error).splitlines()[0]}") from None
    # In evaluation mode: no family needs dropout here, and what the sampler saw had none.
    model.train(False)
    return model.to(device)


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_bytes(content)
    beside.replace(path)

"""The two forms of the meta RM as differentiable models: what each computes of the samples of one item.

fused   the judge itself, its final normed hidden state at the places where it drew a sample's tokens, pooled, through a linear map
scalar  a sequence-classification model that reads the samples under a template of its own, its logit at their last token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from spct.checkpoint.quiet import quiet_transformers
from spct.errors import CheckpointError
from spct.meta import TEMPLATE_FILE, MetaPrompt
from spct.models.head import Pooling
from spct.prompting import JudgePrompt
from spct.training.folder import copy_text_side, finish_folder
from spct.training.meta_data import MetaItem, MetaSample
from spct.training.packed_model import ATTENTION
from spct.training.policy import Policy, packs
from spct.training.sample_batches import Example, TokenBatch, packed_batch, padded_batch

META_HEAD = "meta_head.safetensors"
# A place behind a sample's end: the state that would predict it is that of the end itself.
_BEYOND = 0


@dataclass(frozen=True, slots=True)
class Scored:
    """What a form says of S samples.

    scores   [S] fp32, logits, in the order of the items and, within each, of `MetaItem.by_order`
    labels   [S] fp32, 1 where the sample is correct
    items    [S] int64, place of the sample's item among those given
    anchor   how far the judge has moved from what it was, nats per token; 0 for a form that judges nothing
    """

    scores: Tensor
    labels: Tensor
    items: Tensor
    anchor: Tensor


def ordered_samples(item: MetaItem) -> list[MetaSample]:
    """List an item's samples in the order in which a form scores them: those of one prompt together."""
    return [s for _, samples in item.by_order() for s in samples]


def pool(states: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """Pool the states of each sample's tokens, as an engine pools their logits (both are linear).

    states   [N, E], of all samples one after the other
    lengths  of the S samples
    returns  [S, E] fp32
    """
    counts = torch.tensor(lengths, device=states.device)
    if pooling == "last":
        return states[counts.cumsum(0) - 1].float()
    owner = torch.repeat_interleave(torch.arange(len(lengths), device=states.device), counts)
    sums = torch.zeros(len(lengths), states.shape[1], device=states.device).index_add_(0, owner, states.float())
    return sums / counts[:, None]


class FusedScorer:
    """The judge with a linear head over its final normed hidden state.

    policy    the judge, whole
    pooling   of the head
    anchored  "kl": the divergence of the judge's distributions from the starting ones, token by token; "ce": cross-entropy of the
              samples, an unbiased estimate of the same up to a constant, as they were drawn from the starting judge at temperature 1
    """

    def __init__(self, policy: Policy, prompt: JudgePrompt, pooling: Pooling, *, anchored: str = "kl") -> None:
        self.policy, self.prompt, self.pooling, self.anchored = policy, prompt, pooling, anchored
        self.head = nn.Linear(policy.model.config.hidden_size, 1, device=policy.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._reference: Any = None

    def trained(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """List the parameters of body and head."""
        return self.policy.parameters(), list(self.head.parameters())

    def examples(self, item: MetaItem) -> list[Example]:
        """Lay an item out: for each order its prompt and the tokens drawn behind it."""
        request = item.item.request
        return [Example(self.prompt.encode(request, order), tuple(s.token_ids for s in samples)) for order, samples in item.by_order()]

    def keep_reference(self) -> None:
        """Keep the starting judge beside the one that is trained, as "kl" asks."""
        if self.anchored == "kl":
            self._reference = Policy(self.policy.folder, device=self.policy.device)

    def pooled(self, items: Sequence[MetaItem]) -> Tensor:
        """Give the pooled states of the samples of `items`, [S, E] fp32, without gradients."""
        batch, lengths = self._batch(items)
        with torch.no_grad():
            return pool(_states(self.policy.model, batch), lengths, self.pooling)

    def score(self, items: Sequence[MetaItem], *, anchor: bool = False) -> Scored:
        """Score the samples of `items`; with `anchor` also compare the judge with what it was."""
        batch, lengths = self._batch(items)
        states = _states(self.policy.model, batch)
        scores = self.head(pool(states, lengths, self.pooling))[:, 0]
        distance = self._distance(batch, states) if anchor else scores.new_zeros(())
        return _scored(items, scores, distance)

    def state(self) -> dict[str, Tensor]:
        """Give what is trained, by name."""
        return {**self.policy.state(), "meta_head.weight": self.head.weight.detach(), "meta_head.bias": self.head.bias.detach()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave. Raises: CheckpointError if it is another model's."""
        state = dict(state)
        self.head.weight.copy_(state.pop("meta_head.weight"))
        self.head.bias.copy_(state.pop("meta_head.bias"))
        self.policy.load_state(state)

    def save(self, folder: Path) -> None:
        """Write the judge and its head as a folder that the engine loads."""
        copy_text_side(self.policy.folder, folder)
        self.policy.save(folder)
        write_meta_head(folder, self.head.weight[0], self.head.bias.item(), self.pooling)

    def _batch(self, items: Sequence[MetaItem]) -> tuple[TokenBatch, list[int]]:
        examples = [example for item in items for example in self.examples(item)]
        lay_out = packed_batch if self.policy.is_packed else padded_batch
        return lay_out(examples, self.policy.device), [len(s) for example in examples for s in example.samples]

    def _distance(self, batch: TokenBatch, states: Tensor) -> Tensor:
        logits = _logits(self.policy.model, states)
        if self.anchored == "ce":
            return F.cross_entropy(logits, batch.targets)
        with torch.no_grad():
            model = self._reference.model
            before = torch.log_softmax(_logits(model, _states(model, batch)), -1)
        return F.kl_div(torch.log_softmax(logits, -1), before, reduction="sum", log_target=True) / len(states)


class ScalarScorer:
    """A sequence-classification model with one label, started from a judge's weights or from such a model.

    source   folder of the weights, whose tokenizer and templates go with them

    Raises: CheckpointError if transformers can't load it.
    """

    def __init__(self, source: Path, device: torch.device) -> None:
        self.source, self.device = source, device
        try:
            with quiet_transformers():
                self.model, told = AutoModelForSequenceClassification.from_pretrained(
                    source, num_labels=1, dtype=torch.float32, local_files_only=True, output_loading_info=True
                )
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{source}: transformers can't load this as a scalar model: {str(error).splitlines()[0]}") from None
        if "score.weight" in told["missing_keys"]:
            nn.init.zeros_(self.model.score.weight)
        self.model.eval().to(device)
        self.is_packed = packs(self.model.config)
        self.model.set_attn_implementation(ATTENTION if self.is_packed else "eager")
        self.prompt = MetaPrompt(self.source)

    def trained(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """List the parameters of body and head."""
        return list(self.model.model.parameters()), list(self.model.score.parameters())

    def examples(self, item: MetaItem) -> list[Example]:
        """Lay an item out: for each order its prompt in this form's template and the samples' texts with their ends."""
        request, prompt = item.item.request, self.prompt
        return [
            Example(prompt.encode(request, order), tuple((*prompt.continuation(s.text), _BEYOND) for s in samples))
            for order, samples in item.by_order()
        ]

    def score(self, items: Sequence[MetaItem], *, anchor: bool = False) -> Scored:
        """Score the samples of `items`; there is no judge to be anchored."""
        del anchor
        examples = [example for item in items for example in self.examples(item)]
        batch = (packed_batch if self.is_packed else padded_batch)(examples, self.device)
        lengths = [len(s) for example in examples for s in example.samples]
        last = torch.tensor(lengths, device=self.device).cumsum(0) - 1
        rows, columns = batch.rows[last], batch.columns[last]
        states = self.model.model(**batch.inputs, use_cache=False).last_hidden_state[rows, columns]
        scores = self.model.score(states)[:, 0].float()
        return _scored(items, scores, scores.new_zeros(()))

    def state(self) -> dict[str, Tensor]:
        """Give what is trained, by name."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave.

        Raises: CheckpointError if it is another model's.
        """
        own = self.state()
        if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
            raise CheckpointError("training state: expected the tensors of this model; start afresh in another folder")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def save(self, folder: Path) -> None:
        """Write a folder that the engine takes as `meta_model` and transformers as a sequence-classification model."""
        copy_text_side(self.source, folder)
        # The judge's own template says nothing here, and would only mislead.
        (folder / "judge_template.jinja").unlink(missing_ok=True)
        if (self.source / TEMPLATE_FILE).exists():
            (folder / TEMPLATE_FILE).write_bytes((self.source / TEMPLATE_FILE).read_bytes())
        finish_folder(self.model, folder)


def write_meta_head(folder: Path, weight: Tensor, bias: float, pooling: Pooling) -> None:
    """Write `meta_head.safetensors` atomically.

    weight   [E], over the final normed hidden state
    """
    content = save(
        {"weight": weight.detach().float().cpu().contiguous(), "bias": torch.tensor([bias], dtype=torch.float32)},
        metadata={"format": "pt", "pooling": pooling},
    )
    beside = folder / (META_HEAD + ".tmp")
    beside.write_bytes(content)
    beside.replace(folder / META_HEAD)


def _states(model: Any, batch: TokenBatch) -> Tensor:
    """The final normed hidden states that predict the tokens of a batch, [N, E]."""
    states: Tensor = model.model(**batch.inputs, use_cache=False).last_hidden_state[batch.rows, batch.columns]
    return states


def _logits(model: Any, states: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _scored(items: Sequence[MetaItem], scores: Tensor, anchor: Tensor) -> Scored:
    samples = [(place, s) for place, item in enumerate(items) for s in ordered_samples(item)]
    labels = torch.tensor([float(s.correct) for _, s in samples], device=scores.device)
    owners = torch.tensor([place for place, _ in samples], device=scores.device)
    return Scored(scores, labels, owners, anchor)

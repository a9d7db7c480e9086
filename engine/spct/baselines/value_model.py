"""A decoder with one number at its end: the body of every form that values text instead of writing it."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor, nn

import spct
from spct.errors import CapacityError
from spct.prompting import JudgePrompt
from spct.training.folder import copy_text_side
from spct.training.meta_scorers import ScalarScorer
from spct.training.sample_batches import Example, TokenIds, packed_batch, padded_batch
from spct.types import ScoreRequest

# A place behind the end of a text: the state that would predict it is that of the end itself.
_BEYOND = 0


class ValueModel:
    """Sequence classification with one label, started from a judge's weights or from such a model; reads under the judge's template.

    source  folder of the weights, whose tokenizer and template go with them

    Raises: CheckpointError if transformers can't load it.
    """

    def __init__(self, source: Path, device: torch.device) -> None:
        self.source = source
        self._scorer = ScalarScorer(source, device)
        self.prompt = JudgePrompt(source)

    def values(self, examples: Sequence[Example]) -> Tensor:
        """The number at the last token of every text, [N] fp32, in the order of the examples and their samples."""
        scorer = self._scorer
        batch = (packed_batch if scorer.is_packed else padded_batch)(examples, scorer.device)
        lengths = [len(sample) for example in examples for sample in example.samples]
        last = torch.tensor(lengths, device=scorer.device).cumsum(0) - 1
        states = scorer.model.model(**batch.inputs, use_cache=False).last_hidden_state[batch.rows[last], batch.columns[last]]
        values: Tensor = scorer.model.score(states)[:, 0].float()
        return values

    def check_fits(self, examples: Sequence[Example]) -> None:
        """Refuse texts longer than the context, past which a model's places mean nothing. Raises: CapacityError."""
        longest = max((len(example.prompt) + len(sample) - 1 for example in examples for sample in example.samples), default=0)
        limit = getattr(self._scorer.model.config, "max_position_embeddings", None)
        if limit is not None and longest > limit:
            raise CapacityError(f"text: expected at most {limit} tokens, the model's context, got {longest}; leave this item out")

    def fingerprints(self) -> dict[str, str]:
        """Short hashes of all that decides a value besides its text: weights, tokenizer, template, numerics and versions."""
        weights = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.state().items()):
            weights.update(name.encode() + tensor.contiguous().cpu().numpy().tobytes())
        tokenizer, template = self.prompt.digest
        parts = {
            "weights": (weights.hexdigest(), (self.source / "config.json").read_bytes()),
            "tokenizer": tokenizer,
            "template": template,
            "numerics": (self._scorer.device.type, self._scorer.is_packed, torch.get_num_threads()),
            "versions": (spct.__version__, torch.__version__, transformers.__version__, platform.machine()),
        }
        return {name: hashlib.blake2b(repr(part).encode(), digest_size=6).hexdigest() for name, part in parts.items()}

    def parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """List the parameters of body and head."""
        return self._scorer.trained()

    def state(self) -> dict[str, Tensor]:
        """Give what is trained, by name."""
        return self._scorer.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take up what `state` gave. Raises: CheckpointError if it is another model's."""
        self._scorer.load_state(state)

    def save(self, folder: Path) -> None:
        """Write the folder, with the judge's template beside it."""
        self._scorer.save(folder)
        copy_text_side(self.source, folder)


def shared_example(texts: Sequence[TokenIds]) -> Example:
    """Texts as samples behind what they all begin with, so that it is computed once."""
    shared = min(map(len, texts))
    for place, ids in enumerate(zip(*texts, strict=False)):
        if len(set(ids)) > 1:
            shared = place
            break
    # The layout needs a prompt of at least one token; every template begins with one.
    return Example(texts[0][:shared], tuple((*text[shared:], _BEYOND) for text in texts))


def behind(prompt: TokenIds, text: TokenIds) -> Example:
    """One text behind its prompt."""
    return Example(prompt, ((*text, _BEYOND),))


def alone(request: ScoreRequest) -> list[ScoreRequest]:
    """The request once for each response, which it shows alone."""
    return [
        ScoreRequest(request.query, [response], reference=request.reference, principles=request.principles)
        for response in request.responses
    ]


def together(request: ScoreRequest, pairs: Sequence[tuple[int, int]]) -> list[ScoreRequest]:
    """The request once for each pair of responses, which it shows in that order."""
    return [
        ScoreRequest(
            request.query, [request.responses[a], request.responses[b]], reference=request.reference, principles=request.principles
        )
        for a, b in pairs
    ]

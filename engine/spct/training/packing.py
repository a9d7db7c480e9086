"""Training batches: one prompt, several demonstrations behind it, laid out so that the prompt is computed once.

A row of a batch is [prompt, padding | demonstration 1, padding | … | demonstration G, padding]. Every demonstration starts at the position
right behind its prompt and sees the prompt and itself, never its siblings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from spct.prompting.judge import JudgePrompt
from spct.training.tasks import DOMAINS, MAX_RESPONSES, Item, demonstrate, draw_item
from spct.training.tasks.warmup import warm_up

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Packed:
    """A padded batch of B prompts with G demonstrations each; P and C are the padded lengths.

    token_ids     [B, P + G*C] int64
    positions     [B, P + G*C] int64
    targets       [B, P + G*C] int64, the next token; IGNORED where there is none
    prompt_mask   [B, P] bool, True on tokens of the prompt
    prompt_len    P
    group         G
    """

    token_ids: Tensor
    positions: Tensor
    targets: Tensor
    prompt_mask: Tensor
    prompt_len: int
    group: int

    def to(self, device: torch.device) -> Packed:
        """Give the same batch on a device."""
        ids, positions, targets, mask = (t.to(device) for t in (self.token_ids, self.positions, self.targets, self.prompt_mask))
        return Packed(ids, positions, targets, mask, self.prompt_len, self.group)

    @property
    def num_tokens(self) -> int:
        """Count the tokens that are no padding."""
        return int((self.targets[:, self.prompt_len :] != IGNORED).sum() + self.prompt_mask.sum())


def example_tokens(prompt: JudgePrompt, item: Item, group: int, rng: Random) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Encode an item under a random order: the prompt's ids, those that inference uses, and `group` demonstrations with EOS."""
    order = list(range(len(item.responses)))
    rng.shuffle(order)
    shown = tuple(order)
    end = prompt.eos_token_ids[0]
    texts = [demonstrate(item, shown, rng) for _ in range(group)]
    # A judge's text goes on behind its prompt: no BOS, whatever the tokenizer puts before a text of its own.
    return prompt.encode(item.request(), shown), [(*prompt.tokenizer.encode_user(text), end) for text in texts]


def draw_batches(
    prompt: JudgePrompt,
    *,
    split: str,
    seed: int,
    step: int,
    num_prompts: int,
    group: int,
    micro_batches: int,
    max_responses: int = MAX_RESPONSES,
    domains: Sequence[str] = (),
) -> list[Packed]:
    """Draw the batches of one step, a function of (split, seed, step) alone; rows of like length share a batch."""
    examples = []
    turns = tuple(domains) or tuple(DOMAINS)
    for i in range(num_prompts):
        index = step * num_prompts + i
        item = draw_item(split, seed, index, domain=turns[index % len(turns)], max_responses=max_responses)
        examples.append(example_tokens(prompt, item, group, Random(f"demonstrations/{split}/{seed}/{index}")))
    examples.sort(key=lambda e: len(e[0]) + group * max(map(len, e[1])))
    size = -(-num_prompts // micro_batches)
    return [pack(examples[i : i + size]) for i in range(0, num_prompts, size)]


def draw_warm_ups(
    prompt: JudgePrompt, *, seed: int, step: int, progress: float, num_prompts: int, group: int, micro_batches: int
) -> list[Packed]:
    """Draw small warm-up prompts, a function of (seed, step) and how far the warm-up is (0 to 1), which sets their size."""
    rng = Random(f"warm-up/{seed}/{step}")
    end = prompt.eos_token_ids[0]
    examples = []
    for _ in range(3 * num_prompts):
        wishes = 1 + rng.randrange(1 + round(3 * progress))
        responses = 1 + rng.randrange(1 + round(2 * progress))
        text, demos = warm_up(rng, wishes, responses, group)
        examples.append((prompt.encode_text(text), [(*prompt.encode_text(demo), end) for demo in demos]))
    examples.sort(key=lambda e: len(e[0]) + group * max(map(len, e[1])))
    size = -(-len(examples) // micro_batches)
    return [pack(examples[i : i + size]) for i in range(0, len(examples), size)]


def pack(examples: Sequence[tuple[tuple[int, ...], list[tuple[int, ...]]]]) -> Packed:
    """Pad examples (prompt, demonstrations) of one group size to a batch."""
    group = len(examples[0][1])
    prompt_len = max(len(p) for p, _ in examples)
    length = max(len(d) for _, demos in examples for d in demos)
    width = prompt_len + group * length
    token_ids = torch.zeros(len(examples), width, dtype=torch.long)
    positions = torch.zeros(len(examples), width, dtype=torch.long)
    targets = torch.full((len(examples), width), IGNORED, dtype=torch.long)
    prompt_mask = torch.zeros(len(examples), prompt_len, dtype=torch.bool)
    for row, (prompt_ids, demos) in enumerate(examples):
        ids = torch.tensor(prompt_ids)
        token_ids[row, : len(ids)] = ids
        positions[row, :prompt_len] = torch.arange(prompt_len)
        targets[row, : len(ids) - 1] = ids[1:]
        prompt_mask[row, : len(ids)] = True
        for g, demo in enumerate(demos):
            start = prompt_len + g * length
            written = torch.tensor(demo)
            token_ids[row, start : start + len(written)] = written
            positions[row, start : start + length] = len(ids) + torch.arange(length)
            targets[row, start : start + len(written) - 1] = written[1:]
    return Packed(token_ids, positions, targets, prompt_mask, prompt_len, group)

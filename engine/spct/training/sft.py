"""Supervised cold start: the judge learns to write demonstrations, of the project's own judging tasks or those of a file.

Every step is a function of the seed, the step's number and the weights before it, so a run that was killed and resumed ends with
bitwise the weights of one that was not (same machine, thread settings and versions). Several processes share each step's batches out.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spct.errors import CheckpointError
from spct.prompting.judge import JudgePrompt
from spct.training.checkpoints import load_state, save_atomically
from spct.training.demonstration_loss import demonstration_loss
from spct.training.folder import copy_text_side, finish_folder, fresh_model, read_template, write_text_side
from spct.training.given import GivenDemonstrations, read_demonstrations
from spct.training.optimisers import learning_rate, make_optimisers
from spct.training.packed_model import ATTENTION
from spct.training.packing import Packed, draw_batches, draw_warm_ups
from spct.training.policy import Policy
from spct.training.progress import Progress
from spct.training.ranks import current
from spct.training.sft_config import SftConfig, describe
from spct.training.tasks import MAX_RESPONSES

STATE_FILE = "training_state.safetensors"
OWN_STEPS, OWN_WARMUP, OWN_DECAY = 4400, 100, 1300
EPOCHS = 2


@dataclass(frozen=True, slots=True)
class SftResult:
    """How a run ended.

    step      steps done, of `steps`
    finished  all of them are
    loss      per demonstration token, smoothed, in nats
    num_long  rows of a file that were left out since they are too long
    """

    step: int
    finished: bool
    loss: float
    steps: int
    num_long: int = 0


def run(config: SftConfig) -> SftResult:
    """Train, or go on training, and write the model folder.

    Raises: ConfigError or CheckpointError if the start can't be read, or a run in the same folder was on other demonstrations;
    InputError or CapacityError naming a line of given demonstrations that can't be learnt.
    """
    torch.set_num_threads(1)
    ranks = current()
    device = ranks.device(config.device)
    config.output.mkdir(parents=True, exist_ok=True)
    model, prompt, policy = _start(config, device)
    data = _read_given(config, prompt, model)
    length, digest = _length(config, data), None if data is None else data.digest
    # Muon is for whole matrices; the two thin ones of an adapter are AdamW's.
    optimisers = make_optimisers(model, "adamw" if config.has_adapter else config.optimizer, config.lr, config.weight_decay)
    state_path = config.output / STATE_FILE
    step, tokens, elapsed, loss = 0, 0, 0.0, float("nan")
    if state_path.exists():
        state = load_state(state_path)
        _check_same_data(state_path, state.get("demonstrations"), digest)
        if policy is not None and config.has_adapter:
            policy.load_state(state["model"])
        else:
            model.load_state_dict(state["model"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        step, tokens, elapsed, loss = state["step"], state["tokens"], state["seconds"], state["loss"]
    ranks.expect_alike(step, f"the step of {state_path}")
    # Over 50 steps, in a short run over its last eighth: what is told at its end is not what it began with.
    share = min(1.0, max(0.02, 8 / length.steps))
    began = saved_at = time.monotonic()

    if ranks.is_first:
        with (config.output / "runs.jsonl").open("a", encoding="utf-8") as log:
            counts = {} if data is None else {"rows": len(data.rows), "texts": data.num_texts, "too_long": data.num_long}
            log.write(json.dumps({"from_step": step, "ranks": ranks.size, **describe(config), **asdict(length), **counts}) + "\n")

    def save() -> None:
        if not ranks.is_first:
            return
        weights = policy.state() if policy is not None and config.has_adapter else model.state_dict()
        state = {"model": weights, "optimisers": [o.state_dict() for o in optimisers], "step": step, "tokens": tokens}
        given = {} if digest is None else {"demonstrations": digest}
        save_atomically(state_path, {**state, **given, "seconds": elapsed + time.monotonic() - began, "loss": loss})
        if policy is not None:
            policy.save(config.output)
        else:
            finish_folder(model, config.output)

    workers = config.workers if device.type == "cpu" else 1
    with Progress(length.steps, step, config.output / "metrics.jsonl") as progress, ThreadPoolExecutor(workers) as pool:
        while step < length.steps and not ranks.first(_spent(config, tokens, time.monotonic() - began)):
            batches = _draw(config, prompt, data, step)
            own = [batches[i].to(device) for i in ranks.weigh([b.num_tokens for b in batches])]
            rate = learning_rate(step, steps=length.steps, warmup=length.warmup, decay=length.decay, peak=config.lr)
            step_loss, norm = train_step(model, optimisers, own, rate, config, pool)
            loss = step_loss if loss != loss else loss + share * (step_loss - loss)
            tokens += sum(b.num_tokens for b in batches)
            step += 1
            progress.step(step, step_loss, loss, rate, norm, tokens, elapsed + time.monotonic() - began)
            if time.monotonic() - saved_at > config.save_every:
                save()
                saved_at = time.monotonic()
    save()
    return SftResult(step, step >= length.steps, loss, length.steps, 0 if data is None else data.num_long)


def train_step(
    model: Any,
    optimisers: Sequence[torch.optim.Optimizer],
    batches: Sequence[Packed],
    rate: float,
    config: SftConfig,
    pool: ThreadPoolExecutor,
) -> tuple[float, float]:
    """Do one step over the batches of all ranks; return the mean loss per demonstration token and the gradient's norm.

    batches  of this rank, perhaps none

    The batches run in parallel threads; their gradients are added in a fixed order.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]

    def gradients(batch: Packed) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        # Autocast's cache of cast weights is one for all threads and emptied by whichever leaves first, so with it a tied head's two
        # gradients would be added in bf16 or in fp32 by chance.
        with torch.autocast(parameters[0].device.type, dtype=torch.bfloat16, enabled=config.bf16, cache_enabled=False):
            loss, own, count = demonstration_loss(model, batch, config.prompt_weight)
        return torch.autograd.grad(loss, parameters), own, count

    outcomes = list(pool.map(gradients, batches))
    shares = current().gather((sum(float(own) for _, own, _ in outcomes), sum(int(c) for _, _, c in outcomes)))
    own, count = (sum(share) for share in zip(*shares, strict=True))
    nothing = [torch.zeros_like(p) for p in parameters] if not outcomes else []
    sums = nothing or [reduce(torch.add, grads) for grads in zip(*(grads for grads, _, _ in outcomes), strict=True)]
    for parameter, total in zip(parameters, current().add(sums), strict=True):
        parameter.grad = total / count
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return own / count, norm


@dataclass(frozen=True, slots=True)
class _Length:
    """Steps of a run, and those of its rising and falling learning rate."""

    steps: int
    warmup: int
    decay: int


def _length(config: SftConfig, data: GivenDemonstrations | None) -> _Length:
    steps, warmup, decay = OWN_STEPS, OWN_WARMUP, OWN_DECAY
    if data is not None:
        steps = config.steps or (config.epochs or EPOCHS) * data.steps_per_pass(config.prompts)
        warmup, decay = -(-steps // 10), steps // 2
    return _Length(
        config.steps or steps, warmup if config.warmup is None else config.warmup, decay if config.decay is None else config.decay
    )


def _read_given(config: SftConfig, prompt: JudgePrompt, model: Any) -> GivenDemonstrations | None:
    if config.demonstrations is None:
        return None
    context = int(model.config.max_position_embeddings)
    most = min(context, config.max_length or context)
    return read_demonstrations(config.demonstrations, prompt, most, skip_long=config.skip_long)


def _check_same_data(path: Path, saved: str | None, digest: str | None) -> None:
    if saved != digest:
        raise CheckpointError(f"{path}: expected a run on the same demonstrations, got one on others; start afresh in another folder")


def _draw(config: SftConfig, prompt: JudgePrompt, data: GivenDemonstrations | None, step: int) -> list[Packed]:
    cuts = min(config.prompts, config.micro_batches * current().size)
    shape = {"num_prompts": config.prompts, "group": config.group, "micro_batches": cuts}
    if data is not None:
        return data.draw(step, seed=config.seed, **shape)
    small = config.small_steps if config.model is None else 0
    if step < small:
        return draw_warm_ups(prompt, seed=config.seed, step=step, progress=step / small, **shape)
    done = step - small
    most = 2 if done < config.easy_steps else MAX_RESPONSES
    if done >= config.mixed_steps or config.prompts < 2:
        return draw_batches(prompt, split="train", seed=config.seed, step=step, max_responses=most, domains=config.domains, **shape)
    half = {**shape, "num_prompts": config.prompts // 2, "micro_batches": max(1, cuts // 2)}
    real = draw_batches(prompt, split="train", seed=config.seed, step=step, max_responses=most, domains=config.domains, **half)
    return real + draw_warm_ups(prompt, seed=config.seed, step=step, progress=1.0, **half)


def _spent(config: SftConfig, tokens: int, seconds: float) -> bool:
    over_time = config.time_limit is not None and seconds >= config.time_limit
    return over_time or (config.tokens is not None and tokens >= config.tokens)


def _start(config: SftConfig, device: torch.device) -> tuple[Any, JudgePrompt, Policy | None]:
    """Load or make the model and its prompt; write the text side of the output folder where it is new.

    A model that was loaded comes with its policy, which knows what is trained and how it is saved.
    """
    tokenizer_file = config.output / "tokenizer.json"
    if current().is_first:
        _write_text_side(config, tokenizer_file)
    current().wait()
    prompt = JudgePrompt(config.output)
    if config.model is not None:
        policy = Policy(
            config.model,
            device=device,
            # Of adapted matrices, which are frozen: stored as they are multiplied, not converted at every use.
            dtype="bfloat16" if config.bf16 and config.has_adapter else "float32",
            rank=config.lora,
            alpha=config.lora_alpha,
            adapter=config.adapter,
            seed=config.seed,
        )
        return policy.model, prompt, policy
    vocabulary = json.loads(tokenizer_file.read_text(encoding="utf-8"))["model"]["vocab"]
    model = fresh_model(config.size, len(vocabulary), prompt.eos_token_ids[0], config.seed)
    model.set_attn_implementation(ATTENTION)
    model.train().to(device)
    return model, prompt, None


def _write_text_side(config: SftConfig, tokenizer_file: Path) -> None:
    source = config.model or config.tokenizer
    if source is not None:
        copy_text_side(source, config.output, adapter=config.adapter, template=config.template)
    elif not tokenizer_file.exists():
        template = config.template or Path(__file__).parent.parent / "embedded" / "judge_template.jinja"
        write_text_side(config.output, read_template(template), config.size.vocab_size)

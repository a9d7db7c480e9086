"""What the ranks of `several_ranks` run. Imported once, before they are forked."""

import json
import os
import signal
import sys
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - imported for the ranks
from safetensors.torch import save_file

from spct.errors import SpctError
from spct.training import launch, meta, meta_config, meta_data, ranks, rft, rl, sft, sft_config
from spct.training.session import Session


def main(body, args):
    """Runs a function of this module in a rank; gives its exit code."""
    torch.set_num_threads(1)
    try:
        with launch.join() as joined:
            globals()[body](joined, *args)
    except SpctError as error:
        print(f"spct: {error}", file=sys.stderr)
        return 1
    return 0


def plain_descent():
    """Replaces AdamW, which turns a gradient's rounding into a step of full size where it divides by next to nothing."""
    torch.optim.AdamW = lambda parameters, lr, weight_decay=0.0, **_: torch.optim.SGD(parameters, lr=lr, weight_decay=weight_decay)


def keep_weights(joined):
    """Writes the weights of each rank when its session ends."""
    close = Session.close

    def noted(self):
        state = {name: t.clone() for name, t in self.policy.state().items()}
        save_file(state, f"{self.config.output}.weights{joined.rank}")
        close(self)

    Session.close = noted


def low_bytes(item, sample):
    """A planted reward: at least half of the tokens below 128."""
    return 1.0 if 2 * sum(t < 128 for t in sample.token_ids) >= len(sample.token_ids) else -1.0


def reinforce(joined, settings, event=None, rank=0, step=0):
    """Runs `rl`; with an event, the rule of one rank is NaN, or kills it or fails, on its first sample of a step."""
    if settings.pop("sgd", False):
        plain_descent()
    keep_weights(joined)
    log = Path(f"{settings['output']}.samples{joined.rank}").open("a")  # noqa: SIM115 - the process ends with it
    sample, seen = rl._Run.sample, []

    def counted(self):
        seen.append(self.step)
        self.fresh = True
        running.append(self)
        return sample(self)

    running = []

    def rule(item, sample):
        log.write(json.dumps([seen[-1], item.request.query, list(item.request.responses), list(sample.token_ids)]) + "\n")
        log.flush()
        run = running[-1]
        if event and run.fresh and joined.rank == rank and seen[-1] == step:
            run.fresh = False
            if event == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if event == "fail":
                raise SpctError("the rule has failed")
            if event == "crash":
                raise ZeroDivisionError("a bug")
            return float("nan")
        return low_bytes(item, sample)

    rl._Run.sample = counted
    rl.run(rl.RlConfig(**settings), rule=rule)


def reject(joined, settings, kill_rank=None, kill_at=0):
    """Runs `rft`; one rank may die instead of keeping its row of that number."""
    if settings.pop("sgd", False):
        plain_descent()
    keep_weights(joined)
    append, count = rft.TrajectoryFile.append, []

    def dying(self, row):
        count.append(row)
        if joined.rank == kill_rank and len(count) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        append(self, row)

    rft.TrajectoryFile.append = dying
    rft.run(rft.RftConfig(**settings))


def demonstrate(joined, settings):
    """Runs `sft`."""
    plain_descent()
    sft.run(sft_config.SftConfig(**settings))


def weigh_up(joined, settings, data):
    """Runs `meta`: samples, then both forms."""
    plain_descent()
    config = meta_config.MetaConfig(**settings, data=meta_data.DataConfig(**data))
    items = meta.draw(config)
    for form in config.forms:
        meta.train_form(config, form, items)


def exchange(joined, out):
    """Calls every method that sends."""
    ranks._BUCKET = 10
    sizes = (3, 4, 12, 2, 1, 25)
    tensors = [torch.full((n, 1), float(10**joined.rank)) + torch.arange(n)[:, None] for n in sizes]
    sums = joined.add(tensors)
    here = [torch.arange(3.0)] if joined.is_first else []
    told = {
        "shapes": [list(t.shape) for t in sums],
        "sums": [t[:, 0].tolist() for t in sums],
        "gather": joined.gather(joined.rank * 2),
        "collect": joined.collect((i, i * i) for i in joined.deal(range(5))),
        "first": joined.first(f"from {joined.rank}"),
        "mean": joined.mean(here),
        "fraction": joined.mean([torch.tensor([float(joined.rank)])] * (1 + joined.rank)),
        "weigh": joined.weigh([5, 1, 1, 1, 1, 1]),
    }
    Path(f"{out}.{joined.rank}").write_text(json.dumps(told))

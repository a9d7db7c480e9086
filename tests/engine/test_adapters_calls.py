"""Every adapter as its framework calls it. The calling code is rebuilt from the framework's source, named in each test.

TRL itself runs in test_adapters_trl.py.
"""

import asyncio
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from scripted_engine import ScriptedEngine

from spct import ConfigError, Engine, InputError
from spct.adapters import MissingRewardError, engines, openrlhf, trl, verl


@pytest.fixture
def engine(monkeypatch):
    """The engine that every model's name stands for."""
    engine = ScriptedEngine()
    monkeypatch.setattr(Engine, "from_pretrained", staticmethod(lambda model, **options: engine))
    monkeypatch.setattr(engines, "_engines", {})
    return engine


# TRL: trl/trainer/grpo_trainer.py, _calculate_rewards (1.16.0)


def call_trl(function, prompts, completions, **columns):
    """Rewards as TRL has them, with NaN where one is missing, and what the function logged."""
    logged = {}
    assert inspect.iscoroutinefunction(function)
    keywords = {**columns, "trainer_state": SimpleNamespace(global_step=columns.pop("step", 0)), "log_extra": None}
    keywords["log_metric"] = logged.__setitem__

    async def gather():
        return await asyncio.gather(function(prompts=prompts, completions=completions, completion_ids=[[1]] * len(prompts), **keywords))

    (output,) = asyncio.run(gather())
    assert len(output) == len(prompts)
    return torch.tensor([torch.nan if reward is None else reward for reward in output]).tolist(), logged


def test_trl_plain_and_conversational(engine):
    function = trl.reward_function("m", sampling={"samples": 2}, shape="raw", group_size=2)
    assert function.__name__ == "spct"
    texts = ["a 3", "b 4", "c 5", "d 6"]
    plain, logged = call_trl(function, ["one", "one", "two", "two"], texts, answer=["x"] * 4)
    assert plain == [3.0, 4.0, 5.0, 6.0]
    assert logged == {"spct/missing": 0.0, "spct/votes": 2.0}
    assert [request.responses for request in engine.asked] == [("a 3", "b 4"), ("c 5", "d 6")]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    prompts = [[{"role": "user", "content": text}] for text in ("one", "one", "two", "two")]
    assert call_trl(function, prompts, messages)[0] == plain
    assert engine.asked[-1].query[0].content == "two"


def test_trl_missing_is_nan_for_one_response_alone(engine):
    function = trl.reward_function("m", name="judge", sampling={"samples": 2}, shape="raw")
    rewards, logged = call_trl(function, ["q"] * 3, ["a 3", "b ?", "c ? 5"])
    assert rewards[0] == 3.0 and rewards[1] != rewards[1] and rewards[2] == 5.0
    assert logged == {"judge/missing": pytest.approx(1 / 3), "judge/votes": 1.0}


def test_trl_columns(engine):
    function = trl.reward_function("m", reference_column="answer", principles_column="rubric", group_size=4)
    prompts, texts = ["q", "q", "q", "r"], ["a 1", "b 2", "c 3", "d 4"]
    call_trl(function, prompts, texts, answer=["4", "4", "", None], rubric=[["be short"], ["be short"], None, ""])
    found = [(request.query, request.reference, request.principles, len(request.responses)) for request in engine.asked]
    assert found == [("q", "4", ("be short",), 2), ("q", None, None, 1), ("r", None, None, 1)]
    with pytest.raises(InputError, match=r"no column 'answer'; the trainer passed .*other"):
        call_trl(function, prompts, texts, other=[1] * 4)
    with pytest.raises(InputError, match="prompts: 4, completions: 3"):
        call_trl(trl.reward_function("m"), prompts, texts[:3])
    with pytest.raises(ConfigError, match="name"):
        trl.reward_function("m", name="a b")


def test_trl_fresh_noise_changes_seeds_with_the_step(engine):
    seeds = []
    for step in (0, 0, 1):
        call_trl(trl.reward_function("m", fresh_noise=True, sampling={"seed": 2**63 - 1}), ["q"], ["a 1"], step=step)
        seeds.append(engine.asked[-1].seed)
    assert seeds[0] == seeds[1] != seeds[2]
    call_trl(trl.reward_function("m"), ["q"], ["a 1"], step=5)
    assert engine.asked[-1].seed is None
    with pytest.raises(InputError, match="trainer_state"):
        asyncio.run(trl.reward_function("m", fresh_noise=True)(prompts=["q"], completions=["a 1"]))


# verl 0.9.0: verl/trainer/ppo/reward.py (get_custom_reward_fn), reward_loop/reward_manager/naive.py, reward_loop.py


async def _call_with_kwargs_async(raw_fn, extra_kwargs, *args, **kwargs):
    return await raw_fn(*args, **{**kwargs, **extra_kwargs})


def call_verl(reward_kwargs, solution, extra_info):
    """One result, from the function as verl loads, binds and awaits it."""
    path = "pkg://spct.adapters.verl"
    raw_fn = getattr(importlib.import_module(path.removeprefix("pkg://")), "compute_score")  # noqa: B009
    compute_score = partial(_call_with_kwargs_async, raw_fn, reward_kwargs)
    assert inspect.iscoroutinefunction(raw_fn) and inspect.iscoroutinefunction(compute_score)
    router = {"reward_router_address": "host:1", "reward_model_tokenizer": object()}
    return asyncio.run(compute_score(data_source="d", solution_str=solution, ground_truth="4", extra_info=extra_info, **router))


def test_verl_compute_score(engine):
    options = {"model": "m", "sampling": {"samples": 2}, "shape": "raw"}
    results = [call_verl(options, "a 3", {"question": "2+2?", "split": "train"})]
    assert results == [{"score": 3.0, "valid": 1.0, "votes": 2.0}]
    assert (engine.asked[-1].query, engine.asked[-1].reference) == ("2+2?", None)
    chat = np.array([{"role": "user", "content": "2+2?"}], dtype=object)
    call_verl({**options, "query_key": "messages", "with_reference": True}, "a 3", {"messages": chat})
    assert (engine.asked[-1].query[0].content, engine.asked[-1].reference) == ("2+2?", "4")
    with pytest.raises(MissingRewardError, match="on_missing"):
        call_verl(options, "a ?", {"question": "q"})
    # Every result has the same keys: verl takes those of the first row and indexes all others with them.
    results.append(call_verl({**options, "on_missing": -1}, "a ?", {"question": "q"}))
    assert results[1] == {"score": -1, "valid": 0.0, "votes": 0.0}
    columns = {key: np.array([result[key] for result in results]) for key in results[0]}
    assert columns["score"].tolist() == [3.0, -1.0]
    with pytest.raises(InputError, match="expected the prompt under 'question', got split; set query_key"):
        call_verl(options, "a 3", {"split": "train"})
    with pytest.raises(ConfigError, match="group_size"):
        call_verl({**options, "group_size": 4}, "a 3", {"question": "q"})


class RewardManagerBase:
    """verl's base class, as far as a manager can tell."""

    def __init__(self, config, tokenizer, compute_score):
        self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score

    @classmethod
    def assemble_rm_scores(cls, data, scores):
        return torch.tensor(scores, dtype=torch.float32)


class DataProto:
    """Rows of a batch: a slice is a batch, an index a row with `batch` and `non_tensor_batch`."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return DataProto(self.rows[index]) if isinstance(index, slice) else self.rows[index]


def verl_row(text, **more):
    ids = torch.tensor([ord(c) for c in text] + [0] * 4)
    mask = torch.tensor([1] * 3 + [1] * len(text) + [0] * 4)
    row = {"raw_prompt": np.array([{"role": "user", "content": "2+2?"}], dtype=object), "reward_model": {"ground_truth": "4"}, **more}
    return SimpleNamespace(batch={"responses": ids, "attention_mask": mask}, non_tensor_batch=row)


@pytest.fixture
def manager_class(monkeypatch):
    module = ModuleType("verl.experimental.reward_loop.reward_manager.base")
    module.RewardManagerBase = RewardManagerBase
    name = ""
    for part in module.__name__.split("."):
        name = f"{name}.{part}".removeprefix(".")
        monkeypatch.setitem(sys.modules, name, module if name == module.__name__ else ModuleType(name))
    verl._manager_class.cache_clear()
    yield verl.SpctRewardManager
    verl._manager_class.cache_clear()


def test_verl_reward_manager(engine, manager_class):
    assert issubclass(manager_class, RewardManagerBase) and verl.SpctRewardManager is manager_class
    tokenizer = SimpleNamespace(decode=lambda ids, skip_special_tokens: "".join(chr(i) for i in ids.tolist()))
    options = {"model": "m", "sampling": {"samples": 2}, "shape": "raw", "with_reference": True, "on_missing": 0.5}
    config = SimpleNamespace(reward={"reward_kwargs": {"spct": options}})
    # load_reward_manager, then compute_score_batch of a reward worker.
    router = {"reward_router_address": None, "reward_model_tokenizer": None}
    manager = manager_class(config=config, tokenizer=tokenizer, compute_score=lambda **_: 1 / 0, **router)
    data = DataProto([verl_row("a 3"), verl_row("b ?"), verl_row("c 7")])

    async def compute_score_batch():
        return await asyncio.gather(*[asyncio.create_task(manager.run_single(data[i : i + 1])) for i in range(len(data))])

    outputs = asyncio.run(compute_score_batch())
    assert manager_class.assemble_rm_scores(data, [item["reward_score"] for item in outputs]).tolist() == [3.0, 0.5, 7.0]
    assert [item["reward_extra_info"]["valid"] for item in outputs] == [1.0, 0.0, 1.0]
    assert {(request.query[0].content, request.reference, request.responses[0]) for request in engine.asked} == {
        ("2+2?", "4", "a 3"),
        ("2+2?", "4", "b ?"),
        ("2+2?", "4", "c 7"),
    }
    row = verl_row("a 3")
    del row.non_tensor_batch["raw_prompt"]
    with pytest.raises(InputError, match="return_raw_chat"):
        asyncio.run(manager.run_single(DataProto([row])))


def test_verl_module_works_without_verl():
    verl._manager_class.cache_clear()
    with pytest.raises(ConfigError, match=r"needs verl 0\.9"):
        _ = verl.SpctRewardManager
    assert not hasattr(verl, "Nothing")


# OpenRLHF 0.11.0: openrlhf/utils/agent.py, SingleTurnAgentExecutor; trainer/ppo_utils/samples_generator.py


FILE = """
from spct.adapters.openrlhf import make_reward_func
reward_func = make_reward_func("m", sampling={"samples": 2}, shape="raw", with_reference=True)
"""


def call_openrlhf(path, queries, prompts, labels):
    """What becomes of each query: as the executor loads the file, calls it in threads with lists of one, and reads the answer."""
    spec = importlib.util.spec_from_file_location("reward_func", str(path))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    async def fetch():
        calls = [asyncio.to_thread(module.reward_func, [q], [p], [x]) for q, p, x in zip(queries, prompts, labels, strict=True)]
        return await asyncio.gather(*calls)

    rows = []
    for info in asyncio.run(fetch()):
        reward, score = info.get("rewards"), info.get("scores") or info.get("rewards")
        logs = {key: torch.tensor([value.flatten()[0].item()]) for key, value in info["extra_logs"].items()}
        rows.append((torch.tensor([reward]), torch.tensor([score]), logs))
    return rows


def test_openrlhf(engine, tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(FILE)
    prompt = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
    queries = [prompt + "a 5 6<|im_end|>\n<|endoftext|>", "<s>" + prompt + "b 1</s>"]
    rows = call_openrlhf(path, queries, [prompt] * 2, ["4", ""])
    assert [reward.tolist() for reward, _, _ in rows] == [[5.5], [1.0]]
    # A score of 0 must not be taken for none: the reward, 1 here, would pass for the best of scores.
    assert rows[0][1].tolist() == [0.5] and 0 < rows[1][1].item() < 1e-6
    assert rows[0][2] == {"valid": torch.tensor([1.0]), "votes": torch.tensor([2.0])}
    assert {(r.query, r.responses, r.reference) for r in engine.asked} == {(prompt, ("a 5 6",), "4"), (prompt, ("b 1",), None)}


def test_openrlhf_missing_and_wrong(engine, tmp_path):
    path = tmp_path / "my_reward.py"
    path.write_text(FILE)
    with pytest.raises(MissingRewardError, match="no valid vote: 2 parse_error"):
        call_openrlhf(path, ["q a ?"], ["q "], ["4"])
    with pytest.raises(InputError, match=r"queries\[0\].*prompts\[0\].*cut at its start"):
        call_openrlhf(path, ["cut a 1"], ["q "], ["4"])
    function = openrlhf.make_reward_func("m", on_missing=-2, prompt_text=str.upper, end_marks=(), sampling={"samples": 1})
    found = function(["q a ?", "q b 10 </s>"], ["q ", "q "], [None, {"not": "read"}])
    assert (found["rewards"].tolist(), found["extra_logs"]["valid"].tolist()) == ([-2.0, 1.0], [0.0, 1.0])
    assert found["scores"].tolist() == [pytest.approx(0, abs=1e-6), 1.0]
    assert {(request.query, request.responses[0]) for request in engine.asked[-2:]} == {("Q ", "a ?"), ("Q ", "b 10 </s>")}
    for batch in (1, 3):
        assert function(["q a 1"] * batch, ["q "] * batch, [None] * batch)["rewards"].shape == (batch,)


# slime: slime/rollout/rm_hub/__init__.py (async_rm, batched_async_rm), slime/utils/types.py (Sample)


@dataclass
class Sample:
    response: str
    prompt: str | list = "q"
    label: str | None = None
    group_index: int | None = 0
    remove_sample: bool = False
    metadata: dict = field(default_factory=dict)


def call_slime(samples, args):
    module, _, name = "spct.adapters.slime.reward".rpartition(".")
    function = getattr(importlib.import_module(module), name)
    return asyncio.run(function(args, samples))


def slime_args(**options):
    return SimpleNamespace(
        reward_key=None, eval_reward_key=None, spct_reward={"model": "m", "sampling": {"samples": 2}, "shape": "raw", **options}
    )


def test_slime_one_sample(engine):
    assert call_slime(Sample("a 3"), slime_args()) == 3.0
    messages = [{"role": "user", "content": "2+2?"}]
    assert call_slime(Sample("a 3", messages, label="4"), slime_args(with_reference=True)) == 3.0
    assert (engine.asked[-1].query[0].content, engine.asked[-1].reference) == ("2+2?", "4")
    assert call_slime(Sample("a 1"), SimpleNamespace()) == 0.0
    with pytest.raises(MissingRewardError):
        call_slime(Sample("a ?"), slime_args())
    assert call_slime(Sample("a ?"), slime_args(on_missing=0.5)) == 0.5


def test_slime_group(engine):
    group = [Sample("a 3"), Sample("b 4"), Sample("c 5", group_index=1), Sample("d 6", group_index=1)]
    assert call_slime(group, slime_args(group_size=2)) == [3.0, 4.0, 5.0, 6.0]
    assert [request.responses for request in engine.asked] == [("a 3", "b 4"), ("c 5", "d 6")]


def test_slime_removes_what_has_no_reward(engine):
    group = [Sample("a 3"), Sample("b ?"), Sample("c 7"), Sample("d 9", group_index=1), Sample("e ?", group_index=2)]
    rewards = call_slime(group, slime_args(on_missing="remove"))
    assert rewards == [3.0, 5.0, 7.0, 9.0, 0.0]
    assert [sample.remove_sample for sample in group] == [False, True, False, False, True]
    # The group's mean, from which slime counts advantages, is that of the samples with a reward.
    assert sum(rewards[:3]) / 3 == (3.0 + 7.0) / 2
    kept = Sample("a 3", remove_sample=True)
    call_slime([kept], slime_args(on_missing="remove"))
    assert kept.remove_sample


def test_slime_reward_key(engine):
    args = slime_args()
    args.reward_key, args.eval_reward_key = "score", "acc"
    assert call_slime([Sample("a 3")], args) == [{"score": 3.0, "acc": 3.0, "votes": 2.0, "valid": 1.0}]
    args.eval_reward_key = None
    assert call_slime(Sample("a 3"), args) == {"score": 3.0, "votes": 2.0, "valid": 1.0}


def test_slime_wrong_use(engine):
    for options in ({"on_missing": "remove"}, {"group_size": 2}):
        with pytest.raises(ConfigError, match="--group-rm"):
            call_slime(Sample("a 3"), slime_args(**options))
    with pytest.raises(ConfigError, match="unknown option 'reference'"):
        call_slime(Sample("a 3"), slime_args(reference=True))
    with pytest.raises(InputError, match=r"samples\[0\]: expected a slime Sample, got list"):
        call_slime([[Sample("a 3")]], slime_args())

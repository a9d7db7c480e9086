"""The separate meta RM: its logits are those of transformers, its prefill is shared, its scores drive the filter."""

import asyncio
import dataclasses
import math

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_checkpoints import edit_config
from tiny_meta import FAMILIES, write_scalar
from tiny_model import write_tiny_model

from spct import BackendError, CapacityError, CheckpointError, ConfigError, Engine, SamplingParams, ScoreRequest, VotingParams
from spct.checkpoint import load
from spct.meta import MetaPrompt, load_meta_model
from spct.voting import num_kept

SAMPLING = SamplingParams(samples=6, max_tokens=24, seed=5)
REQUEST = ScoreRequest("which is larger?", ["the first one", "the second"], reference="the first")


def expected_logits(folder, request, samples):
    """What transformers gives for each sample alone: prompt, text, end; the logit at the last token."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    model.config.pad_token_id = None  # one row at a time: the last token is the last
    prompt = MetaPrompt(folder)
    with torch.inference_mode():
        rows = [(*prompt.encode(request, s.order), *prompt.continuation(s.text)) for s in samples]
        return [float(model(torch.tensor([row])).logits[0, 0]) for row in rows]


@pytest.fixture(scope="module", params=list(FAMILIES))
def scalar_folder(request, tmp_path_factory):
    return write_scalar(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    return write_scalar(tmp_path_factory.mktemp("scalar"))


def test_scores_are_the_logits_of_transformers(tiny_folder, scalar_folder):
    with Engine.from_pretrained(tiny_folder, meta_model=scalar_folder) as engine:
        j = engine.score(REQUEST, sampling=SAMPLING, voting=VotingParams(filter="none"))
    expected = expected_logits(scalar_folder, REQUEST, j.samples)
    assert len({s.order for s in j.samples}) == 2 and max(expected) - min(expected) > 0.05
    torch.testing.assert_close(torch.tensor([s.meta_score for s in j.samples]), torch.tensor(expected), atol=2e-4, rtol=1e-4)


def test_the_prompt_of_an_order_is_prefilled_once(tiny_folder, llama_folder):
    prompt = MetaPrompt(llama_folder)
    with Engine.from_pretrained(tiny_folder, meta_model=llama_folder) as engine:
        j = engine.score(REQUEST, sampling=SAMPLING)
        rows = [(*prompt.encode(REQUEST, s.order), *prompt.continuation(s.text)) for s in j.samples]
        distinct = len({row[:end] for row in rows for end in range(1, len(row) + 1)})
        assert engine.meta_stats.num_prefilled == engine.meta_stats.num_rows == distinct < sum(map(len, rows)) / 2
        assert engine.meta_stats.num_draws == len(rows) and j.usage.meta_tokens == distinct
        again = engine.score(REQUEST, sampling=SAMPLING)
        # Only the last rows of prompts that were cut out of longer runs are computed again, if any.
        assert engine.meta_stats.num_prefilled <= distinct + len(rows)
        assert [s.meta_score for s in again.samples] == [s.meta_score for s in j.samples]


def test_scores_drive_the_filter_and_are_told_apart_from_no_filter(tiny_folder, llama_folder):
    """A tiny random judge writes no scores, so its parsed samples are planted through the vote itself."""
    with Engine.from_pretrained(tiny_folder, meta_model=llama_folder) as engine:
        pending = engine._prepare(REQUEST, SAMPLING, VotingParams(filter="auto", meta_keep=0.5), 0)
        engine._loop.submit(pending.group)
        engine._loop.drive_until(pending.group)
        for i, sequence in enumerate(pending.group.sequences):
            sequence.token_ids = list(engine.prompt.encode_text(f"Scores: \\boxed{{{i + 1}, 3}}"))
            sequence.token_ids.append(256)
            sequence.logprobs = [0.0] * len(sequence.token_ids)
            sequence.finish_reason = "eos"
        engine._meta_loop.drive_until(engine._begin_reading(pending))
        j = engine._judging.finish(pending)
    scores = [s.meta_score for s in j.samples]
    assert None not in scores and len(set(scores)) == len(scores)
    best = sorted(range(6), key=lambda i: -scores[i])[: num_kept(6, 0.5)]
    assert {i for i, s in enumerate(j.samples) if s.kept} == set(best) and j.num_votes == 3


def test_the_same_scores_alone_in_a_crowd_and_from_an_event_loop(tiny_folder, llama_folder):
    requests = [ScoreRequest(f"query {i} " * (1 + i % 3), ["aa", "b " * i + "b"], id=i) for i in range(7)]
    with Engine.from_pretrained(tiny_folder, meta_model=llama_folder) as engine:
        alone = [[s.meta_score for s in engine.score(r, sampling=SAMPLING).samples] for r in requests]
    for options in ({}, {"max_batch": 3, "max_prefill_tokens": 33}, {"kv_memory": "300KiB"}):
        with Engine.from_pretrained(tiny_folder, meta_model=llama_folder, **options) as engine:
            crowd = {j.index: [s.meta_score for s in j.samples] for j in engine.score_batch(requests, sampling=SAMPLING)}
            ledger = engine._meta_loop.scheduler.tree.ledger()
        assert [crowd[i] for i in range(7)] == alone
        assert ledger.referenced == 0

    async def together(engine):
        return await asyncio.gather(*(engine.score_async(r, sampling=SAMPLING) for r in requests))

    with Engine.from_pretrained(tiny_folder, meta_model=llama_folder) as engine:
        assert [[s.meta_score for s in j.samples] for j in asyncio.run(together(engine))] == alone


def test_it_goes_before_the_checkpoints_own_head(tiny_folder_with_meta_head, llama_folder):
    with Engine.from_pretrained(tiny_folder_with_meta_head) as engine:
        own = engine.score(REQUEST, sampling=SAMPLING)
        plain = engine.fingerprints(SAMPLING, VotingParams())
    with Engine.from_pretrained(tiny_folder_with_meta_head, meta_model=llama_folder) as engine:
        j = engine.score(REQUEST, sampling=SAMPLING)
        assert [s.text for s in j.samples] == [s.text for s in own.samples]
        assert [s.meta_score for s in j.samples] != [s.meta_score for s in own.samples]
        told = engine.fingerprints(SAMPLING, VotingParams())
    assert {name for name in told if told[name] != plain[name]} == {"weights"}


def test_what_does_not_fit_has_no_score_or_is_refused(tiny_folder, tmp_path):
    folder = write_scalar(tmp_path)
    prompt_len = len(MetaPrompt(folder).encode(REQUEST, (0, 1)))
    edit_config(folder, lambda c: c.update(max_position_embeddings=prompt_len + 2))
    with Engine.from_pretrained(tiny_folder, meta_model=folder) as engine:
        # Every sample of 24 tokens is longer than what the context leaves, save those that end at once.
        j = engine.score(REQUEST, sampling=SAMPLING)
        assert all((s.meta_score is None) == (len(s.text.encode()) + 1 > 2) for s in j.samples) and j.samples[0].meta_score is None
        with pytest.raises(CapacityError, match="meta_model: its prompt"):
            engine.score(dataclasses.replace(REQUEST, query="which is larger??!"), sampling=SAMPLING)


def test_a_score_that_is_no_number_is_none(tiny_folder, tmp_path):
    folder = write_scalar(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = torch.full_like(tensors["model.norm.weight"], 3e38)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with Engine.from_pretrained(tiny_folder, meta_model=folder) as engine:
        assert [s.meta_score for s in engine.score(REQUEST, sampling=SAMPLING).samples] == [None] * 6


def test_bad_folders_are_refused_by_name(tiny_folder, llama_folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"meta_model: .*ForSequenceClassification.*got.*LlamaForCausalLM.*spct train meta"):
        Engine.from_pretrained(tiny_folder, meta_model=tiny_folder)
    with pytest.raises(CheckpointError, match=r"LlamaForSequenceClassification.*give it as meta_model"):
        Engine.from_pretrained(llama_folder)
    with pytest.raises(CheckpointError, match=r"score\.weight.*\[1, 48\], got \[2, 48\]"):
        Engine.from_pretrained(tiny_folder, meta_model=write_scalar(tmp_path / "two", num_labels=2))
    with pytest.raises(ConfigError, match=r"meta_model: .*no such folder"):
        Engine.from_pretrained(tiny_folder, meta_model=tmp_path / "nowhere")
    for nothing in ("", 3):
        with pytest.raises(ConfigError, match="meta_model: expected a folder or a hub id"):
            Engine.from_pretrained(tiny_folder, meta_model=nothing)
    folder = write_scalar(tmp_path / "torn")
    tensors = load_file(folder / "model.safetensors")
    for change, message in (
        ({"score.weight": torch.full((1, 48), math.nan)}, "finite"),
        ({"lm_head.weight": torch.zeros(2, 48)}, "lm_head"),
    ):
        save_file({**tensors, **change}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            Engine.from_pretrained(tiny_folder, meta_model=folder)
    save_file({k: v for k, v in tensors.items() if k != "score.weight"}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"score\.weight.*missing"):
        Engine.from_pretrained(tiny_folder, meta_model=folder)


def test_cancelling_while_samples_are_read_frees_their_memory(tiny_folder, llama_folder):
    with Engine.from_pretrained(tiny_folder, meta_model=llama_folder, max_prefill_tokens=16) as engine:
        pending = engine._submit(REQUEST, SAMPLING, None, 0)
        engine._loop.drive_until(pending.group)
        reading = engine._begin_reading(pending)
        tree = engine._meta_loop.scheduler.tree
        assert engine._meta_loop.step() and tree.ledger().referenced > 0 and not reading.is_finished
        assert engine._begin_reading(pending) is reading
        engine._cancel(pending)
        assert reading.is_finished and tree.ledger().referenced == 0
        # A dropped stream does the same.
        stream = engine.score_batch([REQUEST, dataclasses.replace(REQUEST, query="another")], sampling=SAMPLING)
        next(stream)
        stream.close()
        assert tree.ledger().referenced == 0 and not engine._meta_loop.scheduler.has_work


def test_a_failed_reading_fails_its_request_and_no_other(tiny_folder, llama_folder, monkeypatch):
    with Engine.from_pretrained(tiny_folder, meta_model=llama_folder) as engine:
        expected = [s.meta_score for s in engine.score(REQUEST, sampling=SAMPLING).samples]

        def fails(step):
            raise RuntimeError("no memory")

        other = dataclasses.replace(REQUEST, query="another")
        with monkeypatch.context() as patch:
            patch.setattr(engine._meta_loop.runner, "run", fails)
            with pytest.raises(BackendError, match="no memory"):
                engine.score(other, sampling=SAMPLING)
            (failed,) = engine.score_batch([other], sampling=SAMPLING)
            assert isinstance(failed.error, BackendError)
        assert [s.meta_score for s in engine.score(REQUEST, sampling=SAMPLING).samples] == expected


def test_a_sample_can_not_write_control_tokens(llama_folder):
    prompt = MetaPrompt(llama_folder)
    ids = prompt.continuation("a<special1>b")
    assert ids[-1:] == prompt.end == (257,) and 257 not in ids[:-1]


def test_loading_needs_no_head_over_the_vocabulary(llama_folder):
    loaded = load(llama_folder, head="score")
    assert loaded.decoder.weights.embedding is loaded.decoder.head.lm_head
    weight = load_file(llama_folder / "model.safetensors")["score.weight"][0]
    assert torch.equal(loaded.decoder.head.meta_weight, weight) and loaded.decoder.head.meta_bias == 0.0


def test_own_template_of_the_folder(tmp_path):
    folder = write_scalar(tmp_path)
    default = MetaPrompt(folder)
    assert "[The Begin of Response 2]\nthe first one" in default._prompt.text(REQUEST, (1, 0))
    (folder / "meta_template.jinja").write_text("{{ query }}|{{ reference }}{% for r in responses %}|{{ r }}{% endfor %}>")
    own = MetaPrompt(folder)
    assert own._prompt.text(REQUEST) == "which is larger?|the first|the first one|the second>" and own.digest != default.digest


def test_load_meta_model_gives_scores_by_sample_index(llama_folder):
    from spct.config import EngineConfig

    meta = load_meta_model(str(llama_folder), EngineConfig(), torch.device("cpu"))
    prompts = meta.encode(REQUEST, [(0, 1)])
    group = meta.group(prompts, [(0, 1)] * 3, ["x", None, "y"], 0)
    meta.loop.submit(group)
    meta.loop.drive_until(group)
    scores = meta.scores(group, 3)
    assert scores[1] is None and None not in (scores[0], scores[2]) and scores[0] != scores[2]


def test_load_weights_replaces_the_checkpoints_meta_head(tmp_path):
    folder = write_tiny_model(tmp_path, meta_head=True)
    weights = load_file(folder / "model.safetensors")
    with Engine.from_pretrained(folder) as engine:
        before = engine.score(REQUEST, sampling=SAMPLING)
        head = {"meta_head.weight": torch.zeros(64), "meta_head.bias": torch.tensor([2.5])}
        engine.load_weights({**weights, **head})
        after = engine.score(REQUEST, sampling=SAMPLING)
        assert [s.text for s in after.samples] == [s.text for s in before.samples]
        assert {s.meta_score for s in after.samples} == {2.5} != {s.meta_score for s in before.samples}
        for bad in ({"meta_head.weight": torch.zeros(63)}, {"meta_head.bias": torch.tensor([math.nan])}):
            with pytest.raises(CheckpointError, match="meta_head"):
                engine.load_weights({**weights, **bad})
        assert {s.meta_score for s in engine.score(REQUEST, sampling=SAMPLING).samples} == {2.5}

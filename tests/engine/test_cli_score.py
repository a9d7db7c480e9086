"""`spct score` on a tiny random model: rows, exit codes, refusals, resuming, dry runs."""

import io
import json
import os
import sys

import pytest
from command_line import environment, essence, numbered, read_rows, spct, write_rows
from hostile_rows import HOSTILE
from tiny_model import tiny_weights, write_tiny_model

from spct import BackendError, Engine, SamplingParams, VotingParams
from spct.cli import score as score_module

FEW = ("--samples", 3, "--max-tokens", 6)


@pytest.fixture
def model(tiny_folder):
    return ("--model", tiny_folder, *FEW)


def run(tmp_path, rows, *words, name="out.jsonl"):
    source = write_rows(tmp_path / "in.jsonl", rows)
    return spct("score", source, "-o", tmp_path / name, *words)


def test_a_row_per_request_with_the_fields_of_the_contract(tmp_path, model, tiny_folder):
    assert run(tmp_path, numbered(5), *model) == 0
    rows = read_rows(tmp_path / "out.jsonl")
    assert sorted(row["id"] for row in rows) == list(range(5))
    with Engine.from_pretrained(tiny_folder) as engine:
        sampling = SamplingParams(samples=3, max_tokens=6)
        parts = engine.fingerprints(sampling, VotingParams())
        for row in rows:
            request = numbered(5)[row["id"]]
            judgement = engine.score(request["query"], request["responses"], sampling=sampling)
            assert row["status"] == "ok" and row["error"] is None and row["best"] == judgement.best
            assert row["rewards"] == list(judgement.rewards) and row["num_votes"] == judgement.num_votes
            for told, sample in zip(row["samples"], judgement.samples, strict=True):
                assert set(told) == {"scores", "status", "kept", "meta_score", "order", "num_tokens"}
                assert told["status"] == sample.status and tuple(told["order"]) == sample.order
                assert told["num_tokens"] == sample.num_tokens and told["kept"] == sample.kept
            assert row["usage"]["generated_tokens"] == judgement.usage.generated_tokens
            assert row["usage"]["prompt_tokens"] == judgement.usage.prompt_tokens
            assert row["timings"]["total_ms"] > 0
            assert row["run"] == {**parts, "include": row["run"]["include"]}
    assert {"weights", "tokenizer", "template", "sampling", "voting", "numerics", "versions"} <= set(parts)


def test_meta_scores_and_texts_are_told(tmp_path, tiny_folder_with_meta_head):
    words = ("--model", tiny_folder_with_meta_head, *FEW, "--include", "text")
    assert run(tmp_path, numbered(2), *words) == 0
    for row in read_rows(tmp_path / "out.jsonl"):
        assert all(isinstance(s["meta_score"], float) and isinstance(s["text"], str) for s in row["samples"])


def test_every_flag_reaches_the_engine(tmp_path, tiny_folder, monkeypatch):
    seen = {}

    class Recorder:
        def __init__(self, model, **options):
            seen.update(model=model, options=options)
            self.engine = Engine.from_pretrained(model, **options)

        from_pretrained = classmethod(lambda cls, model, **options: cls(model, **options))

        def score_batch(self, requests, **params):
            seen.update(params)
            return self.engine.score_batch(requests, **params)

        def fingerprints(self, *params):
            return self.engine.fingerprints(*params)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.engine.close()

    monkeypatch.setattr(score_module, "Engine", Recorder)
    template = tmp_path / "t.jinja"
    template.write_text("{{ query }}{% for r in responses %}[{{ r }}]{% endfor %}")
    sampling = SamplingParams(samples=2, temperature=0.5, top_p=0.9, top_k=20, min_p=0.1, max_tokens=3, seed=7)
    flags = ("--samples", 2, "--temperature", 0.5, "--top-p", 0.9, "--top-k", 20, "--min-p", 0.1, "--max-tokens", 3, "--seed", 7)
    votes = ("--vote", "majority", "--filter", "logprob", "--meta-keep", 0.25, "--orders", "all")
    engine = ("--device", "cpu", "--dtype", "bf16", "--weights", "fp32", "--kv-memory", "2MiB", "--template", template)
    assert run(tmp_path, numbered(1), "--model", tiny_folder, *flags, *votes, *engine) == 0
    assert seen["sampling"] == sampling
    assert seen["voting"] == VotingParams(method="majority", filter="logprob", meta_keep=0.25, orders="all")
    options = {"device": "cpu", "dtype": "bf16", "weights": "fp32", "kv_memory": "2MiB", "template": str(template)}
    assert (seen["model"], seen["options"]) == (str(tiny_folder), options)


def test_hostile_rows_become_error_rows_and_the_rest_goes_on(tmp_path, model, capfd):
    good = numbered(6)
    past_context = {"id": "long", "query": "x" * 600, "responses": ["a"]}
    too_many = {"id": "many", "query": "q", "responses": ["a"], "samples": 5000}
    rows = [data for data, _ in HOSTILE.values()]
    mixed = [*good[:3], *rows, past_context, too_many, *good[3:]]
    assert run(tmp_path, mixed, *model) == 3
    found = read_rows(tmp_path / "out.jsonl")
    assert len(found) == len(mixed)
    assert sorted(row["id"] for row in found if row["status"] == "ok") == list(range(6))
    errors = {row["error"]["line"]: row for row in found if row["status"] == "error"}
    assert sorted(errors) == list(range(4, 4 + len(rows) + 2))
    for row in errors.values():
        assert (row["samples"], row["rewards"], row["best"]) == ([], [], None)
        assert row["error"]["message"] and len(row["error"]["message"]) <= 1001
        assert set(row["usage"].values()) == {0} and row["key"] and row["run"] == found[0]["run"]
    (long,) = (row for row in found if row["id"] == "long")
    assert long["error"]["type"] == "CapacityError" and "512" in long["error"]["message"]
    (many,) = (row for row in found if row["id"] == "many")
    assert many["error"]["type"] == "CapacityError" and "5000" in many["error"]["message"]
    by_name = dict(zip(HOSTILE, (errors[4 + i] for i in range(len(rows))), strict=True))
    assert by_name["no samples"]["id"] == "a" and by_name["unknown field"]["id"] == "a" and by_name["not json"]["id"] is None
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err and printed.out == ""


@pytest.mark.parametrize("data", [b"", b"\n\n \r\n"])
def test_an_empty_input_gives_an_empty_file(tmp_path, model, data):
    (tmp_path / "in.jsonl").write_bytes(data)
    assert spct("score", tmp_path / "in.jsonl", "-o", tmp_path / "out.jsonl", *model) == 0
    assert (tmp_path / "out.jsonl").read_bytes() == b""


def test_stdin_to_stdout_puts_only_rows_there(tmp_path, model, capfd, monkeypatch):
    original = Engine.score_batch

    def noisy(self, *args, **kwargs):
        print("from a library")
        os.write(1, b"from C code\n")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "score_batch", noisy)
    with open(write_rows(tmp_path / "in.jsonl", numbered(3))) as source:
        monkeypatch.setattr(sys, "stdin", source)
        assert spct("score", *model) == 0
    printed = capfd.readouterr()
    assert sorted(json.loads(text)["id"] for text in printed.out.splitlines()) == [0, 1, 2]
    assert "from C code" in printed.err and "3 judged" in printed.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--samples", "0"), "samples"),
        (("--samples", "many"), "--samples"),
        (("--samples", "4097"), "max_samples=4096"),
        (("--temperature", "nan"), "temperature"),
        (("--temperature", "-1"), "temperature"),
        (("--top-p", "0"), "top_p"),
        (("--top-k", "-1"), "top_k"),
        (("--seed", "9223372036854775808"), "seed"),
        (("--max-tokens", "1e3"), "--max-tokens"),
        (("--filter", "meta"), "meta"),
        (("--meta-keep", "2"), "meta_keep"),
        (("--dtype", "int4"), "dtype"),
        (("--weights", "int3"), "weights"),
        (("--device", "tpu"), "device"),
        (("--kv-memory", "lots"), "kv_memory"),
        (("--template", "nowhere.jinja"), "nowhere.jinja"),
        (("--stop-early", "1"), "--stop-early"),
        (("--prune",), "--prune"),
        (("--sample", "3"), "--sample"),
        (("--overwrite", "--resume"), "--overwrite"),
        (("--overwrite", "--retry-errors"), "--overwrite"),
    ],
)
def test_usage_errors_exit_2_and_name_the_flag(tmp_path, model, capsys, words, message):
    assert run(tmp_path, numbered(1), *model, *words) == 2
    assert message in capsys.readouterr().err


def test_places_that_cannot_be_used_exit_2(tmp_path, model, tiny_folder, capsys):
    source = write_rows(tmp_path / "in.jsonl", numbered(1))
    out = tmp_path / "out.jsonl"
    for words in (
        ("score", tmp_path / "missing.jsonl", "-o", out, *model),
        ("score", tmp_path, "-o", out, *model),
        ("score", source, "-o", tmp_path, *model),
        ("score", source, "-o", tmp_path / "no" / "out.jsonl", *model),
        ("score", source, "-o", source, "--overwrite", *model),
        ("score", source, "-o", "-", "--resume", *model),
        ("score", source, "-o", out, "--model", tmp_path / "nothing"),
        ("frobnicate",),
        ("score", source, source),
        (),
    ):
        assert spct(*words) == 2, words
        assert capsys.readouterr().err
    assert read_rows(source) == numbered(1)


def test_a_broken_checkpoint_exits_1_and_keeps_what_was_there(tmp_path, capsys):
    folder = write_tiny_model(tmp_path / "broken")
    (folder / "model.safetensors").write_bytes(b"not weights")
    (tmp_path / "out.jsonl").write_text("precious")
    assert run(tmp_path, numbered(1), "--model", folder, "--overwrite") == 1
    assert "model.safetensors" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == "precious"


def test_an_existing_output_is_refused_replaced_or_continued(tmp_path, model, capsys):
    out = tmp_path / "out.jsonl"
    assert run(tmp_path, numbered(3), *model) == 0
    first = out.read_bytes()
    assert run(tmp_path, numbered(4), *model) == 2
    assert "--resume" in capsys.readouterr().err and out.read_bytes() == first
    assert run(tmp_path, numbered(4), *model, "--resume") == 0
    assert out.read_bytes().startswith(first) and len(read_rows(out)) == 4
    assert "3 already there" in capsys.readouterr().err
    assert run(tmp_path, numbered(2), *model, "--overwrite") == 0
    assert len(read_rows(out)) == 2


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, tiny_folder):
    """(input rows, output file) of a run that was not disturbed: equal rows, bad rows and all."""
    folder = tmp_path_factory.mktemp("unbroken")
    rows = [*numbered(6), b"oops", *numbered(3), b'{"id": "\xff"}', b"oops", {"id": "z", "query": "q", "responses": []}]
    assert run(folder, rows, "--model", tiny_folder, *FEW) == 3
    return rows, folder / "out.jsonl"


@pytest.mark.parametrize("kept", [0, 1, 4, 8, 12, 13])
@pytest.mark.parametrize("torn", [0, 1, 60, 10**6])
def test_resuming_gives_what_an_unbroken_run_gives(tmp_path, model, unbroken, kept, torn):
    rows, expected = unbroken
    lines = expected.read_bytes().splitlines(keepends=True)
    tail = lines[kept][:torn].rstrip(b"\n") if kept < len(lines) else b""
    (tmp_path / "out.jsonl").write_bytes(b"".join(lines[:kept]) + tail)
    assert run(tmp_path, rows, *model, "--resume") == 3
    assert essence(tmp_path / "out.jsonl") == essence(expected)
    assert (tmp_path / "out.jsonl").read_bytes().startswith(b"".join(lines[:kept]))


def test_resuming_a_changed_input_judges_what_is_new_and_keeps_what_is_there(tmp_path, model, unbroken):
    rows, expected = unbroken
    (tmp_path / "out.jsonl").write_bytes(expected.read_bytes())
    new = [{"id": "new", "query": "new", "responses": ["a"]}, *reversed(rows[2:]), rows[0]]
    assert run(tmp_path, new, *model, "--resume") == 3
    before, after = essence(expected), essence(tmp_path / "out.jsonl")
    added = [json.loads(row) for row in after if row not in before]
    assert set(before) <= set(after) and [row["id"] for row in added] == ["new"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--samples", 4), "sampling"),
        (("--seed", 1), "sampling"),
        (("--vote", "mean"), "voting"),
        (("--orders", "given"), "voting"),
        (("--dtype", "bf16"), "numerics"),
        (("--include", "text"), "include"),
        (("--template", "default"), "template"),
    ],
)
def test_resuming_with_other_settings_is_refused_by_name(tmp_path, model, unbroken, capsys, words, part):
    rows, expected = unbroken
    (tmp_path / "out.jsonl").write_bytes(expected.read_bytes())
    assert run(tmp_path, rows, *model, *words, "--resume") == 2
    assert f"other settings: {part};" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_bytes() == expected.read_bytes()


def test_resuming_with_another_model_is_refused_by_name(tmp_path, unbroken, capsys):
    rows, expected = unbroken
    (tmp_path / "out.jsonl").write_bytes(expected.read_bytes())
    other = write_tiny_model(tmp_path / "other", weights=tiny_weights(seed=5))
    assert run(tmp_path, rows, "--model", other, *FEW, "--resume") == 2
    assert "other settings: weights;" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--kv-memory", "1MiB"), ("--device", "cpu"), ()])
def test_memory_does_not_count_as_a_setting(tmp_path, model, unbroken, words, monkeypatch):
    monkeypatch.setenv("SPCT_MAX_BATCH", "2")
    rows, expected = unbroken
    (tmp_path / "out.jsonl").write_bytes(b"".join(expected.read_bytes().splitlines(keepends=True)[:5]))
    assert run(tmp_path, rows, *model, *words, "--resume") == 3
    assert essence(tmp_path / "out.jsonl") == essence(expected)


def test_error_rows_are_tried_again_only_when_asked(tmp_path, model, monkeypatch):
    original = Engine.score_batch

    def fragile(self, requests, **params):
        for judgement in original(self, requests, **params):
            if judgement.id in (1, 3):
                error = BackendError("the device went away")
                judgement = type(judgement)((None, None), None, 0, (None, None), (), id=judgement.id, index=judgement.index, error=error)
            yield judgement

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "score_batch", fragile)
        assert run(tmp_path, [*numbered(5), b"oops"], *model) == 3
    out = tmp_path / "out.jsonl"
    assert sorted(str(row["id"]) for row in read_rows(out) if row["status"] == "error") == ["1", "3", "None"]
    before = out.read_bytes()
    assert run(tmp_path, [*numbered(5), b"oops"], *model, "--resume") == 3
    assert out.read_bytes() == before
    assert run(tmp_path, [*numbered(5), b"oops"], *model, "--resume", "--retry-errors") == 3
    assert [row["error"]["line"] for row in read_rows(out) if row["status"] == "error"] == [6]
    assert run(tmp_path, [*numbered(5), b"oops"], *model, name="fresh.jsonl") == 3
    assert essence(out) == essence(tmp_path / "fresh.jsonl")
    assert run(tmp_path, numbered(5), *model, "--retry-errors") == 0
    assert sorted(row["id"] for row in read_rows(out)) == list(range(5))


def test_a_full_device_is_no_success(tmp_path, model, capsys):
    source = write_rows(tmp_path / "in.jsonl", numbered(3))
    assert spct("score", source, "-o", "/dev/full", *model) == 1
    message = capsys.readouterr().err
    assert "No space left" in message and "judged" not in message and "Traceback" not in message


def test_rows_are_read_only_as_far_as_the_batch_needs(tmp_path, model, monkeypatch):
    read, written = [], []
    reader = score_module.read_rows

    def counting(stream):
        for row in reader(stream):
            read.append(row.line)
            yield row

    class Store(score_module.OutputStore):
        def append(self, row):
            written.append(len(read))
            super().append(row)

    monkeypatch.setattr(score_module, "read_rows", counting)
    monkeypatch.setattr(score_module, "OutputStore", Store)
    monkeypatch.setenv("SPCT_MAX_BATCH", "4")
    assert run(tmp_path, numbered(30), *model) == 0
    assert len(written) == 30 and max(ahead - done for done, ahead in enumerate(written)) <= 8


def test_the_environment_sets_options_and_flags_win(tmp_path, tiny_folder, monkeypatch, capsys):
    monkeypatch.setenv("SPCT_DTYPE", "bf16")
    assert spct("info", tiny_folder, "--json") == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "bf16"
    assert spct("info", tiny_folder, "--dtype", "fp32", "--json") == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "fp32"
    monkeypatch.setenv("SPCT_DTIPE", "bf16")
    assert spct("info", tiny_folder, "--json") == 2
    assert "SPCT_DTIPE" in capsys.readouterr().err
    assert "SPCT_DTIPE" not in environment()


def test_a_dry_run_counts_what_a_run_uses_and_judges_nothing(tmp_path, model, tiny_folder, capsys):
    rows = [*numbered(4), b"oops", {"query": "x" * 600, "responses": ["a"]}, {"query": "q", "responses": ["a", "b", "c"], "samples": 7}]
    source = write_rows(tmp_path / "in.jsonl", rows)
    assert spct("score", source, "-o", tmp_path / "out.jsonl", *model, "--dry-run") == 3
    assert not (tmp_path / "out.jsonl").exists()
    *lines, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [row["line"] for row in lines] == list(range(1, 8))
    assert [row["line"] for row in lines if row["error"]] == [5, 6]
    totals = last["totals"]
    assert (totals["requests"], totals["error_rows"], totals["samples"]) == (5, 2, 19)
    assert totals["generated_tokens"] == 19 * 6 and totals["seconds"] > 0
    for row, request in zip(lines, rows, strict=True):
        if row["error"] is None:
            one = SamplingParams(samples=request.get("samples", 3), max_tokens=6)
            with Engine.from_pretrained(tiny_folder) as engine:
                usage = engine.score(request["query"], request["responses"], sampling=one).usage
            assert (row["prompt_tokens"], row["prefilled_tokens"]) == (usage.prompt_tokens, usage.prefilled_tokens)
            assert row["samples"] == one.samples and row["generated_tokens"] >= usage.generated_tokens
    assert totals["kv_bytes"] == max(row["kv_bytes"] for row in lines if row["error"] is None)


def test_a_dry_run_on_a_terminal_is_a_table(tmp_path, model, capsys, monkeypatch):
    source = write_rows(tmp_path / "in.jsonl", [*numbered(2), b"[bold]oops"])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert spct("score", source, "--dry-run", *model) == 3
    printed = capsys.readouterr().out
    assert "2 with 6 samples" in printed and "line 3: malformed JSON" in printed and "KV memory" in printed


def test_progress_is_drawn_on_a_terminal_only(tmp_path, model, capsys, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    assert run(tmp_path, numbered(3), *model) == 0
    assert "judging" not in capsys.readouterr().err
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert run(tmp_path, [*numbered(3), b"oops"], *model, "--overwrite") == 3
    assert "judging" in terminal.getvalue() and "/4" in terminal.getvalue()

"""Hostile and malformed config.json and side files: CheckpointError naming the file and the key, and nothing is ever run."""

import contextlib
import functools
import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import SHAPE, TINY, edit_config, write_tiny

from spct import CheckpointError, ConfigError, checkpoint


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("pristine"), TINY[0])


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "model")


def refused(folder, *words, name="config.json"):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(folder)
    for word in (name, *words):
        assert word in str(caught.value)


_listening = []


@functools.cache
def _install_hook():
    """Once: an audit hook stays for the life of the process."""
    sys.addaudithook(lambda event, args: [events.append((event, *map(str, args[:3]))) for events in _listening])


@contextlib.contextmanager
def audited():
    """The audit events of the block, as (name, first arguments)."""
    _install_hook()
    events = []
    _listening.append(events)
    try:
        yield events
    finally:
        _listening.remove(events)


REMOTE_CODE = [
    {"auto_map": {"AutoModelForCausalLM": "evil.Model"}},
    {"auto_map": {"AutoConfig": "someone/elsewhere--evil.Config"}},
    {"custom_pipelines": {"text-generation": {"impl": "evil.Pipeline"}}},
    {"trust_remote_code": True},
]


@pytest.mark.parametrize("keys", REMOTE_CODE, ids=str)
def test_remote_code_is_refused_and_never_run(folder, keys):
    canary = folder / "canary"
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('run')\n")
    (folder / "configuration_llama.py").write_text(f"open({str(canary)!r}, 'w').write('run')\n")
    edit_config(folder, lambda c: c.update(keys))
    with audited() as events:
        refused(folder, next(iter(keys)))
    opened = [args[0] for event, *args in events if event == "open" and str(folder) in args[0]]
    assert not canary.exists() and "evil" not in sys.modules
    assert opened and all(name.endswith("config.json") for name in opened)


VALUES = [
    ("architectures", ["GPT2LMHeadModel"]),
    ("architectures", ["LlamaForCausalLM", "MistralForCausalLM"]),
    ("architectures", ["LlamaForSequenceClassification"]),
    ("architectures", "LlamaForCausalLM"),
    ("architectures", []),
    ("architectures", [["LlamaForCausalLM"]]),
    ("model_type", "mistral"),
    ("model_type", 3),
    ("hidden_size", None),
    ("hidden_size", 0),
    ("hidden_size", -48),
    ("hidden_size", "48"),
    ("hidden_size", True),
    ("hidden_size", 48.5),
    ("hidden_size", 1e400),
    ("hidden_size", 2**70),
    ("num_hidden_layers", 10**9),
    ("num_hidden_layers", 0),
    ("num_attention_heads", "4"),
    ("num_key_value_heads", 3),
    ("num_key_value_heads", 8),
    ("head_dim", 17),
    ("head_dim", 512),
    ("vocab_size", 2**40),
    ("intermediate_size", [88]),
    ("max_position_embeddings", -1),
    ("rms_norm_eps", "1e-6"),
    ("rms_norm_eps", -1),
    ("hidden_act", "relu"),
    ("hidden_act", ["silu"]),
    ("hidden_act", None),
    ("tie_word_embeddings", "false"),
    ("attention_bias", 1),
    ("layer_types", ["full_attention"]),
    ("layer_types", ["full_attention", "full_attention", "sliding_attention"]),
    ("layer_types", ["full_attention", "full_attention", "linear_attention"]),
    ("layer_types", "full_attention"),
    ("quantization_config", {"quant_method": "awq"}),
    ("partial_rotary_factor", 0.5),
    ("per_layer_config", {"0": {"num_key_value_heads": 1}}),
    ("is_encoder_decoder", True),
    ("rope_parameters", "default"),
    ("rope_parameters", {"rope_type": "dynamic", "factor": 2.0}),
    ("rope_parameters", {"rope_type": "longrope", "factor": 2.0}),
    ("rope_parameters", {"rope_type": ["linear"], "factor": 2.0}),
    ("rope_parameters", {"rope_type": "linear"}),
    ("rope_parameters", {"rope_type": "linear", "factor": 0}),
    ("rope_parameters", {"rope_type": "linear", "factor": "2"}),
    ("rope_parameters", {"rope_type": "default", "rope_theta": -1.0}),
    ("rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.25}),
    ("rope_parameters", {"rope_type": "llama3", "factor": 8.0}),
    ("rope_parameters", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}),
    ("rope_parameters", {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0}),
    ("rope_parameters", {"sliding_attention": {"rope_type": "default"}}),
    ("rope_scaling", {"type": "dynamic", "factor": 2.0}),
    ("rope_scaling", {"type": "mrope", "mrope_section": [1, 2]}),
    ("rope_theta", "10000"),
]


@pytest.mark.parametrize(("key", "value"), VALUES, ids=lambda v: str(v)[:60])
def test_values_that_are_not_supported_are_refused(folder, key, value):
    edit_config(folder, lambda c: c.update({key: value}))
    refused(folder, "Infinity" if value == 1e400 else key)


WINDOWS = [
    ("mistral-window", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}, "layer_types"),
    ("mistral-window", {"sliding_window": 0}, "sliding_window"),
    ("qwen2-window-layers", {"use_sliding_window": False}, "use_sliding_window"),
    ("qwen2-window-layers", {"sliding_window": None}, "sliding_window"),
    ("gemma2", {"sliding_window": None}, "sliding_window"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma2", {"final_logit_softcapping": 0.0}, "final_logit_softcapping"),
    ("gemma2", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar"),
    ("gemma2", {"hidden_activation": "relu"}, "hidden_activation"),
]


@pytest.mark.parametrize(("name", "keys", "word"), WINDOWS, ids=str)
def test_contradictory_options_are_refused(tmp_path, name, keys, word):
    folder = write_tiny(tmp_path, next(t for t in TINY if t.name == name))
    edit_config(folder, lambda c: c.update(keys))
    refused(folder, word)


@pytest.mark.parametrize(
    "key", sorted(set(SHAPE) & {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"})
)
def test_missing_dimensions_are_refused(folder, key):
    edit_config(folder, lambda c: c.pop(key))
    refused(folder, key, "missing")


FILES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"a":1}garbage',
    b"\xff\xfe",
    b'{"hidden_size":48,"hidden_size":48}',
    b"[" * 100000,
    b'{"hidden_size": NaN}',
]


@pytest.mark.parametrize("raw", FILES, ids=lambda r: str(r[:24]))
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_broken_json_is_refused(folder, name, raw):
    (folder / name).write_bytes(raw)
    refused(folder, name=name)


def test_a_huge_config_is_refused_unread(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(1 << 40)
    refused(folder, "at most")


def test_no_config_and_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    refused(folder, "fast tokenizers", name="tokenizer.json")
    (folder / "config.json").unlink()
    refused(folder)


GENERATION = [("eos_token_id", 10**6), ("eos_token_id", "2"), ("eos_token_id", [1, True]), ("eos_token_id", -2), ("bos_token_id", 1.5)]


@pytest.mark.parametrize(("key", "value"), GENERATION, ids=str)
def test_bad_generation_defaults_are_refused(folder, key, value):
    (folder / "generation_config.json").write_text(json.dumps({key: value}))
    refused(folder, key, name="generation_config.json")


TEMPLATES = [
    {"a": "b"},
    3,
    [{"name": "tool_use", "template": "x"}],
    [{"name": "default", "template": 3}],
    ["x"],
    [{"name": ["default"], "template": "x"}],
]


@pytest.mark.parametrize("value", TEMPLATES, ids=str)
def test_bad_chat_templates_are_refused(folder, value):
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
    refused(folder, "chat_template", name="tokenizer_config.json")


def test_a_template_that_is_no_text(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    refused(folder, "UTF-8", name="chat_template.jinja")


META = {
    "short": ({"weight": torch.zeros(47), "bias": torch.zeros(1)}, {}, "'weight'"),
    "no bias": ({"weight": torch.zeros(48)}, {}, "'bias'"),
    "scalar bias": ({"weight": torch.zeros(48), "bias": torch.tensor(0.0)}, {}, "'bias'"),
    "extra": ({"weight": torch.zeros(48), "bias": torch.zeros(1), "x": torch.zeros(1)}, {}, "'x'"),
    "nan": ({"weight": torch.full((48,), float("nan")), "bias": torch.zeros(1)}, {}, "'weight'"),
    "inf bias": ({"weight": torch.zeros(48), "bias": torch.tensor([float("inf")])}, {}, "'bias'"),
    "integers": ({"weight": torch.zeros(48, dtype=torch.int32), "bias": torch.zeros(1)}, {}, "'weight'"),
    "pooling": ({"weight": torch.zeros(48), "bias": torch.zeros(1)}, {"pooling": "max"}, "pooling"),
}


@pytest.mark.parametrize("name", META)
def test_bad_meta_heads_are_refused(folder, name):
    tensors, metadata, word = META[name]
    save_file(tensors, folder / "meta_head.safetensors", metadata=metadata)
    refused(folder, word, name="meta_head.safetensors")


@pytest.mark.parametrize("model", ["no/such/folder", "nowhere", "", "a\0b", "../nowhere", "x" * 5000, "owner/na me"])
def test_names_that_lead_nowhere(model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises((ConfigError, CheckpointError), match=r"model|config\.json"):
        checkpoint.load(model)


def test_hub_id_offline_and_without_the_extra(monkeypatch, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"owner/name.*hub gave nothing"):
        checkpoint.load("owner/name")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"owner/name.*spct\[hub\]"):
        checkpoint.load("owner/name")


def test_a_file_is_no_model(folder):
    with pytest.raises(ConfigError, match="expected a folder"):
        checkpoint.load(folder / "config.json")


@pytest.mark.parametrize("options", [{"dtype": "float8"}, {"dtype": torch.int8}, {"dtype": None}, {"weights": "int3"}], ids=str)
def test_unknown_number_formats(folder, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        checkpoint.load(folder, **options)


FORBIDDEN_EVENTS = (
    "exec",
    "compile",
    "import",
    "pickle.",
    "marshal.",
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.remove",
    "os.rename",
    "shutil.",
)


def test_loading_runs_nothing_writes_nothing_and_asks_nobody(folder):
    """With hostile files beside it, a load opens files of the folder for reading and does nothing else that an audit hook sees."""
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cposix\nsystem\n(S'false'\ntR.")
    (folder / "modeling_llama.py").write_text("raise SystemExit(1)\n")
    (folder / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__.os.system('false') }}")
    checkpoint.load(folder)
    with audited() as events:
        model = checkpoint.load(folder)
    opened = [e for e in events if e[0] == "open"]
    assert not [e for e in events if e[0].startswith(FORBIDDEN_EVENTS)]
    assert opened and all(e[1].startswith(str(folder)) and e[2] in ("r", "rb") for e in opened), opened
    assert "cycler" in model.chat_template, "the template is text; whoever renders it does so in a sandbox"

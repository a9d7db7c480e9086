"""Damaged and hostile weight files: a typed error that names the file, and the tensor where there is one; never half a model."""

import json
import os
import random
import shutil

import pytest
import torch
from safetensors.torch import save_file
from tiny_checkpoints import TINY, edit_config, edit_tensors, write_tiny

from spct import CheckpointError, checkpoint
from spct.checkpoint.tensorfile import MAX_HEADER_BYTES, TensorFile

WEIGHTS = "model.safetensors"
VICTIM = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("pristine"), TINY[0])


@pytest.fixture
def folder(pristine, tmp_path):
    return shutil.copytree(pristine, tmp_path / "model")


def small_file(path):
    """A valid file with three tensors, one of them odd in size."""
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.arange(5, dtype=torch.bfloat16), "c": torch.zeros(3, 0)}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def write_raw(path, header, data=b"", length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def read_all(path):
    """Open a file and read everything in it, as the loader does."""
    with TensorFile(path) as file:
        for name, info in file.tensors.items():
            target = torch.empty(info.shape)
            file.copy_into(name, target)


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        read_all(path)
    for word in (path.name, *words):
        assert word in str(caught.value)
    return str(caught.value)


def test_every_cut_of_the_header_and_of_the_body_is_refused(tmp_path):
    whole = small_file(tmp_path / "whole.safetensors").read_bytes()
    read_all(tmp_path / "whole.safetensors")
    path = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        refused(path)


def test_sampled_cuts_of_a_model_are_refused(folder):
    whole = (folder / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(7)
    for length in sorted({header, len(whole) - 1, *(generator.randrange(header, len(whole)) for _ in range(60))}):
        os.truncate(folder / WEIGHTS, 0)
        (folder / WEIGHTS).write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=f"{WEIGHTS}.*truncated"):
            checkpoint.load(folder)


def test_bit_flips_load_or_are_refused(tmp_path):
    """2,000 flips over header and body: never an exception of another type, and no other numbers without a flip in the body."""
    whole = bytearray(small_file(tmp_path / "whole.safetensors").read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "flipped.safetensors"
    generator, outcomes = random.Random(11), {"loaded": 0, "refused": 0}
    for _ in range(2000):
        position, bit = generator.randrange(len(whole)), 1 << generator.randrange(8)
        whole[position] ^= bit
        path.write_bytes(whole)
        try:
            read_all(path)
            outcomes["loaded"] += 1
        except CheckpointError as error:
            assert path.name in str(error)
            outcomes["refused"] += 1
        whole[position] ^= bit
    assert outcomes["refused"] > 1000 and header > 100


def test_bit_flips_of_a_model_load_or_are_refused(folder):
    """Flips in a model's header: names and shapes are compared with what config.json asks for."""
    whole = bytearray((folder / WEIGHTS).read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    generator = random.Random(13)
    loaded = 0
    for _ in range(150):
        position, bit = generator.randrange(header), 1 << generator.randrange(8)
        whole[position] ^= bit
        (folder / WEIGHTS).write_bytes(whole)
        try:
            checkpoint.load(folder)
            loaded += 1  # a flip within the padding or the free-form metadata
        except CheckpointError as error:
            assert WEIGHTS in str(error)
        whole[position] ^= bit
    assert loaded < 20


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
HEADERS = {
    "overlap": ({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, 12, "'b'", "overlaps"),
    "same place": ({"a": F32, "b": F32}, 8, "'b'", "overlaps"),
    "hole": ({"a": F32, "b": {**F32, "data_offsets": [12, 20]}}, 20, "'b'", "hole"),
    "hole at the start": ({"a": {**F32, "data_offsets": [4, 12]}}, 12, "'a'", "hole"),
    "too long": ({"a": F32}, 9, "'a'", "too long"),
    "too short": ({"a": F32}, 7, "'a'", "truncated"),
    "negative offset": ({"a": {**F32, "data_offsets": [-8, 0]}}, 8, "'a'", "data_offsets"),
    "backward": ({"a": {**F32, "data_offsets": [8, 0]}}, 8, "'a'", "data_offsets"),
    "three offsets": ({"a": {**F32, "data_offsets": [0, 4, 8]}}, 8, "'a'", "data_offsets"),
    "fraction": ({"a": {**F32, "data_offsets": [0, 8.0]}}, 8, "'a'", "data_offsets"),
    "boolean": ({"a": {**F32, "shape": [True, 2]}}, 8, "'a'", "shape"),
    "2^63": ({"a": {**F32, "shape": [2**63], "data_offsets": [0, 8]}}, 8, "'a'", "shape"),
    "overflow to the right size": ({"a": {**F32, "shape": [2**62 + 2]}}, 8, "'a'", "bytes"),
    "offset 2^63": ({"a": {**F32, "data_offsets": [0, 2**63]}}, 8, "'a'", "data_offsets"),
    "shape and offsets": ({"a": {**F32, "shape": [3]}}, 8, "'a'", "bytes"),
    "negative shape": ({"a": {**F32, "shape": [-1, -2]}}, 8, "'a'", "shape"),
    "deep shape": ({"a": {**F32, "shape": [1] * 9 + [2]}}, 8, "'a'", "shape"),
    "unknown dtype": ({"a": {**F32, "dtype": "F33"}}, 8, "'a'", "dtype"),
    "dtype no string": ({"a": {**F32, "dtype": ["F32"]}}, 8, "'a'", "dtype"),
    "no weight dtype": ({"a": {**F32, "dtype": "I32"}}, 8, "'a'", "I32"),
    "float64": ({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, 8, "'a'", "F64"),
    "missing field": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "'a'", "exactly"),
    "extra field": ({"a": {**F32, "x": 1}}, 8, "'a'", "exactly"),
    "entry no object": ({"a": [1]}, 8, "'a'", "exactly"),
    "metadata no strings": ({"__metadata__": {"a": 1}, "a": F32}, 8, "header", "__metadata__"),
    "metadata no object": ({"__metadata__": "x", "a": F32}, 8, "header", "__metadata__"),
    "list": ([F32], 8, "header", "object"),
    "duplicate key": (b'{"a":%(a)b,"a":%(a)b}' % {b"a": json.dumps(F32).encode()}, 8, "'a'", "twice"),
    "duplicate field": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "header", "twice"),
    "NaN": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', 8, "header", "NaN"),
    "no UTF-8": (b'{"\xff":1}', 8, "header", "UTF-8"),
    "UTF-16": ('{"a":1}'.encode("utf-16-le"), 8, "header", "JSON"),
    "nothing": (b"", 8, "header", "JSON"),
    "deep": (b"[" * 100000, 0, "header", ""),
    "deep object": (b'{"a":' * 50000, 0, "header", ""),
    "long number": (b'{"a":' + b"9" * 6000 + b"}", 0, "header", ""),
    "lone surrogate": (b'{"\\ud800":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', 8, "\\ud800", "bytes"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_bad_headers_are_refused(tmp_path, name):
    header, num_bytes, *words = HEADERS[name]
    message = refused(write_raw(tmp_path / "bad.safetensors", header, b"\0" * num_bytes), *words)
    message.encode()
    assert len(message) < 2000


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 101 << 20, MAX_HEADER_BYTES + 1, 1 << 20])
def test_bad_header_lengths_are_refused(tmp_path, length):
    refused(write_raw(tmp_path / "bad.safetensors", b"{}", length=length))


def test_a_sparse_header_of_101_mb_is_refused_unread(tmp_path):
    path = write_raw(tmp_path / "bad.safetensors", b"{", length=101 << 20)
    os.truncate(path, 200 << 20)
    refused(path, "header")


def test_too_many_tensors_are_refused(tmp_path):
    refused(write_raw(tmp_path / "bad.safetensors", b'{"a":' + b"{}," * 150000 + b"}"), "at most")


def test_no_regular_file_is_refused(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    with pytest.raises(CheckpointError, match=WEIGHTS):
        checkpoint.load(folder)
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        checkpoint.load(folder)


def _with(change):
    return lambda folder: edit_tensors(folder, change)


def _set(tensors, name, value):
    tensors[name] = value


MODELS = {
    "missing": (_with(lambda t: t.pop(VICTIM)), "is missing"),
    "extra": (_with(lambda t: _set(t, "model.layers.9.mlp.up_proj.weight", t[VICTIM].clone())), "not expected"),
    "extra bias": (_with(lambda t: _set(t, "model.layers.1.self_attn.q_proj.bias", torch.zeros(64))), "not expected"),
    "transposed": (_with(lambda t: _set(t, VICTIM, t[VICTIM].T.contiguous())), "shape"),
    "flattened": (_with(lambda t: _set(t, VICTIM, t[VICTIM].flatten())), "shape"),
    "one row less": (_with(lambda t: _set(t, VICTIM, t[VICTIM][:-1].clone())), "shape"),
    "integers": (_with(lambda t: _set(t, VICTIM, t[VICTIM].int())), "I32"),
    "doubles": (_with(lambda t: _set(t, VICTIM, t[VICTIM].double())), "F64"),
    "nan": (_with(lambda t: t[VICTIM][5].fill_(float("nan"))), r"nan at \[5, 0\]"),
    "one inf": (_with(lambda t: t[VICTIM][87, 47].fill_(float("inf"))), r"inf at \[87, 47\]"),
    "minus inf": (_with(lambda t: t[VICTIM][0, 1].fill_(float("-inf"))), r"-inf at \[0, 1\]"),
}


@pytest.mark.parametrize("name", MODELS)
def test_tensors_that_do_not_fit_are_refused(folder, name):
    change, word = MODELS[name]
    change(folder)
    with pytest.raises(CheckpointError, match=rf"{WEIGHTS}.*tensor '.*{word}") as caught:
        checkpoint.load(folder)
    assert name.startswith("extra") or VICTIM in str(caught.value)


@pytest.mark.parametrize("value", ["nan", "inf"])
@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", "model.layers.2.input_layernorm.weight"]
)
def test_one_bad_number_anywhere_is_found(folder, name, value):
    edit_tensors(folder, lambda t: t[name].view(-1)[-1].fill_(float(value)))
    with pytest.raises(CheckpointError, match=f"{WEIGHTS}.*{name}.*{value}"):
        checkpoint.load(folder)
    checkpoint.load(folder, scan=False)


def test_numbers_too_large_for_the_dtype_asked_for(folder):
    edit_tensors(folder, lambda t: t[VICTIM][1, 2].fill_(70000.0))
    with pytest.raises(CheckpointError, match=rf"{VICTIM}.*70000.*\[1, 2\].*float16"):
        checkpoint.load(folder, dtype="fp16")
    checkpoint.load(folder, dtype="bf16")


def test_pickled_weights_are_refused_with_the_way_to_convert(folder):
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin.*save_pretrained"):
        checkpoint.load(folder)


def test_no_weights_at_all(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        checkpoint.load(folder)


def test_pickles_beside_safetensors_stay_unread(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'false'\ntR.")
    checkpoint.load(folder)


def split(folder, num_files=2):
    """Cut the weights into an index and files; gives the index, to be written back after a change."""
    with TensorFile(folder / WEIGHTS) as file:
        names = list(file.tensors)
        tensors = {name: torch.empty(file.tensors[name].shape) for name in names}
        for name in names:
            file.copy_into(name, tensors[name])
    (folder / WEIGHTS).unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": {}}
    for part in range(num_files):
        shard = f"model-{part + 1:05}-of-{num_files:05}.safetensors"
        mine = names[part::num_files]
        save_file({name: tensors[name] for name in mine}, folder / shard)
        index["weight_map"].update(dict.fromkeys(mine, shard))
    return index


def write_index(folder, index):
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_load_as_one_file_does(folder, pristine):
    write_index(folder, split(folder, 3))
    assert checkpoint.load(folder).weights_digest == checkpoint.load(pristine).weights_digest


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/passwd.safetensors", "a/../../evil.safetensors", "evil\0.safetensors", 7, "evil.bin", "..", ""]
)
def test_an_index_that_leaves_the_folder_is_refused(folder, name):
    index = split(folder)
    shutil.copy(folder / "model-00001-of-00002.safetensors", folder.parent / "evil.safetensors")
    index["weight_map"][VICTIM] = name
    write_index(folder, index)
    with pytest.raises(CheckpointError, match=rf"index.json.*{VICTIM}"):
        checkpoint.load(folder)


def test_a_link_out_of_the_folder_is_refused(folder):
    index = split(folder)
    write_index(folder, index)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.rename(folder.parent / "outside.safetensors")
    shard.symlink_to(folder.parent / "outside.safetensors")
    with pytest.raises(CheckpointError, match=r"00002.*leaves the folder"):
        checkpoint.load(folder)
    shard.unlink()
    shard.symlink_to("nowhere.safetensors")
    with pytest.raises(CheckpointError, match=r"00002.*link to nothing"):
        checkpoint.load(folder)
    shard.unlink()
    shard.symlink_to(shard.name)
    with pytest.raises(CheckpointError, match="00002"):
        checkpoint.load(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", WEIGHTS])
def test_every_file_may_be_a_link_within_the_folder_but_not_out_of_it(folder, name):
    inside = folder / "real" / name
    inside.parent.mkdir()
    (folder / name).rename(inside)
    (folder / name).symlink_to(inside)
    checkpoint.load(folder)
    outside = folder.parent / f"outside-{name}"
    inside.rename(outside)
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    with pytest.raises(CheckpointError, match=rf"{name}.*leaves the folder"):
        checkpoint.load(folder)


def test_links_of_the_hub_cache_are_followed(folder):
    cache = folder.parent / "models--owner--name"
    snapshot = cache / "snapshots" / "0123abc"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for path in folder.iterdir():
        path.rename(cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    checkpoint.load(snapshot)


INDEXES = {
    "missing file": lambda folder, index: (folder / "model-00002-of-00002.safetensors").unlink(),
    "missing tensor": lambda folder, index: index["weight_map"].update({"model.extra.weight": "model-00001-of-00002.safetensors"}),
    "unlisted tensor": lambda folder, index: index["weight_map"].pop(VICTIM),
    "wrong file": lambda folder, index: index["weight_map"].update({VICTIM: _other(index["weight_map"][VICTIM])}),
    "empty": lambda folder, index: index["weight_map"].clear(),
    "no object": lambda folder, index: index.update(weight_map=[1]),
    "no map": lambda folder, index: index.pop("weight_map"),
}


def _other(name):
    return name.replace("00001-", "x").replace("00002-", "00001-").replace("x", "00002-")


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_that_disagrees_with_its_files_is_refused(folder, name):
    index = split(folder)
    INDEXES[name](folder, index)
    write_index(folder, index)
    with pytest.raises(CheckpointError, match="safetensors"):
        checkpoint.load(folder)


def test_tied_heads_that_differ_are_refused_and_equal_ones_ignored(folder):
    edit_config(folder, lambda c: c.update(tie_word_embeddings=True))
    with pytest.raises(CheckpointError, match=r"lm_head.weight.*differs.*tie_word_embeddings"):
        checkpoint.load(folder)
    edit_tensors(folder, lambda t: _set(t, "lm_head.weight", t["model.embed_tokens.weight"].clone()))
    with_head = checkpoint.load(folder).weights_digest
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    assert checkpoint.load(folder).weights_digest == with_head


def test_derived_buffers_are_ignored(folder):
    edit_tensors(folder, lambda t: _set(t, "model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(8)))
    checkpoint.load(folder)

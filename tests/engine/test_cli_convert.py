"""`spct convert` from the command line: exit codes and messages. What it writes is tested with real GGUF files in tests/real."""

import pytest
from command_line import spct

from spct.cli import convert
from spct.conversion import Converted


def test_what_was_written_is_said_on_stderr(tmp_path, capsys, monkeypatch):
    asked = {}

    def convert_gguf(source, output, **options):
        asked.update(options, source=source, output=output)
        return Converted("LlamaForCausalLM", 1234567, 4 << 20)

    monkeypatch.setattr(convert, "convert_gguf", convert_gguf)
    assert spct("convert", tmp_path / "m.gguf", tmp_path / "out", "--dtype", "bf16", "--overwrite") == 0
    assert asked == {"source": tmp_path / "m.gguf", "output": tmp_path / "out", "dtype": "bf16", "overwrite": True}
    printed = capsys.readouterr()
    assert printed.out == "" and "LlamaForCausalLM, 1,234,567 parameters, 4 MiB as bf16" in printed.err


@pytest.mark.parametrize(("content", "code", "message"), [
    (None, 2, "no such file"),
    (b"not a model", 1, "no GGUF file"),
])  # fmt: skip
def test_files_that_are_none_are_refused(tmp_path, capsys, content, code, message):
    if content is not None:
        (tmp_path / "m.gguf").write_bytes(content)
    assert spct("convert", tmp_path / "m.gguf", tmp_path / "out") == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("spct: ") and message in printed.err and "m.gguf" in printed.err
    assert not (tmp_path / "out").exists()


def test_a_full_folder_is_kept(tmp_path, capsys):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert spct("convert", tmp_path / "m.gguf", tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert spct("convert", tmp_path / "m.gguf", tmp_path / "out", "--overwrite") == 2
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_usage(tmp_path, capsys):
    assert spct("convert", tmp_path / "m.gguf") == 2
    assert spct("convert", tmp_path / "m.gguf", tmp_path / "out", "--dtype", "int8") == 2
    assert "--dtype" in capsys.readouterr().err

"""Help and usage errors come at once: without torch, and in the CPU time of a bare Python or little more."""

import resource
import subprocess
import sys

import pytest
from command_line import environment, spct

import spct as package
from spct.cli.main import COMMANDS

# Prints what the command prints, then whether torch came along.
PROBE = (
    "import sys\nfrom spct.cli.main import main\ntry:\n    main(sys.argv[1:])\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
)


def probe(*words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", PROBE, *words], env=environment(), capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, seconds


@pytest.mark.parametrize("words", ["--help", "--version", "score --help", "judge --help", "info --help", "train --help", "eval --help"])
def test_help_imports_no_torch_and_takes_no_time(words):
    done, seconds = probe(*words.split())
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "False"
    # CPU seconds: a machine that is busy with other things must not fail this.
    assert seconds < 0.3


def test_usage_errors_import_no_torch():
    for words in (("score", "--no-such-flag"), ("judge", "--query", "q"), ("frobnicate",), ("score", "--samples", "x")):
        done, _ = probe(*words)
        assert done.returncode == 2 and done.stderr.splitlines()[-1] == "False"


def test_the_help_lists_every_command(capsys):
    assert spct("--help") == 0
    printed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"{name} " in printed and command.summary in printed
    assert "130" in printed and "SPCT_" in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_flags_and_a_body(name, capsys):
    assert spct(name, "--help") == 0
    assert f"spct {name}" in capsys.readouterr().out


def test_flags_that_are_not_built_are_not_there(capsys):
    assert spct("score", "--help") == 0
    printed = capsys.readouterr().out
    built = (
        "--model --samples --seed --temperature --top-p --top-k --min-p --max-tokens --vote --filter --meta-keep --orders --template"
        " --adapter --device --dtype --weights --kv-memory --include --resume --retry-errors --overwrite --dry-run --output"
    )
    for flag in built.split():
        assert flag in printed
    for flag in ("--stop-early", "--prune"):
        assert flag not in printed


def test_the_version_is_that_of_the_package(capsys):
    assert spct("--version") == 0
    assert capsys.readouterr().out == f"spct {package.__version__}\n"


@pytest.mark.parametrize(("words", "message"), [("", "COMMAND"), ("frobnicate", "unknown command"), ("--verbose", "--verbose")])
def test_what_is_no_command_is_a_usage_error(capsys, words, message):
    assert spct(*words.split()) == 2
    printed = capsys.readouterr()
    assert message in printed.err and printed.out == ""


CLOSED = """
import os, sys
for number in map(int, sys.argv[1]):
    os.close(number)
if "0" in sys.argv[1]: sys.stdin = None
if "1" in sys.argv[1]: sys.stdout = None
if "2" in sys.argv[1]: sys.stderr = None
from spct.cli.main import main
code = main(["--version"])
with open(os.devnull, "wb") as file:
    assert file.fileno() > 2
os._exit(10 + code)
"""


@pytest.mark.parametrize(("closed", "code"), [("0", 0), ("1", 1), ("2", 0), ("012", 1)])
def test_no_file_gets_the_number_of_a_stream_that_is_closed(closed, code):
    """Else a library's messages would land in the output; and what can't be printed is no success."""
    done = subprocess.run([sys.executable, "-c", CLOSED, closed], env=environment(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 10 + code
    assert ("Bad file descriptor" in done.stderr) == (closed == "1")

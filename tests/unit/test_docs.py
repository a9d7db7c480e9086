"""The documentation is true: docstrings are complete, and every path, command and snippet of the README exists."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "engine" / "spct").rglob("*.py"), *(ROOT / "kernels" / "spct_kernels").rglob("*.py")])
README = (ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else ""
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(str(ROOT / root) for root in ("engine", "kernels"))}
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
ERRORS = {"SpctError", "ConfigError", "InputError", "CheckpointError", "CapacityError", "BackendError", "KernelError"}


def public_definitions(tree):
    """(qualified name, node, docstring of the class around it) of all that a user may call or read about."""
    for node in tree.body:
        if any("overload" in ast.unparse(d) for d in getattr(node, "decorator_list", ())):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name, node, ""
            if isinstance(node, ast.ClassDef):
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef) and not inner.name.startswith("_"):
                        yield f"{node.name}.{inner.name}", inner, ast.get_docstring(node) or ""


def raised_errors(function):
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            yield node.exc.func.id


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_are_complete(path):
    tree = ast.parse(path.read_text())
    missing = []
    if tree.body and not ast.get_docstring(tree):
        missing.append("the module has no docstring")
    for name, node, around in public_definitions(tree):
        text = ast.get_docstring(node) or ""
        if not text:
            missing.append(f"{name}: no docstring")
        if isinstance(node, ast.ClassDef):
            continue
        for error in sorted(set(raised_errors(node)) & ERRORS):
            if error not in text + around:
                missing.append(f"{name}: raises {error}, which its docstring does not say")
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            if name.endswith("_reference") or path.stem.startswith("triton_"):
                continue  # as the op that it implements
            is_tensor = argument.annotation is not None and ast.unparse(argument.annotation) in ("Tensor", "torch.Tensor")
            if is_tensor and not re.search(rf"\b{argument.arg}\b", text):
                missing.append(f"{name}: the tensor {argument.arg} has no row")
    assert not missing, "\n".join(missing)


def test_files_stay_short():
    """A file that grows past its purpose is split; 400 lines is where that is certain."""
    long = {str(p.relative_to(ROOT)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_paths_exist(document):
    names = set(re.findall(r"`([\w./-]+/[\w./-]*)`", document.read_text()))
    names |= {target for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text())}
    roots = ("engine", "kernels", "csrc", "bench", "tests", "docs", "examples", ".ci", "requirements")
    missing = [n for n in sorted(names) if n.split("/")[0] in roots and not (ROOT / n).exists() and not (document.parent / n).exists()]
    assert not missing


def shell_lines():
    for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", README, re.DOTALL):
        for line in block.splitlines():
            yield line.removeprefix("$ ").split("#")[0].strip()


def test_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    seen = 0
    for line in shell_lines():
        words = line.split()
        if not words:
            continue
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
            seen += 1
        elif words[0].endswith("spct") and len(words) > 1:
            verbs = words[1:3] if words[1] in ("train", "bench") else words[1:2]
            command = [sys.executable, "-m", "spct.cli.main", *verbs, "--help"]
            run = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
            assert run.returncode == 0, f"{line}: {run.stderr}"
            for flag in re.findall(r"(?<=\s)--[\w-]+", line):
                assert flag in run.stdout, f"{line}: {flag} is no flag of spct {words[1]}"
            seen += 1
    assert seen >= 4


def test_the_snippet_of_the_readme_prints_what_it_says():
    """The first Python block runs as it stands; its comment lines after `print` are its output."""
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    expected = [line.split("# ", 1)[1].rstrip() for line in snippet.splitlines() if "print(" in line and "# " in line]
    assert expected
    run = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == expected


def test_tables_say_what_was_measured():
    run = subprocess.run([sys.executable, "bench/tables.py", "--check"], capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert run.returncode == 0, run.stdout + run.stderr

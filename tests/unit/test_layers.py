"""Imports point down only (design: layers), heavy packages stay where they belong, and nothing hides in functions."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINE, KERNELS = ROOT / "engine" / "spct", ROOT / "kernels" / "spct_kernels"

# Whom each part of spct may import, besides itself and the leaves.
LEAVES = {"types", "config", "errors", "limits", "spct"}
BELOW_ENGINE = {"prompting", "voting", "scheduling", "cache", "runner", "models", "layers", "checkpoint", "spct_kernels"}
ALLOWED = {
    "errors": set(),
    "types": {"errors"},
    "config": {"errors"},
    "limits": {"config", "errors"},
    "layers": {"spct_kernels"},
    "models": {"layers", "spct_kernels"},
    "checkpoint": {"models", "layers", "spct_kernels"},
    "cache": set(),
    "scheduling": {"cache"},
    "prompting": set(),
    "voting": set(),
    "runner": {"scheduling", "cache", "models", "spct_kernels"},
    "meta": BELOW_ENGINE,
    "assembly": BELOW_ENGINE | {"meta"},
    "ranking": {"voting"},
    "judging": BELOW_ENGINE | {"meta", "assembly"},
    "engine": BELOW_ENGINE | {"meta", "assembly", "judging", "ranking"},
    "training": BELOW_ENGINE | {"meta", "assembly", "engine"},
    "evaluation": BELOW_ENGINE | {"engine", "training"},
    "baselines": BELOW_ENGINE | {"meta", "assembly", "engine", "training", "evaluation"},
    "benchmark": BELOW_ENGINE | {"engine", "assembly"},
    "conversion": {"checkpoint", "models"},
    "adapters": {"engine"},
    "cli": BELOW_ENGINE | {"engine", "training", "evaluation", "assembly", "ranking", "baselines", "benchmark", "conversion"},
    "spct": {"engine", "ranking"},
    "__main__": {"cli"},
}
WITHOUT_TORCH = {"prompting", "voting", "scheduling", "cache", "types", "config", "errors", "limits"}
# Imported only where they are used: optional packages, and what a subcommand alone needs.
OPTIONAL = {"huggingface_hub", "flash_attn", "transformers", "matplotlib", "gguf", "accelerate"}

FILES = sorted([*ENGINE.rglob("*.py"), *KERNELS.rglob("*.py")])


def part_of(path):
    if path.is_relative_to(KERNELS):
        return "spct_kernels"
    inner = path.relative_to(ENGINE)
    if inner == Path("__init__.py"):
        return "spct"
    return inner.parts[0].removesuffix(".py")


def imports(tree):
    """(module, is inside a function, is for type checkers only) of every import."""
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)}
    typing_only = {id(n) for i in ast.walk(tree) if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test) for n in ast.walk(i)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in inside, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            if node.module == "spct":
                for alias in node.names:
                    yield f"spct.{alias.name}", id(node) in inside, id(node) in typing_only
            else:
                yield node.module, id(node) in inside, id(node) in typing_only


def target_of(module):
    top, _, rest = module.partition(".")
    if top == "spct_kernels":
        return "spct_kernels"
    if top == "spct":
        name = rest.partition(".")[0]
        is_part = (ENGINE / name).is_dir() or (ENGINE / f"{name}.py").is_file()
        return name if is_part and name else "engine" if name == "Engine" else "spct"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    part, tree = part_of(path), ast.parse(path.read_text())
    for module, in_function, _ in imports(tree):
        target = target_of(module)
        if part == "spct_kernels":
            assert target in (None, "spct_kernels"), f"{module}: the kernels never import the engine"
        elif target is not None and target != part and target not in LEAVES:
            assert target in ALLOWED[part], f"{part} imports {module}: not below it"
        if part in WITHOUT_TORCH:
            assert module.partition(".")[0] not in ("torch", "triton", "spct_kernels"), f"{part} imports {module}"
        if in_function:
            may = module.partition(".")[0] in OPTIONAL or (part in ("cli", "training", "evaluation") and target is not None)
            assert may, f"{module}: imported inside a function"


def test_every_part_has_a_rule():
    assert {part_of(p) for p in FILES} - {"spct_kernels"} <= set(ALLOWED)


@pytest.mark.parametrize("root", ["engine", "kernels", "csrc", "bench", "tests"])
def test_source_roots_are_no_packages(root):
    """A package named `kernels` would shadow the one that transformers imports."""
    found = list((ROOT / root).glob("__init__.py")) + list((ROOT / "tests").glob("*/__init__.py"))
    assert not found


FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_loads_code_from_data(path):
    """No pickle in any form, and no evaluation of strings: a checkpoint is data."""
    tree = ast.parse(path.read_text())
    for module, _, _ in imports(tree):
        assert module.partition(".")[0] not in ("pickle", "dill", "marshal", "shelve", "joblib"), module
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                assert node.func.id not in FORBIDDEN_CALLS, f"line {node.lineno}: {node.func.id}()"
            elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
                name = f"{node.func.value.id}.{node.func.attr}"
                assert name != "torch.load", f"line {node.lineno}: torch.load reads pickle"

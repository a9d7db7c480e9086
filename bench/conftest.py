"""Options and models of the suites.

pytest bench --benchmark-only     measures
pytest bench --quick              runs every check once, on small shapes
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from spct import Engine
from spct.benchmark.floor import Peaks
from spct.benchmark.machine import machine_card, measure_peaks

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "systems")]
MODELS = ("embedded", "llama-small")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --quick."""
    parser.addoption("--quick", action="store_true", help="no timings: every check once, on small shapes")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Quick means that pytest-benchmark calls what it would time once."""
    if config.getoption("--quick"):
        config.option.benchmark_disable = True


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, object]) -> None:
    """Leaves the host's name out of what may be committed, and adds what decides a timing."""
    machine_info.pop("node", None)
    machine_info.update(machine_card())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Quick leaves out the calls whose checks take long; the registered cases of every op are tests of their own."""
    if config.getoption("--quick"):
        items[:] = [item for item in items if getattr(getattr(item, "callspec", None), "params", {}).get("is_small", True)]


@pytest.fixture(scope="session")
def peaks(request: pytest.FixtureRequest) -> Peaks | None:
    """What this machine can do; None where nothing is timed."""
    return None if request.config.option.benchmark_disable else measure_peaks()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model, and a small random Llama."""
    from random_models import write_model

    import spct

    small = tmp_path_factory.mktemp("models") / "llama-small"
    write_model("llama-small", small)
    return {"embedded": Path(spct.__file__).parent / "embedded", "llama-small": small}


@pytest.fixture(scope="session", params=MODELS)
def engine(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Iterator[Engine]:
    """An engine of each model, once its logits were found to be those of transformers."""
    from model_check import assert_logits

    with Engine.from_pretrained(folders[request.param], device="cpu", kv_memory="256MiB") as engine:
        assert_logits(engine, folders[request.param])
        yield engine

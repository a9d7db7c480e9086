"""A skipped test is a failure, unless it needs a GPU or a CPU feature that this machine lacks; and no test leaves torch's threads changed."""

import pytest
import torch

ALLOWED_REASONS = ("needs GPU", "needs CPU")
_unexcused: list[str] = []
_num_threads = torch.get_num_threads()


def pytest_runtest_setup(item):
    # Training runs set it for the whole process, and what a run computes, and may resume, depends on it.
    torch.set_num_threads(_num_threads)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    outcome = yield
    report = outcome.get_result()
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if not reason.removeprefix("Skipped: ").startswith(ALLOWED_REASONS):
            _unexcused.append(f"{item.nodeid}: {reason}")


def pytest_sessionfinish(session, exitstatus):
    if _unexcused and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
    for line in _unexcused:
        terminalreporter.write_line(f"SKIPPED without a reason that counts ({' or '.join(ALLOWED_REASONS)}): {line}", red=True)

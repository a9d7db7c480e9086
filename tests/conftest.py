"""A skipped test is a failure, unless it needs a GPU or a CPU feature that this machine lacks."""

import pytest

ALLOWED_REASONS = ("needs GPU", "needs CPU")
_unexcused: list[str] = []


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

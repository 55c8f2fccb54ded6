"""Makes the explorer importable by the tests beside it, and tells at the end what was explored."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

EXPLORED = "explored"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[object], None]:
    """Keeps a line for the summary of the test run; it reaches that from another process too."""
    return lambda found: record_property(EXPLORED, str(found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    told = [(name, line) for report in reports for name, line in getattr(report, "user_properties", [])]
    lines = [line for name, line in told if name == EXPLORED]
    if lines:
        terminalreporter.section(EXPLORED)
    for line in lines:
        terminalreporter.write_line(line)

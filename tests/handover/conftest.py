"""Makes the explorer importable by the tests beside it, and tells at the end what was explored."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from explorer.search import Found  # noqa: E402  the explorer is importable from here on

EXPLORED = "explored"


@pytest.fixture
def tell(record_property: Callable[[str, object], None]) -> Callable[[Found], None]:
    """Keeps what an exploration found for the summary of the test run; it reaches that from another process too."""
    return lambda found: record_property(EXPLORED, (str(found), found.states, found.depth))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for name in ("passed", "failed") for report in terminalreporter.stats.get(name, [])]
    told = [(name, value) for report in reports for name, value in getattr(report, "user_properties", [])]
    found = [value for name, value in told if name == EXPLORED]
    if found:
        terminalreporter.section(EXPLORED)
        for line, _, _ in found:
            terminalreporter.write_line(line)
        states, depth = sum(value[1] for value in found), max(value[2] for value in found)
        terminalreporter.write_line(f"in all: {states:,} states, greatest depth {depth}")

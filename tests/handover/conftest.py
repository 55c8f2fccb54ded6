"""Makes the explorer importable by the tests beside it, and tells at the end what was explored."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

EXPLORED = pytest.StashKey[list[str]]()


@pytest.fixture
def tell(pytestconfig: pytest.Config) -> Callable[[object], None]:
    """Keeps a line for the summary of the test run."""
    lines = pytestconfig.stash.setdefault(EXPLORED, [])
    return lambda found: lines.append(str(found))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash.get(EXPLORED, [])
    if lines:
        terminalreporter.section("explored")
    for line in lines:
        terminalreporter.write_line(line)

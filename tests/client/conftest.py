"""The toy fleet of the router's tests, in a thread of its own, for clients that block."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "router"))

from toy_fleet import ThreadedFleet  # noqa: E402


@pytest.fixture(scope="module")
def cluster():
    with ThreadedFleet() as running:
        yield running

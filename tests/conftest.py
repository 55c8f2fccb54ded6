"""What every test runs under: a home of its own, and no cluster, model hub or setting of the owner's."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from xdist.scheduler import LoadScopeScheduling

OUTER_HOME = os.environ.get("HOME", "/")

# Ray's Unix sockets must fit in 107 bytes, so its directory is a short one; and a Ray token left in the home
# directory would change how clusters authenticate. Set at import, so that every subprocess inherits it.
_own = Path(tempfile.mkdtemp(prefix="pk", dir="/tmp"))
atexit.register(shutil.rmtree, _own, ignore_errors=True)
(_own / "h").mkdir()
(_own / "r").mkdir()
os.environ.update(
    HOME=str(_own / "h"),
    HF_HUB_OFFLINE="1",
    RAY_AUTH_MODE="disabled",
    RAY_TMPDIR=str(_own / "r"),
    RAY_USAGE_STATS_ENABLED="0",
    TOKENIZERS_PARALLELISM="false",
)
for _name in (
    "PENSTOCK_ADDRESS",
    "RAY_ADDRESS",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
    "XDG_STATE_HOME",
):
    os.environ.pop(_name, None)


class ByFile(LoadScopeScheduling):
    """How `pytest -n` shares the tests: a file at a time, and all that start Ray clusters one after the other."""

    CLUSTERS = tuple(f"tests/{part}" for part in ("benchmarks", "cli", "client", "cluster", "test_wheel"))

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "clusters" if file.startswith(self.CLUSTERS) else file


@pytest.hookimpl(optionalhook=True)  # known only where xdist is
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    return ByFile(config, log)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests say what must be installed beside Python; where nothing may be skipped, what is missing is a failure."""
    missing = [
        tool for mark in item.iter_markers("needs") for tool in mark.args if shutil.which(tool) is None
    ]
    if missing:
        (pytest.fail if os.environ.get("PENSTOCK_NO_SKIPS") else pytest.skip)(f"there is no {missing[0]}")


@pytest.fixture(scope="session")
def outer_home() -> str:
    """The owner's home, for tools such as pip that need the owner's settings and cache."""
    return OUTER_HOME


# How long an example takes says nothing about the code on a machine with other work.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

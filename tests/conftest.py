"""What every test runs under: a home of its own, and no cluster, model hub or setting of the owner's."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

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


ONE_PROCESS = {
    "clusters": ("benchmarks", "cli", "client", "cluster", "test_wheel.py"),
    "exploration": ("handover/test_exploration.py",),
}
"""What `pytest -n` must not run beside its like: Ray clusters, and explorations that are counted together."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(Path(__file__).parent).as_posix()
        for group, parts in ONE_PROCESS.items():
            if place.startswith(parts):
                item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def outer_home() -> str:
    """The owner's home, for tools such as pip that need the owner's settings and cache."""
    return OUTER_HOME


# How long an example takes says nothing about the code on a machine with other work.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

"""The floors: a folder imports what stands below it, and only the libraries that its part of the package declares."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

ROWS = (
    ("policy", "kernels", "proto"),
    ("handover",),
    ("engine",),
    ("prefill_worker", "decode_worker", "router", "client"),
    ("cluster",),
    ("benchmarks",),
    ("cli",),
)
HEIGHT = {folder: height for height, row in enumerate(ROWS) for folder in row}
ONLY = {"router": {"handover", "policy", "proto"}, "client": {"proto"}}

# Which of pyproject's lists of requirements a folder may import from; "base" is `dependencies`.
EXTRAS = {
    "policy": (),
    "handover": (),
    "proto": ("base",),
    "kernels": ("engine",),
    "engine": ("base", "engine"),
    "prefill_worker": ("base", "engine"),
    "decode_worker": ("base", "engine"),
    "router": ("base", "router"),
    "client": ("base",),
    "cluster": ("base", "router", "engine", "cluster"),
    "benchmarks": ("base", "router", "engine", "cluster", "verify"),
    "cli": ("base",),
}
DISTRIBUTION = {
    "google": "protobuf",
    "grpc": "grpcio",
    "grpc_health": "grpcio-health-checking",
    "grpc_reflection": "grpcio-reflection",
    "grpc_status": "grpcio-status",
    "yaml": "pyyaml",
}
RAYS = ("controller", "instance_actor", "launcher", "ray_calls", "ray_host", "ray_runtime")
MAY_IMPORT = {"ray": {f"cluster/{name}.py" for name in RAYS}}

# Modules that must come without torch, ray and transformers, however far down their imports go.
TORCH_FREE = (
    "benchmarks/figures",
    "cli/*",
    "client/*",
    "cluster/arrivals",
    "cluster/config",
    "cluster/fit",
    "cluster/profile",
    "cluster/traces",
    "cluster/units",
    "cluster/workload",
    "engine/admission",
    "engine/blocks",
    "engine/checkpoint",
    "engine/chronicle",
    "engine/config",
    "engine/draw",
    "engine/families",
    "engine/grammar",
    "engine/host_tier",
    "engine/intake",
    "engine/layout",
    "engine/moving",
    "engine/outbox",
    "engine/outlook",
    "engine/outside",
    "engine/pace",
    "engine/phase",
    "engine/prefixes",
    "engine/residence",
    "engine/rope",
    "engine/scheduler",
    "engine/sequence",
    "engine/step",
    "engine/tally",
    "engine/timers",
    "engine/turn",
    "handover/*",
    "policy/*",
    "proto/*",
    "router/*",
)
HEAVY = ("torch", "ray", "transformers")


def imports(path: str, source: str) -> Iterator[tuple[str, ...]]:
    """The dotted names that a file imports at any depth, absolute, as tuples; `path` is relative to the root."""
    package = ("penstock", *Path(path).parent.parts)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = tuple(node.module.split(".")) if node.module else ()
            yield from ((*above, *module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield tuple(str(node.args[0].value).split("."))


def requirements(*extras: str) -> set[str]:
    """The distributions named by these lists of pyproject, in lower case."""
    project = PYPROJECT["project"]
    lists = [
        project["dependencies"] if extra == "base" else project["optional-dependencies"][extra]
        for extra in extras
    ]
    return {re.split(r"[^\w.-]", requirement)[0].lower() for part in lists for requirement in part}


def violations(path: str, source: str) -> list[str]:
    """What this file imports and may not, one sentence each."""
    folder = Path(path).parts[0]
    if folder not in HEIGHT:
        return [f"{path}: {folder} stands on no floor"]
    found = []
    for name in imports(path, source):
        if name[0] == "penstock":
            complaint = _inside(folder, name)
        else:
            complaint = _outside(path, folder, name[0])
        if complaint:
            found.append(f"{path}: {complaint}")
    return found


def _inside(folder: str, name: tuple[str, ...]) -> str | None:
    target = name[1] if len(name) > 1 else ""
    if (
        target == folder or target not in HEIGHT
    ):  # its own, or an attribute of the package such as __version__
        return None
    if HEIGHT[target] >= HEIGHT[folder]:
        return f"imports {target}, which does not stand below {folder}"
    if target not in ONLY.get(folder, HEIGHT):
        return f"imports {target}; {folder} may import {sorted(ONLY[folder])} alone"
    return None


def _outside(path: str, folder: str, library: str) -> str | None:
    if library in sys.stdlib_module_names:
        return None
    if path not in MAY_IMPORT.get(library, {path}):
        return f"imports {library}, which {sorted(MAY_IMPORT[library])} alone may"
    if DISTRIBUTION.get(library, library) not in requirements(*EXTRAS[folder]):
        return f"imports {library}, which is not among the requirements of {folder}"
    return None


def sources() -> list[str]:
    """Our Python files below a folder, relative to the root, generated ones left out."""
    found = (path for folder in folders() for path in (ROOT / folder).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in found if "_pb2" not in path.name)


def folders() -> set[str]:
    """The folders of the package: those with Python files directly in them."""
    outside = {"tests", "docs", "helm", "build", "dist"}
    return {path.parent.name for path in ROOT.glob("[!.]*/*.py") if path.parent.name not in outside}


def modules(*patterns: str) -> list[str]:
    """The names of the modules that these stand for. A pattern that stands for none is an `AssertionError`."""
    found = {pattern: list(ROOT.glob(f"{pattern}.py")) for pattern in patterns}
    assert all(found.values()), f"no such file: {[pattern for pattern, files in found.items() if not files]}"
    paths = {path for files in found.values() for path in files}
    names = ("penstock." + str(path.relative_to(ROOT).with_suffix("")).replace("/", ".") for path in paths)
    return sorted(name.removesuffix(".__init__") for name in names)


def imported_alone(names: list[str]) -> dict[str, set[str]]:
    """The heavy libraries that are loaded after importing each module in a fork of a fresh interpreter.

    The fork starts with grpc and protobuf loaded, for speed, and fails if those brought anything heavy.
    """
    program = f"""
import importlib, os, sys, traceback
import google.protobuf.descriptor, grpc
heavy = lambda: [name for name in {HEAVY} if name in sys.modules]
assert not heavy()
for name in sys.argv[1:]:
    if os.fork() == 0:
        try:
            importlib.import_module(name)
            print(name, *heavy(), flush=True)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(name + " cannot be imported alone")
"""
    run = subprocess.run(
        [sys.executable, "-c", program, *names], capture_output=True, text=True, timeout=120, cwd=os.sep
    )
    assert run.returncode == 0, run.stderr
    return {line.split()[0]: set(line.split()[1:]) for line in run.stdout.splitlines()}


@pytest.mark.parametrize("path", sources())
def test_a_file_imports_only_what_stands_below_it(path):
    assert violations(path, (ROOT / path).read_text()) == []


def test_the_packages_listed_are_the_folders():
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert listed == ["penstock", *sorted(f"penstock.{folder}" for folder in folders())]


def test_names_that_other_distributions_use_have_no_init():
    assert not (ROOT / "proto" / "__init__.py").exists()
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("folder", sorted(folders() & {"engine", "cluster"}))
def test_folders_with_a_torch_free_half_have_an_empty_init(folder):
    assert (ROOT / folder / "__init__.py").read_text() == ""


def test_torch_free_modules_load_nothing_heavy():
    names = modules(*TORCH_FREE)
    loaded = imported_alone(names)
    assert sorted(loaded) == names
    assert {name: heavy for name, heavy in loaded.items() if heavy} == {}


def test_a_torch_free_module_that_is_not_there_is_missed():
    with pytest.raises(AssertionError, match="engine/nothing"):
        modules("engine/blocks", "engine/nothing")


def test_the_fork_sees_what_is_heavy(tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text("import torch\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert imported_alone(["planted"]) == {"planted": {"torch"}}


@pytest.mark.parametrize(
    "path, source",
    [
        ("policy/dispatch.py", "from ..handover import values"),
        ("policy/dispatch.py", "import numpy"),
        ("policy/dispatch.py", "from ..proto import worker_pb2"),
        ("kernels/attention.py", "import penstock.policy.state"),
        ("handover/session.py", "import torch"),
        ("handover/session.py", "import grpc"),
        ("handover/source.py", "def later():\n    from ..engine import pool"),
        ("engine/engine.py", "from ..router import views"),
        ("engine/engine.py", "from .. import cluster"),
        ("engine/weights.py", "import transformers"),
        ("router/server.py", "from ..engine import config"),
        ("router/server.py", "from ..client import sync"),
        ("router/server.py", "import torch"),
        ("prefill_worker/phase.py", "from ..decode_worker import phase"),
        ("client/sync.py", "from ..policy import state"),
        ("client/sync.py", "import tokenizers"),
        ("cluster/instance.py", "import ray"),
        ("cluster/config.py", "from importlib import import_module\nimport_module('penstock.cli.up')"),
        ("benchmarks/migration.py", "import ray.actor"),
        ("benchmarks/migration.py", "import pytest"),
        ("cli/up.py", "import torch"),
        ("extra/thing.py", "import os"),
    ],
)
def test_a_planted_violation_is_found(path, source):
    assert len(violations(path, source)) == 1


@pytest.mark.parametrize(
    "path, source",
    [
        ("policy/dispatch.py", "import hashlib\nfrom . import state\nfrom .state import InstanceView"),
        ("handover/wire.py", "from ..proto import worker_pb2\nfrom .values import Epoch"),
        ("engine/engine.py", "import torch\nfrom ..handover import seat\nfrom ..policy import batching"),
        (
            "router/server.py",
            "import grpc\nfrom ..handover.session import Session\nfrom .. import __version__",
        ),
        ("cluster/launcher.py", "import ray\nfrom ..engine import config"),
        ("benchmarks/reference.py", "import transformers\nfrom ..cluster.config import load"),
        ("cli/up.py", "import click\nfrom ..cluster import launcher"),
    ],
)
def test_what_the_floors_allow_is_no_violation(path, source):
    assert violations(path, source) == []

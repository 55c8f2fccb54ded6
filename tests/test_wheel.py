"""The wheel, installed with its base requirements into a clean environment, runs outside the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because a build leaves folders behind that the next one would take up."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py", "py.typed"):
        shutil.copy(ROOT / name, copy)
    for package in PACKAGES[1:]:
        folder = package.removeprefix("penstock.")
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", cwd=copy)
    (built,) = (copy / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory, outer_home: str) -> Path:
    """The interpreter of a clean environment that holds the wheel and what it requires, from the package index."""
    place = tmp_path_factory.mktemp("clean") / "venv"
    venv.create(place, with_pip=False)
    target = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", target, "install", "--quiet"]
    run(*pip, "-c", ROOT / "constraints.txt", wheel, cwd=place, HOME=outer_home)
    return target


def test_the_wheel_holds_every_package_and_its_data_and_no_tests(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folders = {package.removeprefix("penstock.") for package in PACKAGES[1:]}
    code = {
        f"{folder}/{path.name}"
        for folder in folders
        for path in (ROOT / folder).glob("*.py*")
        if path.is_file()
    }
    data = {
        str(path.relative_to(ROOT))
        for folder in ("benchmarks/data", "cluster/profiles", "engine/embedded")
        for path in (ROOT / folder).glob("*")
    }
    missing = {f"penstock/{name}" for name in {"__init__.py", "py.typed"} | code | data} - names
    assert not missing
    assert {name.split("/")[0].split("-")[0] for name in names} == {"penstock"}
    assert not any(name.startswith("penstock/tests") for name in names)


def test_the_command_line_and_the_client_need_only_the_base(python, tmp_path):
    assert "penstock generate" in run(python.parent / "penstock", "--help", cwd=tmp_path)
    program = (
        "import importlib.util, penstock.client, sys;"
        "print(penstock.client.__file__);"
        "print(*(name for name in ('torch', 'ray', 'transformers', 'numpy') if importlib.util.find_spec(name)))"
    )
    where, heavy = run(python, "-c", program, cwd=tmp_path).splitlines()
    assert Path(where).is_relative_to(python.parents[1])
    assert heavy == ""


def test_a_command_that_needs_more_says_what_to_install(python, tmp_path):
    command = [python.parent / "penstock", "up"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install -c constraints.txt '.[" in done.stderr and len(done.stderr.splitlines()) == 1

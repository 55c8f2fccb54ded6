"""The protocol buffers follow buf's standard rules."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUF = Path(sys.executable).parent / "buf"


def lint(stage: Path) -> subprocess.CompletedProcess[str]:
    """`buf lint` over proto/ as its imports see it, below penstock/."""
    shutil.copy(ROOT / "buf.yaml", stage)
    return subprocess.run([BUF, "lint"], cwd=stage, capture_output=True, text=True, timeout=60)


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "penstock" / "proto"
    folder.mkdir(parents=True)
    for source in (ROOT / "proto").glob("*.proto"):
        shutil.copy(source, folder)
    return tmp_path


def test_the_sources_pass(stage):
    result = lint(stage)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_field_in_camel_case_does_not_pass(stage):
    (stage / "penstock" / "proto" / "planted.proto").write_text(
        'syntax = "proto3";\npackage penstock.planted.v1;\nmessage A {\n  string camelCase = 1;\n}\n'
    )
    result = lint(stage)
    assert result.returncode != 0 and "planted.proto" in result.stdout

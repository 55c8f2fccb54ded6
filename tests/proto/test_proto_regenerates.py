"""What is committed in proto/ is what the compiler makes of it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_generated_code_is_what_the_sources_give(tmp_path):
    make = ["make", "--silent", "proto", f"PY={sys.executable}", f"PROTO_OUT={tmp_path}"]
    subprocess.run(make, cwd=ROOT, check=True, timeout=120, capture_output=True)
    made = {path.name: path.read_text() for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "proto").glob("*_pb2*.py*") if path.is_file()}
    assert made.keys() == kept.keys()
    stale = [name for name in made if made[name] != kept[name]]
    assert not stale, f"run `make proto` and commit {stale}"
    sources = {path.stem for path in (ROOT / "proto").glob("*.proto")}
    suffixes = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")
    assert made.keys() == {stem + suffix for stem in sources for suffix in suffixes}

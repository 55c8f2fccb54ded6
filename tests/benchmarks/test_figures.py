"""A report is complete or refused, and what it prints and keeps can be read back."""

import json
import re
import subprocess

import pytest

from penstock.benchmarks import figures
from penstock.benchmarks.figures import Report, machine, progress, revision

GOOD = {
    "command": "bench transfer",
    "figures": {"gloo_gbps_4": 1.5, "samples": 100},
    "units": {"gloo_gbps_4": "GB/s", "samples": "1"},
    "spread": {"gloo_gbps_4": (1.25, 1.75)},
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"units": {"gloo_gbps_4": "GB/s"}},
        {"units": {"gloo_gbps_4": "GB/s", "samples": ""}},
        {"units": {"gloo_gbps_4": "GB/s", "samples": "1", "other": "ms"}},
        {"spread": {"other": (1, 2)}},
        {"spread": {"samples": (2, 1)}},
        {"figures": {"gloo_gbps_4": float("nan"), "samples": 1}},
        {"figures": {"Gloo": 1}, "units": {"Gloo": "1"}, "spread": {}},
    ],
)
def test_a_report_without_its_units_or_numbers_is_refused(wrong):
    Report(**GOOD)
    with pytest.raises(AssertionError):
        Report(**{**GOOD, **wrong})


def test_the_json_line_holds_the_documented_keys(capsys):
    Report(**GOOD).show(as_json=True)
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(shown) == ["command", "revision", "machine", "figures", "units", "spread"]
    assert shown["figures"] == GOOD["figures"] and shown["units"] == GOOD["units"]
    assert shown["spread"] == {"gloo_gbps_4": [1.25, 1.75]}


def test_people_get_a_table_with_units_and_spread(capsys):
    Report(**GOOD).show(as_json=False)
    shown = capsys.readouterr().out
    assert "gloo_gbps_4" in shown and "GB/s" in shown and "1.25 .. 1.75" in shown


def test_a_saved_report_is_the_same_object(tmp_path, capsys):
    report = Report(**GOOD)
    path = report.save("transfer", tmp_path / "results")
    report.show(as_json=True)
    assert path.name == "transfer.json"
    assert json.loads(path.read_text()) == json.loads(capsys.readouterr().out)


def test_the_machine_names_processor_cores_memory_and_versions():
    assert re.fullmatch(r".+, \d+ cores, \d+ GiB, .+, Python 3\.\d+\.\d+(, torch \S+)?", machine())


def test_the_revision_is_the_commit_and_tells_of_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    assert revision() == figures.__version__

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "a").write_text("1")
    (tmp_path / "benchmarks" / "results" / "r").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    assert re.fullmatch("[0-9a-f]{12}", revision())
    (tmp_path / "benchmarks" / "results" / "r").write_text("2")
    assert re.fullmatch("[0-9a-f]{12}", revision())
    (tmp_path / "a").write_text("2")
    assert revision().endswith("-dirty")


def test_progress_writes_nothing_to_stdout(capsys):
    with progress("requests", total=2) as advance:
        advance(1)
        advance(1)
    assert capsys.readouterr().out == ""

"""What a command says of a change that takes a while."""

import json

import pytest

from penstock.cli.changes import followed
from penstock.client import Progress

STEPS = [
    Progress("decode-0", "draining", 3, 0, 0.1, False),
    Progress("decode-0", "draining", 3, 0, 0.2, False),
    Progress("decode-0", "serving", 0, 1, 0.5, False),
    Progress("decode-1", "ended", 0, 0, 0.9, False),
    Progress("decode-1", "ended", 0, 0, 1.0, True),
]


def said(capsys: pytest.CaptureFixture[str], as_json: bool, steps=STEPS) -> tuple[str, list[str]]:
    followed((step for step in steps), as_json, pool="decode")
    captured = capsys.readouterr()
    return captured.out.rstrip("\n"), captured.err.splitlines()


def test_progress_goes_to_stderr_once_for_each_change_and_the_end_to_stdout(capsys):
    out, err = said(capsys, False)
    assert out == "decode-0 serves, decode-1 has ended after 1.0 s; 1 requests were prefilled again elsewhere"
    assert [line.split("s  ")[1] for line in err] == [
        "decode-0: 3 requests to move away",
        "decode-0: serves",
        "decode-1: has ended",
    ]


def test_for_programs_it_is_one_object(capsys):
    told = json.loads(said(capsys, True)[0])
    assert (told["pool"], told["seconds"], told["recovered"]) == ("decode", 1.0, 1)
    assert [(one["instance"], one["phase"]) for one in told["instances"]] == [
        ("decode-0", "serving"),
        ("decode-1", "ended"),
    ]


def test_where_nothing_was_to_do_that_is_said(capsys):
    nothing = [Progress("", "unspecified", 0, 0, 0.0, True)]
    assert said(capsys, False, nothing)[0] == "nothing to do after 0.0 s"
    assert json.loads(said(capsys, True, nothing)[0])["instances"] == []

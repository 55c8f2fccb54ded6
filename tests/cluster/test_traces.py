"""Traces: every format is read as published, and a broken row is named by file and line."""

import gzip
import json
import lzma
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.benchmarks.slices import DATA, azure_conversation, mooncake_conversation
from penstock.cluster.traces import MOONCAKE_TICK_S, read, write_jsonl
from penstock.cluster.workload import Request, Workload

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOON = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}


def file(tmp_path: Path, text: str, name: str = "trace") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def moon(**changes: object) -> str:
    return json.dumps({**MOON, **changes}) + "\n"


def test_azure_rows_become_requests_from_the_first_arrival_on(tmp_path):
    text = AZURE + "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9805900,396,109\n"
    first, second = read(file(tmp_path, text)).requests
    assert (first.arrival_s, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.arrival_s == pytest.approx(4.3)


def test_azure_times_without_a_zone_are_those_of_utc(tmp_path, monkeypatch):
    """Elsewhere an hour is left out in this night."""
    path = file(tmp_path, AZURE + "2024-03-31 01:59:59,374,44\n2024-03-31 03:00:01,396,109\n")
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        assert read(path).requests[1].arrival_s == 3602
    finally:
        monkeypatch.undo()
        time.tzset()


def test_mooncake_ids_are_kept_and_ticks_are_spread(tmp_path):
    lines = "".join(moon(timestamp=3000 * (i // 50), hash_ids=[0, i]) for i in range(200))
    path = file(tmp_path, lines)
    workload = read(path, seed=1)
    assert [request.hash_ids[1] for request in workload.requests] == list(range(200)), (
        "the order is the file's"
    )
    assert {request.hash_block_tokens for request in workload.requests} == {512}
    times = [request.arrival_s for request in workload.requests]
    assert len(set(times)) == 200 and times[-1] < 4 * MOONCAKE_TICK_S
    assert read(path, seed=1) == workload and read(path, seed=2) != workload


def test_burstgpt_failures_are_dropped_and_counted(tmp_path):
    text = (
        BURST + "5,ChatGPT,472,18,490,Conversation log\n7,GPT-4,0,0,0,API log\n45.5,GPT-4,10,2,12,API log\n"
    )
    workload = read(file(tmp_path, text))
    assert workload.dropped == 1
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in workload.requests] == [
        (0, 472, 18),
        (40.5, 10, 2),
    ]
    assert [r.application for r in workload.requests] == ["Conversation log ChatGPT", "API log GPT-4"]


@pytest.mark.parametrize("pack, suffix", [(gzip.compress, ".gz"), (lzma.compress, ".xz")])
def test_a_compressed_file_is_read_as_the_plain_one(tmp_path, pack, suffix):
    plain = file(tmp_path, moon() + moon(timestamp=3000), "trace.jsonl")
    packed = tmp_path / f"trace.jsonl{suffix}"
    packed.write_bytes(pack(plain.read_bytes()))
    assert read(packed) == read(plain)


def test_the_traces_that_lie_here_are_those_of_the_readme():
    azure, mooncake = azure_conversation(), mooncake_conversation()
    assert (len(azure), len(mooncake)) == (2000, 12031)
    assert azure.rate_per_s == pytest.approx(4.71, abs=0.01)
    assert mooncake.rate_per_s == pytest.approx(3.40, abs=0.01)
    assert all(workload.attribution for workload in (azure, mooncake))
    assert sum(path.stat().st_size for path in DATA.iterdir()) < 600_000


REQUESTS = st.builds(
    Request,
    arrival_s=st.floats(0, 1e6),
    prompt_tokens=st.integers(40, 10**6),
    output_tokens=st.integers(1, 10**6),
    hash_ids=st.lists(st.integers(0, 99), max_size=4).map(tuple),
    hash_block_tokens=st.just(10),
    session=st.text(max_size=5),
    turn=st.integers(0, 9),
    gap_s=st.floats(0, 100),
    application=st.text(max_size=5),
    tenant=st.text(max_size=5),
    priority=st.sampled_from(("normal", "high")),
)


@settings(deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=5))
def test_what_is_written_as_json_lines_is_read_back(tmp_path_factory, requests):
    workload = Workload.of("mine", requests)
    path = write_jsonl(workload, tmp_path_factory.mktemp("own") / "mine.jsonl")
    assert read(path) == workload


OWN = '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 6}\n'


@pytest.mark.parametrize(
    "text, line, word",
    [
        (AZURE + "2023-11-16 18:15:46,374\n", 2, "2 values for 3 columns"),
        (AZURE + "2023-11-16 18:15:46,374,44\n\nyesterday,374,44\n", 4, "TIMESTAMP"),
        (AZURE + "2023-11-16 18:15:46,many,44\n", 2, "ContextTokens"),
        (AZURE + "2023-11-16 18:15:46,3.5,44\n", 2, "ContextTokens"),
        (AZURE + "2023-11-16 18:15:46,-3,44\n", 2, "ContextTokens"),
        (AZURE + "2023-11-16 18:15:46,0,44\n", 2, "prompt_tokens"),
        (AZURE + "2023-11-16 18:15:46,374,0\n", 2, "output_tokens"),
        (AZURE + "2023-11-16 18:15:46,374,inf\n", 2, "GeneratedTokens"),
        (AZURE + "2023-11-16 18:15:46,374,999999999999\n", 2, "output_tokens"),
        (AZURE + '2023-11-16 18:15:46,374,"4\n', 2, ""),
        (BURST + "5,ChatGPT,472,18,490,log\nx,ChatGPT,472,18,490,log\n", 3, "Timestamp"),
        (BURST + "5,ChatGPT,nan,18,490,log\n", 2, "Request tokens"),
        (moon() + moon(hash_ids="none"), 2, "hash_ids"),
        (moon() + moon(hash_ids=[1.5]), 2, "hash_ids"),
        (moon() + moon(hash_ids=[True]), 2, "hash_ids"),
        (moon() + moon(hash_ids=[0, -1]), 2, "hash_ids"),
        (moon() + moon(hash_ids=[1, 2, 3]), 2, "hash_ids"),
        (moon() + moon(input_length=None), 2, "input_length"),
        (moon() + moon(output_length=-1), 2, "output_length"),
        (moon() + moon(timestamp="soon"), 2, "timestamp"),
        (moon() + "{\n", 2, "no JSON"),
        (moon() + "[1]\n", 2, "no JSON object"),
        (moon() + "[" * 100_000 + "\n", 2, "no JSON"),
        (OWN + '{"arrival_s": 0, "prompt_tokens": 5}\n', 2, "output_tokens is missing"),
        (OWN + OWN[:-2] + ', "promt": 5}\n', 2, "no field 'promt'"),
        (OWN + OWN[:-2] + ', "tenant": 5}\n', 2, "tenant"),
        (OWN + OWN[:-2] + ', "priority": "urgent"}\n', 2, "priority"),
        (OWN + OWN[:-2] + ', "arrival_s": "late"}\n', 2, "arrival_s"),
        ("a,b,c\n1,2,3\n", 1, "begins like none"),
        ("", 1, "begins like none"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(text, line, word, tmp_path):
    path = file(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert f"{path}:{line}:" in str(caught.value) and word in str(caught.value)


@pytest.mark.parametrize("form, text", [("azure", BURST), ("burstgpt", AZURE), ("azure", "")])
def test_a_missing_column_is_named(form, text, tmp_path):
    path = file(tmp_path, text)
    with pytest.raises(ValueError, match=f"{path}:1: no column"):
        read(path, form)


@pytest.mark.parametrize("data, name", [(b"\xff\xfe\n", "x.csv"), (b"no", "x.xz"), (b"no", "x.gz")])
@pytest.mark.parametrize("form", ["", "azure", "jsonl"])
def test_a_file_that_is_no_text_is_named(data, name, form, tmp_path):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path}:1: this is no text"):
        read(path, form)


def test_a_trace_without_a_request_and_an_unknown_format_are_refused(tmp_path):
    path = file(tmp_path, AZURE)
    with pytest.raises(ValueError, match="holds no request"):
        read(path)
    with pytest.raises(ValueError, match="no trace format 'splitwise'"):
        read(path, "splitwise")

"""Reads traces of requests: the public ones in their own formats, and JSON lines of one's own.

A broken row is a `ValueError` that names file and line. Files may be compressed with gzip or xz.
"""

from __future__ import annotations

import csv
import gzip
import json
import lzma
import random
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from .workload import Request, Workload

AZURE = "Azure Public Dataset, LLM inference trace (CC BY 4.0; Patel et al., Splitwise, ISCA 2024)"
MOONCAKE = "Mooncake trace (Apache 2.0; Qin et al., FAST 2025)"
BURSTGPT = "BurstGPT (CC BY 4.0; Wang et al., KDD 2025)"

MOONCAKE_BLOCK_TOKENS = 512
MOONCAKE_TICK_S = 3.0
"""Arrivals of the trace lie on ticks of that length."""


def read(path: str | Path, form: str = "", seed: int = 0) -> Workload:
    """The trace in a file of one of the `FORMS`, which is told from its content where none is named.

    Arrivals count from the first one. `seed` spreads Mooncake's over its ticks.
    """
    path = Path(path)
    form = form or _form_of(path)
    if form not in FORMS:
        raise ValueError(f"no trace format {form!r}; there are {', '.join(FORMS)}")
    return FORMS[form](path, seed)


def read_azure(path: Path, seed: int = 0) -> Workload:
    """CSV with TIMESTAMP, ContextTokens and GeneratedTokens, as Azure publishes it."""
    del seed  # nothing is drawn
    requests = []
    for where, row in _csv_rows(path, AZURE_COLUMNS):
        stamp = _time_stamp(row["TIMESTAMP"], where)
        requests.append(
            _request(
                where,
                arrival_s=stamp,
                prompt_tokens=_count(row["ContextTokens"], f"{where}: ContextTokens"),
                output_tokens=_count(row["GeneratedTokens"], f"{where}: GeneratedTokens"),
            )
        )
    return _from_first(path, requests, AZURE)


def read_mooncake(path: Path, seed: int = 0) -> Workload:
    """JSON lines with timestamp (ms), input_length, output_length and hash_ids of blocks of 512 tokens.

    Arrivals are spread evenly over the tick that each stands for, drawn by `seed`, in the order of the file.
    """
    rows = list(_json_rows(path))
    ticks = [_number(row.get("timestamp"), f"{where}: timestamp") / 1000 for where, row in rows]
    requests = [
        _request(
            where,
            arrival_s=arrival_s,
            prompt_tokens=_count(row.get("input_length"), f"{where}: input_length"),
            output_tokens=_count(row.get("output_length"), f"{where}: output_length"),
            hash_ids=_whole_numbers(row.get("hash_ids"), f"{where}: hash_ids"),
            hash_block_tokens=MOONCAKE_BLOCK_TOKENS,
        )
        for (where, row), arrival_s in zip(rows, _spread(ticks, random.Random(seed)), strict=True)
    ]
    return _from_first(path, requests, MOONCAKE)


def read_burstgpt(path: Path, seed: int = 0) -> Workload:
    """CSV of BurstGPT. A response of no tokens is a failure: it is dropped and counted."""
    del seed  # nothing is drawn
    requests, dropped = [], 0
    for where, row in _csv_rows(path, BURSTGPT_COLUMNS):
        output = _count(row["Response tokens"], f"{where}: Response tokens")
        prompt = _count(row["Request tokens"], f"{where}: Request tokens")
        stamp = _number(row["Timestamp"], f"{where}: Timestamp")
        if output == 0:
            dropped += 1
            continue
        requests.append(
            _request(
                where,
                arrival_s=stamp,
                prompt_tokens=prompt,
                output_tokens=output,
                application=f"{row['Log Type']} {row['Model']}".strip(),
            )
        )
    return _from_first(path, requests, BURSTGPT, dropped)


def read_jsonl(path: Path, seed: int = 0) -> Workload:
    """JSON lines with the fields of `Request`; `arrival_s`, `prompt_tokens` and `output_tokens` are needed."""
    del seed  # nothing is drawn
    known = {entry.name: entry.type for entry in fields(Request)}
    requests = []
    for where, row in _json_rows(path):
        unknown = sorted(row.keys() - known.keys())
        if unknown:
            raise ValueError(f"{where}: no field {unknown[0]!r}; there are {', '.join(known)}")
        missing = [name for name in ("arrival_s", "prompt_tokens", "output_tokens") if name not in row]
        if missing:
            raise ValueError(f"{where}: {missing[0]} is missing")
        requests.append(_request(where, **{name: _own(name, value, where) for name, value in row.items()}))
    return _named(path, requests, "")


def write_jsonl(workload: Workload, path: str | Path) -> Path:
    """Write a workload so that `read_jsonl` gives its requests; fields at their default are left out."""
    path = Path(path)
    lines = []
    for request in workload.requests:
        values = {entry.name: getattr(request, entry.name) for entry in fields(request)}
        defaults = {entry.name: entry.default for entry in fields(request)}
        lines.append(json.dumps({name: value for name, value in values.items() if value != defaults[name]}))
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


FORMS: Mapping[str, Callable[[Path, int], Workload]] = {
    "azure": read_azure,
    "mooncake": read_mooncake,
    "burstgpt": read_burstgpt,
    "jsonl": read_jsonl,
}

AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
BURSTGPT_COLUMNS = ("Timestamp", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type")


def _form_of(path: Path) -> str:
    with _lines(path) as lines:
        head = next(iter(lines), "").lstrip("\ufeff").strip()
    columns = [column.strip() for column in head.split(",")]
    for form, wanted in (("azure", AZURE_COLUMNS), ("burstgpt", BURSTGPT_COLUMNS)):
        if set(wanted) <= set(columns):
            return form
    if head.startswith("{"):
        return "mooncake" if '"input_length"' in head else "jsonl"
    raise ValueError(f"{path}:1: this begins like none of {', '.join(FORMS)}")


# ---- rows


@contextmanager
def _lines(path: Path) -> Iterator[Iterator[str]]:
    """The lines of a text file, compressed or not."""
    opener: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        yield _read_lines(path, file)


def _read_lines(path: Path, file: IO[str]) -> Iterator[str]:
    number = 1
    try:
        for line in file:
            yield line
            number += 1
    except (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}:{number}: this is no text: {error}") from error


def _csv_rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line, row) of a CSV file that has `columns`; blank lines are skipped."""
    with _lines(path) as lines:
        rows = csv.reader(lines, strict=True)
        try:
            header = [name.lstrip("\ufeff").strip() for name in next(rows, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                raise ValueError(
                    f"{path}:1: no column {missing[0]!r}; there are {', '.join(header) or 'none'}"
                )
            for row in filter(None, rows):
                where = f"{path}:{rows.line_num}"
                if len(row) != len(header):
                    raise ValueError(f"{where}: {len(row)} values for {len(header)} columns")
                yield where, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise ValueError(f"{path}:{rows.line_num}: {error}") from error


def _json_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line, object) of a file of JSON lines; blank lines are skipped."""
    with _lines(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{where}: this is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{where}: this is no JSON object")
            yield where, row


# ---- values


def _request(where: str, **values: Any) -> Request:
    try:
        return Request(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _own(name: str, value: Any, where: str) -> Any:
    """A field of `Request` as JSON gives it."""
    if name in ("arrival_s", "gap_s"):
        return _number(value, f"{where}: {name}")
    if name in ("prompt_tokens", "output_tokens", "hash_block_tokens", "turn"):
        return _count(value, f"{where}: {name}")
    if name == "hash_ids":
        return _whole_numbers(value, f"{where}: hash_ids")
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name} must be text, got {value!r}")
    return value


def _whole_numbers(value: object, what: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError(f"{what} must be a list of whole numbers of at least 0, got {value!r}")
    return tuple(value)


def _count(value: object, what: str) -> int:
    """A whole number of at least 0, from JSON or from CSV; `1.0` is one."""
    number = _number(value, what)
    if not number.is_integer():
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    return int(number)


def _number(value: object, what: str) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e15:
        raise ValueError(f"{what} must be a number of at least 0, got {value!r}")
    return float(value)


def _time_stamp(text: str, where: str) -> float:
    """Seconds since an epoch of a date and time, with the fraction's seven digits; without a zone it is UTC."""
    try:
        stamp = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise ValueError(f"{where}: TIMESTAMP must be a date and a time, got {text!r}") from error
    return (stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)).timestamp()


def _spread(ticks: Sequence[float], draw: random.Random) -> list[float]:
    """Times within the tick that each stands for; those of one tick keep their order."""
    within = {
        tick: sorted((draw.random() * MOONCAKE_TICK_S for _ in range(count)), reverse=True)
        for tick, count in Counter(ticks).items()
    }
    return [tick + within[tick].pop() for tick in ticks]


def _from_first(path: Path, requests: list[Request], attribution: str, dropped: int = 0) -> Workload:
    """The workload with its first arrival at 0."""
    start = min((request.arrival_s for request in requests), default=0.0)
    moved = [replace(request, arrival_s=request.arrival_s - start) for request in requests]
    return _named(path, moved, attribution, dropped)


def _named(path: Path, requests: list[Request], attribution: str, dropped: int = 0) -> Workload:
    if not requests:
        raise ValueError(f"{path} holds no request")
    name = path.name.removesuffix(".xz").removesuffix(".gz").rsplit(".", 1)[0]
    return Workload.of(name, requests, attribution, dropped)

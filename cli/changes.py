"""Changes to instances that take a while: what a command shows meanwhile, and what it prints in the end."""

from __future__ import annotations

import json
from collections.abc import Generator
from typing import Any

import click

from ..client import Progress

Steps = Generator[Progress, None, None]


def followed(steps: Steps, as_json: bool, **asked: Any) -> None:
    """Show on stderr how far it is, and print what came of it. With `as_json`: one object that begins with `asked`."""
    ends: dict[str, Progress] = {}
    said = ""
    for step in steps:
        ends[step.instance or "-"] = step
        line = _line(step)
        if not step.done and line != said:
            said = line
            click.echo(f"{step.seconds:6.1f} s  {line}", err=True)
    last = list(ends.values())[-1]
    recovered = sum(step.recovered for step in ends.values())
    if as_json:
        instances = [
            {"instance": step.instance, "phase": step.phase, "recovered": step.recovered}
            for name, step in ends.items()
            if name != "-"
        ]
        click.echo(
            json.dumps({**asked, "instances": instances, "recovered": recovered, "seconds": last.seconds})
        )
        return
    told = ", ".join(f"{name} {_now(step)}" for name, step in ends.items() if name != "-")
    prefilled = f"; {recovered} requests were prefilled again elsewhere" if recovered else ""
    click.echo(f"{told or 'nothing to do'} after {last.seconds:.1f} s{prefilled}")


def _line(step: Progress) -> str:
    if step.phase == "draining":
        return f"{step.instance}: {step.requests} requests to move away"
    return f"{step.instance}: {_now(step)}"


def _now(step: Progress) -> str:
    return {"starting": "starts", "serving": "serves", "ended": "has ended"}.get(step.phase, step.phase)

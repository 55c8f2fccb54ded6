"""Structured output: a request's constraint to a grammar that instances can compile, or a refusal.

Compiling has no bound of its own (intersections of repetitions take minutes), so it is tried first in a process of its
own, which dies where one takes too much (`grammar_check`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import grpc

from ..proto import inference_pb2 as pb
from .config import ModelInfo
from .refusal import Refused, invalid

logger = logging.getLogger(__name__)

LONGEST = 65536
"""Characters of a constraint, at most."""
MOST_VALUES = 1024
CHECK_S = 10.0
"""Limit of one check. The process has one of CPU time, which comes first unless it gets none."""
START_S = 30.0
"""Limit of the start of the process that checks: it reads the tokenizer."""
KEPT = 256
"""Answers that are kept at most."""
ONE_LINE = 16 << 20
"""Longest answer, in bytes."""


class Constraints:
    """Grammars of one model. Construct inside the event loop that uses it."""

    def __init__(self, model: ModelInfo, tokenizer: Path):
        self._model = model
        self._arguments = [str(tokenizer), str(model.vocabulary), *map(str, model.end_tokens)]
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._answers: OrderedDict[str, dict[str, str]] = OrderedDict()

    async def grammar(self, structured: pb.StructuredOutput) -> str:
        """What instances are told of the constraint. Raises `Refused`, naming the field."""
        kind, asked = _asked(structured)
        field = f"sampling.structured.{kind}"
        line = json.dumps(asked)
        answer = self._answers.get(line) or await self._check(line, field)
        if answer["error"]:
            raise invalid(field, f"No output can be held to `{field}`: {answer['error']}.")
        return answer["grammar"]

    async def close(self) -> None:
        async with self._turn:
            await self._end()

    async def _check(self, line: str, field: str) -> dict[str, str]:
        async with self._turn:
            said = await self._ask(await self._running(field), line, field)
        answer = json.loads(said) if said else {"grammar": "", "error": "it is too complex to compile"}
        self._answers[line] = answer
        if len(self._answers) > KEPT:
            self._answers.popitem(last=False)
        return answer

    async def _ask(self, process: asyncio.subprocess.Process, line: str, field: str) -> bytes:
        """What the process says; nothing where the question was its end."""
        assert process.stdin is not None and process.stdout is not None
        said = b""
        try:
            process.stdin.write(line.encode() + b"\n")
            async with asyncio.timeout(CHECK_S):
                said = await process.stdout.readline()
        except TimeoutError:
            message = f"`{field}` could not be checked within {CHECK_S:g} s."
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, message, field) from None
        except OSError as error:
            logger.info("the process that checks constraints is gone: %s", error)
        finally:
            if not said:  # else a late answer would be taken for the next one's
                await self._end()
        return said

    async def _running(self, field: str) -> asyncio.subprocess.Process:
        """The process, started anew where it has ended by itself."""
        if self._process is not None and self._process.returncode is not None:
            await self._end()
        return self._process or await self._start(field)

    async def _start(self, field: str) -> asyncio.subprocess.Process:
        command = [sys.executable, "-m", f"{__package__}.grammar_check", *self._arguments]
        pipe: Any = asyncio.subprocess.PIPE
        self._process = process = await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, limit=ONE_LINE
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                ready = await process.stdout.readline()
        except TimeoutError:
            ready = b""
        except asyncio.CancelledError:
            await self._end()
            raise
        if not ready:
            await self._end()
            message = f"The tokenizer of model {self._model.name!r} does not serve structured output."
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION, message, field)
        return process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                process.kill()
            await process.wait()


def _asked(structured: pb.StructuredOutput) -> tuple[str, dict[str, Any]]:
    """The constraint's name, and what is asked of the process."""
    kind = structured.WhichOneof("constraint")
    if kind is None:
        raise invalid("sampling.structured", "`sampling.structured` names no constraint.")
    field = f"sampling.structured.{kind}"
    if kind == "choices":
        values = list(structured.choices.values)
        if not 1 <= len(values) <= MOST_VALUES or not all(values):
            raise invalid(field, f"`{field}` has from 1 to {MOST_VALUES} values, none of them empty.")
        asked, length = {"kind": kind, "values": values}, sum(map(len, values))
    else:
        text = getattr(structured, kind)
        asked, length = {"kind": kind, "text": text}, len(text)
    if not 1 <= length <= LONGEST:
        raise invalid(field, f"`{field}` has from 1 to {LONGEST} characters, not {length}.")
    return kind, asked

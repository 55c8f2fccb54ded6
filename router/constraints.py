"""Structured output: a request's constraint to a grammar that instances can compile, or a refusal.

Compiling has no bound of its own (intersections of repetitions take minutes), so it is tried first in a process of its
own, which dies where one takes too much (`grammar_check`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc

from ..proto import inference_pb2 as pb
from .config import ModelInfo
from .refusal import Refused, exhausted, invalid

logger = logging.getLogger(__name__)

LONGEST = 65536
"""Characters of a constraint, at most."""
MOST_VALUES = 1024
CHECK_S = 10.0
"""Limit of one check. The process has one of CPU time, which comes first unless it gets none."""
START_S = 30.0
"""Limit of the start of the process that checks: it reads the tokenizer."""
EXIT_S = 2.0
"""Limit of the end of a process that has closed its output."""
TRIES = 2
"""Processes that are asked at most: one may be killed from outside, and more would hold up everybody."""
LIMITS = frozenset({signal.SIGPROF, signal.SIGABRT, signal.SIGSEGV})
"""What the process dies of by the constraint's fault: its clock, its memory (an allocation that fails aborts), its
stack. Any other death says nothing of the constraint."""
WAIT_S = 20.0
"""How long a check waits for its turn."""
MOST_WAITING = 32
"""Checks that wait for their turn."""
KEPT = 256
"""Answers that are kept at most: those asked for last."""
ONE_LINE = 16 << 20
"""Longest answer, in bytes."""


class Constraints:
    """Grammars of one model. Construct inside the event loop that uses it."""

    def __init__(self, model: ModelInfo, tokenizer: Path):
        self._model = model
        self._arguments = [str(tokenizer), str(model.vocabulary), *map(str, model.end_tokens)]
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._waiting = 0
        self._answers: OrderedDict[str, dict[str, str]] = OrderedDict()

    async def grammar(self, structured: pb.StructuredOutput) -> str:
        """What instances are told of the constraint. Raises `Refused`, naming the field."""
        kind, asked = _asked(structured)
        field = f"sampling.structured.{kind}"
        line = json.dumps(asked)
        answer = self._known(line) or await self._check(line, field)
        if answer["error"]:
            raise invalid(field, f"No output can be held to `{field}`: {answer['error']}.")
        return answer["grammar"]

    async def close(self) -> None:
        """End the process. A check that still runs or waits its turn is not waited for long: it finds it gone."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_S):
                await self._turn.acquire()
        await self._end()

    def _known(self, line: str) -> dict[str, str] | None:
        answer = self._answers.get(line)
        if answer is not None:
            self._answers.move_to_end(line)
        return answer

    async def _check(self, line: str, field: str) -> dict[str, str]:
        async with self._in_turn(field):
            answer = self._known(line)  # another may have asked the same meanwhile
            return answer or await self._ask_again(line, field)

    @asynccontextmanager
    async def _in_turn(self, field: str) -> AsyncIterator[None]:
        """One at a time; who cannot wait, or waited long, is refused."""
        if self._waiting >= MOST_WAITING:
            raise exhausted(field, f"{self._waiting} constraints wait to be checked, and no more are taken.")
        self._waiting += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await self._turn.acquire()
        except TimeoutError:
            raise exhausted(field, f"`{field}` waited {WAIT_S:g} s to be checked.") from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turn.release()

    async def _ask_again(self, line: str, field: str) -> dict[str, str]:
        """The answer, kept; a process that died of something else than the question is replaced and asked once more."""
        for _ in range(TRIES):
            process = await self._running(field)
            said = await self._ask(process, line, field)
            if not said:
                logger.info("the process that checks constraints ended with %s", process.returncode)
            if said or -(process.returncode or 0) in LIMITS:
                answer = (
                    json.loads(said) if said else {"grammar": "", "error": "it is too complex to compile"}
                )
                self._answers[line] = answer
                if len(self._answers) > KEPT:
                    self._answers.popitem(last=False)
                return answer
        raise exhausted(field, f"`{field}` could not be checked: the process that does it was ended.")

    async def _ask(self, process: asyncio.subprocess.Process, line: str, field: str) -> bytes:
        """What the process says; nothing where it ended, and then it has its return code."""
        assert process.stdin is not None and process.stdout is not None
        said = b""
        try:
            process.stdin.write(line.encode() + b"\n")
            async with asyncio.timeout(CHECK_S):
                said = await process.stdout.readline()
            if not said:
                await self._ended(process)
        except TimeoutError:
            raise exhausted(field, f"`{field}` could not be checked within {CHECK_S:g} s.") from None
        finally:
            if not said:  # else a late answer would be taken for the next one's
                await self._end()
        return said

    async def _ended(self, process: asyncio.subprocess.Process) -> None:
        """Let it end by itself, so that its return code tells what it died of."""
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_S):
                await process.wait()

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

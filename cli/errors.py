"""How commands fail: one clear line on stderr and an exit code; with `--json` one object on stdout too."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import click

logger = logging.getLogger(__name__)

FAILED_CHECK = 1
USER_ERROR = 2
INTERRUPTED = 130


INVALID, UNMET, DEFECT = "INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL"
"""Codes of what the cluster was not asked for; all are names of gRPC's codes."""


class CheckFailed(Exception):
    """A command ran to its end and found what it checks to be wrong (exit code 1); its text says what.

    With `--json` the command has printed its object, which has it all, and no other follows.
    """


class Failed(click.ClickException):
    """The cluster refused or failed a call: with the name of the gRPC code, and the field at fault, if one is."""

    def __init__(self, message: str, code: str, field: str = ""):
        super().__init__(message)
        self.code = code
        self.field = field


def exit_code(command: Callable[[], object], as_json: bool = False) -> int:
    """Run `command` and give its exit code: its own if it returns an int, else 0, or that of its error.

    The user's error is written as one line on stderr; what is not the user's propagates with its traceback.
    With `as_json` either is an object on stdout too: {"error": {"code", "message", "field"}}.
    """
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USER_ERROR
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter's last flush from complaining about it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED_CHECK
    except Exception as error:  # noqa: BLE001  the task ends here
        line = describe(error)
        if as_json and not isinstance(error, CheckFailed):
            code, field = _kind(error) if line else (DEFECT, "")
            told = {"code": code, "message": line or repr(error), "field": field}
            click.echo(json.dumps({"error": told}))
        if line is None:
            raise
        logger.debug("the command failed", exc_info=True)
        click.echo(f"penstock: {line}", err=True)
        return FAILED_CHECK if isinstance(error, CheckFailed) else USER_ERROR


def describe(error: Exception) -> str | None:
    """The line that tells a person about `error`; None where it is a defect of ours."""
    if isinstance(error, click.UsageError) and error.ctx:
        text = f"{error.format_message()} Try `{error.ctx.command_path} --help`."
    elif isinstance(error, click.ClickException):
        text = error.format_message()
    elif isinstance(error, OSError):
        text = _describe_os_error(error)
    elif isinstance(error, ModuleNotFoundError):
        text = _describe_missing(error)
    elif isinstance(error, (ValueError, CheckFailed)):
        text = str(error)
    else:
        text = _describe_rpc_error(error)
    return text and " ".join(text.split())


def _kind(error: Exception) -> tuple[str, str]:
    """For programs: the code of an error that `describe` knows, and the field at fault; empty where none is."""
    if isinstance(error, Failed):
        return error.code, error.field
    if isinstance(error, click.BadParameter):
        return INVALID, (error.param and error.param.name) or ""
    if isinstance(error, (click.UsageError, ValueError)):
        return INVALID, ""
    if isinstance(error, (click.ClickException, OSError, ModuleNotFoundError)):
        return UNMET, ""
    call: Any = error
    return call.code().name, ""


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _describe_missing(error: ModuleNotFoundError) -> str | None:
    """A missing package of ours is a defect; a missing dependency is an extra not installed."""
    if not error.name or error.name.startswith("penstock"):
        return None
    install = "in Penstock's folder, pip install -c constraints.txt '.[all]'"
    return f"this command needs the Python package {error.name}: {install}"


def _describe_rpc_error(error: Exception) -> str | None:
    grpc = sys.modules.get("grpc")  # help must not wait for its import; without it nothing raised an RpcError
    if grpc is None or not isinstance(error, grpc.RpcError) or not hasattr(error, "code"):
        return None
    call: Any = error  # sync and aio errors share code() and details(), but no public type that has them
    if call.code() is grpc.StatusCode.UNAVAILABLE:
        return f"no cluster answers (is it up? `penstock up` starts one): {call.details()}"
    return f"{call.details() or 'the call failed'} ({call.code().name})"

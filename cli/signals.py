"""Signals that end a command which runs until it is told to stop."""

from __future__ import annotations

import signal


def interrupt_once() -> None:
    """SIGTERM, and SIGHUP of a closed terminal, end the command as Ctrl-C does.

    Further signals are ignored, since stopping has its own deadlines.
    """
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, frame: object) -> None:
        for each in ends:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in ends:
        signal.signal(number, interrupt)

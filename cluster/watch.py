"""Looks whether the controller still answers: the one process whose silence no other part of a cluster would end."""

from __future__ import annotations

import logging
import socket
import threading

from ..client import Client, PenstockError
from . import processes

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Between two looks."""
ANSWER_S = 2.0
MISSED = 3
"""So many looks in a row without an answer in time are a controller that hangs."""


class Watch:
    """Until `stop`, a thread ends the controller at `address` whenever that hangs; Ray starts its next life.

    One that is dead, or does not listen yet, is Ray's business: that refuses a call at once and is no silence. So is
    one on another machine, which is never seen.
    """

    def __init__(self, address: str, cluster_id: str):
        self._address = address
        self._cluster_id = cluster_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch of the controller", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Returns when it has ended, within a few seconds. May be called twice."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        missed, suspects = 0, []
        while not self._ended.wait(LOOK_S):
            if not self._silent():
                missed = 0
                continue
            found = processes.actors(self._cluster_id, "Controller")
            missed, suspects = missed + 1 if found == suspects else 1, found
            if missed >= MISSED:
                logger.warning("the controller (%s) hangs: it is killed", found)
                for pid in found:
                    processes.kill(pid)
                missed = 0

    def _silent(self) -> bool:
        try:
            with Client(self._address) as client:
                client.cluster(timeout_s=ANSWER_S)
        except PenstockError:  # whatever it says: gRPC has several words for a connection that nobody serves
            return self._listens()
        return False

    def _listens(self) -> bool:
        """The system takes connections for it, though it may be stopped."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
        except ConnectionRefusedError:
            return False
        except OSError:  # more wait than it has room for
            return True
        return True

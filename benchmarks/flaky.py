"""An instance whose messages come late, out of order, twice or never, while a file says so.

Disturbed is what the protocol bears to lose: what a session's seat says to peers and to routers. Steps carry the index
of their first record, commits those of all that was not acknowledged, and whatever is not answered is said again or
given up at a deadline. Left as they are: the turns and pairs of transfers, which rely on the order of their stream, the
blocks themselves, and heartbeats, which are there to be counted.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

from ..cluster.config import InstanceSettings
from ..cluster.instance import Instance
from ..handover.frames import InstanceFrame
from ..handover.values import Incarnation, PeerMessage

FOLDER = "PENSTOCK_FLAKY"
"""The environment's name of the folder where a file of an instance's name makes its messages unreliable."""
LATE_SHARE = 0.5
LATE_S = 0.08
"""The latest that a message comes; those after it overtake it."""
TWICE_SHARE = 0.1
LOST_SHARE = 0.02

Say = Callable[[list[tuple[str, InstanceFrame]], list[tuple[Incarnation, PeerMessage]]], None]


def switch(instance: str) -> Path:
    """The file that makes this instance's messages unreliable while it is there."""
    return Path(os.environ[FOLDER]) / instance


class FlakyInstance(Instance):
    """An instance between whose engine and streams messages meet with accidents."""

    def __init__(self, settings: InstanceSettings):
        super().__init__(settings)
        calm, on = self.server.tell, switch(settings.name)
        accidents = Accidents(calm, random.Random(settings.life))

        def tell(
            to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
        ) -> None:
            (accidents.tell if on.exists() else calm)(to_routers, to_peers)

        self.server.tell = tell


class Accidents:
    """Passes each message on by itself: at once or late, once or twice or never."""

    def __init__(self, tell: Say, draw: random.Random):
        self._tell = tell
        self._draw = draw

    def tell(
        self, to_routers: list[tuple[str, InstanceFrame]], to_peers: list[tuple[Incarnation, PeerMessage]]
    ) -> None:
        """To be called in a running event loop."""
        for router in to_routers:
            self._meet(lambda router=router: self._tell([router], []))
        for peer in to_peers:
            self._meet(lambda peer=peer: self._tell([], [peer]))

    def _meet(self, passed_on: Callable[[], None]) -> None:
        lost, twice = self._draw.random() < LOST_SHARE, self._draw.random() < TWICE_SHARE
        for _ in range(0 if lost else 1 + twice):
            late = self._draw.random() < LATE_SHARE
            asyncio.get_running_loop().call_later(late * self._draw.uniform(0, LATE_S), passed_on)

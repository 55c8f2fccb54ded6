"""What an instance says in a round, kept until it is sent."""

from __future__ import annotations

from ..handover.frames import InstanceFrame, Step
from ..handover.values import Ask, Incarnation, InstanceMessage, News, PeerMessage, Unmoved
from ..policy.state import LoadView


class Outbox:
    """In order for each router and peer. A router hears the news of all its sessions in one message."""

    def __init__(self) -> None:
        self._to_routers: list[tuple[str, Unmoved | Ask | list[News]]] = []
        self._news: dict[str, list[News]] = {}
        """For each router the list that its next news goes to."""
        self._to_peers: list[tuple[Incarnation, PeerMessage]] = []

    def __bool__(self) -> bool:
        return bool(self._to_routers or self._to_peers)

    def to_router(self, router: str, message: InstanceMessage) -> None:
        if not isinstance(message, News):
            self._news.pop(router, None)
            self._to_routers.append((router, message))
        elif (news := self._news.get(router)) is not None:
            news.append(message)
        else:
            news = self._news[router] = [message]
            self._to_routers.append((router, news))

    def to_peer(self, peer: Incarnation, message: PeerMessage) -> None:
        self._to_peers.append((peer, message))

    def take(
        self, load: LoadView
    ) -> tuple[list[tuple[str, InstanceFrame]], list[tuple[Incarnation, PeerMessage]]]:
        """All of it, the news with the `load` that they are told with."""
        frames: list[tuple[str, InstanceFrame]] = [
            (router, Step(tuple(said), load) if isinstance(said, list) else said)
            for router, said in self._to_routers
        ]
        peers = self._to_peers
        self._to_routers, self._to_peers, self._news = [], [], {}
        return frames, peers

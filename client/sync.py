"""The blocking client."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar, Unpack

import grpc

from ..proto import control_pb2, inference_pb2
from ..proto.control_pb2_grpc import ControlServiceStub
from ..proto.inference_pb2_grpc import InferenceServiceStub
from .address import resolve, target
from .cluster import (
    Cluster,
    Explanation,
    Move,
    Progress,
    from_cluster,
    from_explanation,
    from_moves,
    from_progress,
    from_watch,
    migrate_request,
)
from .errors import from_rpc
from .events import Completion, Event, Model, completion, completions, from_response
from .request import Attempts, Message, Options, build

CHANNEL = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5000),  # in truth how long a connection may take to come about
    ("grpc.max_reconnect_backoff_ms", 1000),
)
GENERATE_S = 600.0
ASK_S = 10.0
MIGRATE_S = 60.0
CHANGE_S = 3600.0
"""For changes to instances, each of which has its own limits in the cluster."""

T = TypeVar("T")


class Client:
    """Speaks to the router at `address`, else PENSTOCK_ADDRESS, else the last `penstock up` on this machine.

    Of several addresses, with commas between, it takes the first that answers, and another when that is lost.

    Every method may raise `PenstockError`, or `ValueError` where an argument is wrong. Usable from several threads.
    """

    def __init__(self, address: str | None = None):
        self.address = resolve(address)
        self._channel = grpc.insecure_channel(target(self.address), options=CHANNEL)
        self._inference = InferenceServiceStub(self._channel)
        self._control = ControlServiceStub(self._channel)

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        request_id: str | None = None,
        model: str | None = None,
        timeout_s: float = GENERATE_S,
        **options: Unpack[Options],
    ) -> Generator[Event, None, None]:
        """Stream one completion of a text or of token ids, or the answer to a chat's messages; or `n`, interleaved.

        Closing the iterator cancels the request. Where the router is lost in mid-stream the request is resumed by
        itself, and no token comes twice.
        """
        attempts = Attempts(build(prompt, messages, request_id, model, options))
        return self._events(attempts, timeout_s, time.monotonic() + timeout_s)

    def complete(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        request_id: str | None = None,
        model: str | None = None,
        timeout_s: float = GENERATE_S,
        **options: Unpack[Options],
    ) -> Completion:
        """The one completion, whole."""
        events = self.generate(
            prompt, messages=messages, request_id=request_id, model=model, timeout_s=timeout_s, **options
        )
        return completion(events)

    def complete_all(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        messages: Sequence[Message] | None = None,
        request_id: str | None = None,
        model: str | None = None,
        timeout_s: float = GENERATE_S,
        **options: Unpack[Options],
    ) -> tuple[Completion, ...]:
        """All `n` completions, whole, in order of choices."""
        events = self.generate(
            prompt, messages=messages, request_id=request_id, model=model, timeout_s=timeout_s, **options
        )
        return completions(events)

    def models(self, timeout_s: float = ASK_S) -> tuple[Model, ...]:
        """The models that are served."""
        said = self._ask(self._inference.ListModels, inference_pb2.ListModelsRequest(), timeout_s)
        return tuple(Model(model.name, model.context_tokens, model.vocabulary) for model in said.models)

    def cluster(self, sessions: bool = False, timeout_s: float = ASK_S) -> Cluster:
        """Instances and routers, and the running sessions where asked for."""
        request = control_pb2.GetClusterRequest(sessions=sessions)
        return from_cluster(self._ask(self._control.GetCluster, request, timeout_s))

    def migrate(
        self,
        request_id: str,
        destination: str | None = None,
        choice: int | None = None,
        mode: str = "live",
        timeout_s: float = MIGRATE_S,
    ) -> tuple[Move, ...]:
        """Move a running request, each choice or one, to an instance or the freest other one; return when that is over.

        `mode` is `live`, `blocking` (pause first) or `recompute` (copy nothing, prefill again).
        """
        request = migrate_request(request_id, destination, choice, mode)
        return from_moves(self._ask(self._control.MigrateRequest, request, timeout_s))

    def explain(self, request_id: str, timeout_s: float = ASK_S) -> Explanation:
        """What was decided and done for a request, running or ended lately, with the figures."""
        request = control_pb2.ExplainRequestRequest(request_id=request_id)
        return from_explanation(self._ask(self._control.ExplainRequest, request, timeout_s))

    def watch(self, sessions: bool = False, timeout_s: float | None = None) -> Generator[Cluster, None, None]:
        """The cluster now, and whenever it has changed; without end, or for `timeout_s`."""
        request = control_pb2.WatchClusterRequest(sessions=sessions)
        return self._stream(self._control.WatchCluster, request, from_watch, timeout_s)

    def drain(self, instance: str, timeout_s: float = CHANGE_S) -> Generator[Progress, None, None]:
        """Move everything away from an instance and end it for good; yields how far that is.

        Nothing is asked before the first `next`; who leaves then leaves the instance to its end.
        """
        request = control_pb2.DrainInstanceRequest(instance=instance)
        return self._stream(self._control.DrainInstance, request, from_progress, timeout_s)

    def flip(self, instance: str, pool: str, timeout_s: float = CHANGE_S) -> Generator[Progress, None, None]:
        """Give an instance the role of another pool: `prefill`, `decode` or `mixed`. See `drain`."""
        request = control_pb2.FlipInstanceRequest(instance=instance, pool=pool)
        return self._stream(self._control.FlipInstance, request, from_progress, timeout_s)

    def restart(
        self, instances: Sequence[str] = (), timeout_s: float = CHANGE_S
    ) -> Generator[Progress, None, None]:
        """Replace instances, all where none is named, by their next lives, one by one. See `drain`."""
        request = control_pb2.RestartInstancesRequest(instances=instances)
        return self._stream(self._control.RestartInstances, request, from_progress, timeout_s)

    def scale(
        self, pool: str, instances: int, timeout_s: float = CHANGE_S
    ) -> Generator[Progress, None, None]:
        """Bring a pool to so many instances: start some, or drain those with the least to do. See `drain`."""
        request = control_pb2.ScalePoolRequest(pool=pool, instances=instances)
        return self._stream(self._control.ScalePool, request, from_progress, timeout_s)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _events(self, attempts: Attempts, timeout_s: float, deadline: float) -> Generator[Event, None, None]:
        while True:
            call = self._inference.Generate(attempts.request(), timeout=max(0.0, deadline - time.monotonic()))
            try:
                for response in call:
                    event = attempts.take(from_response(response))
                    if event is not None:
                        yield event
                return
            except grpc.RpcError as error:
                pause_s = attempts.retry_after_s(from_rpc(error, self.address, timeout_s))
            finally:
                call.cancel()  # frees the request where the caller has left
            time.sleep(pause_s)

    def _stream(
        self, method: Callable[..., Any], request: Any, read: Callable[[Any], T], timeout_s: float | None
    ) -> Generator[T, None, None]:
        call = method(request, timeout=timeout_s)
        try:
            for response in call:
                yield read(response)
        except grpc.RpcError as error:
            raise from_rpc(error, self.address, timeout_s) from None
        finally:
            call.cancel()

    def _ask(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=timeout_s)
        except grpc.RpcError as error:
            raise from_rpc(error, self.address, timeout_s) from None

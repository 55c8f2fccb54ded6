"""Every value of the protocol survives the wire, and what is no value of it is refused."""

import dataclasses
import typing
from enum import IntEnum

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.handover import frames, values, wire
from penstock.policy.state import LoadView
from penstock.proto import worker_pb2 as pb

U32 = st.integers(0, 2**32 - 1)
SIZES = {
    "attempt": U32,
    "n": st.integers(0, values.FOREVER),
    "lease_s": st.floats(0.001, 1e6),
    "port": st.integers(1, 65535),
    "priority": st.integers(1, 2),
    "own": st.floats(-1e9, 0, width=32),
    "top": st.lists(st.tuples(U32, st.floats(-1e9, 0, width=32)), max_size=4).map(tuple),
    "logit_bias": st.dictionaries(U32, st.floats(-100, 100), max_size=4).map(
        lambda d: tuple(sorted(d.items()))
    ),
}
WIDE = {"life", "seed", "size_bytes", "sequence", "steps"}
MAY_BE_EMPTY = {"fingerprint", "dtype", "reason", "emitted"}


def of(kind, name=""):
    """Any value of a type, by its annotations."""
    if name in SIZES:
        return SIZES[name]
    if typing.get_origin(kind) is tuple:
        return st.lists(of(typing.get_args(kind)[0]), max_size=4).map(tuple)
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        return st.sampled_from(list(kind))
    if kind is LoadView or dataclasses.is_dataclass(kind) or hasattr(kind, "_fields"):
        return whole(kind)
    if typing.get_args(kind):
        return st.one_of(
            [st.none() if option is type(None) else of(option) for option in typing.get_args(kind)]
        )
    scalars = {
        int: st.integers(0, 2**64 - 1) if name in WIDE else U32,
        bool: st.booleans(),
        bytes: st.binary(max_size=8),
    }
    scalars |= {str: st.text(st.characters(codec="utf-8"), min_size=1, max_size=6), float: st.floats(0, 1e9)}
    return scalars[kind]


def whole(kind):
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{name: of(hint, name) for name, hint in hints.items()})


def coherent(frame):
    """A start names the destination and its epoch, or neither."""
    if isinstance(frame, values.Start) and (frame.destination is None) != (frame.next_epoch is None):
        return dataclasses.replace(frame, destination=None, next_epoch=None)
    return frame


@settings(deadline=None)
@given(of(frames.RouterFrame).map(coherent))
def test_what_a_router_says_survives_the_wire(frame):
    sent = wire.to_link_request(frame).SerializeToString()
    assert wire.from_link_request(pb.LinkRequest.FromString(sent)) == frame


@settings(deadline=None)
@given(of(frames.InstanceFrame))
def test_what_an_instance_says_survives_the_wire(frame):
    sent = wire.to_link_response(frame).SerializeToString()
    assert wire.from_link_response(pb.LinkResponse.FromString(sent)) == frame


@settings(deadline=None)
@given(of(frames.PeerFrame))
def test_what_peers_say_survives_the_wire(frame):
    sent = wire.to_peer_request(frame).SerializeToString()
    assert wire.from_peer_request(pb.PeerRequest.FromString(sent)) == frame


def test_every_message_of_the_proto_has_a_reader():
    for frame, readers in (
        (pb.LinkRequest, wire.FROM_LINK_REQUEST),
        (pb.LinkResponse, wire.FROM_LINK_RESPONSE),
        (pb.PeerRequest, wire.FROM_PEER_REQUEST),
    ):
        assert set(readers) == {field.name for field in frame.DESCRIPTOR.fields}


EPOCH = pb.Epoch(attempt=1, n=1)
LIFE = pb.Incarnation(instance="a", life=1)
LEASE = pb.LeaseKey(session="s", epoch=EPOCH)


@pytest.mark.parametrize(
    "read, frame, says",
    [
        (wire.from_link_request, pb.LinkRequest(), "without a message"),
        (wire.from_link_request, pb.LinkRequest(hello=pb.Hello(router="r")), "incarnation"),
        (wire.from_link_request, pb.LinkRequest(revoke=pb.Revoke(bound=EPOCH)), "session"),
        (wire.from_link_request, pb.LinkRequest(revoke=pb.Revoke(session="s")), "bound"),
        (
            wire.from_link_request,
            pb.LinkRequest(revoke=pb.Revoke(session="s", bound=pb.Epoch(n=2**32 - 1))),
            "above",
        ),
        (wire.from_link_request, pb.LinkRequest(start=pb.Start(session="s", epoch=EPOCH)), "context"),
        (
            wire.from_link_request,
            pb.LinkRequest(
                start=pb.Start(session="s", epoch=EPOCH, next_epoch=EPOCH, context=pb.Context(params={}))
            ),
            "destination",
        ),
        (
            wire.from_link_request,
            pb.LinkRequest(
                start=pb.Start(session="s", epoch=EPOCH, context=pb.Context(params={"temperature": -1}))
            ),
            "temperature",
        ),
        (
            wire.from_link_request,
            pb.LinkRequest(
                move=pb.Move(
                    session="s",
                    epoch=EPOCH,
                    next_epoch=EPOCH,
                    destination={"incarnation": LIFE, "address": "h:1"},
                )
            ),
            "MoveMode 0",
        ),
        (wire.from_link_response, pb.LinkResponse(), "without a message"),
        (
            wire.from_link_response,
            pb.LinkResponse(step=pb.Step(sessions=[pb.SessionNews(session="s")])),
            "epoch",
        ),
        (wire.from_peer_request, pb.PeerRequest(), "without a message"),
        (wire.from_peer_request, pb.PeerRequest(wait=pb.Wait(lease=LEASE, source=LIFE)), "destination"),
        (
            wire.from_peer_request,
            pb.PeerRequest(grant=pb.Grant(lease=LEASE, source=LIFE, destination=LIFE)),
            "lease of",
        ),
        (wire.from_peer_request, pb.PeerRequest(turn=pb.Turn(pair="p")), "Turn 0"),
        (
            wire.from_peer_request,
            pb.PeerRequest(pair_offer={"pair": "p", "host": "h", "backend": "gloo"}),
            "port",
        ),
    ],
)
def test_a_malformed_frame_is_refused_by_name(read, frame, says):
    with pytest.raises(ValueError, match=says):
        read(frame)


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_bytes_of_a_stranger_give_a_value_or_a_value_error(data):
    try:
        request = pb.PeerRequest.FromString(data)
    except DecodeError:
        return  # not protobuf at all: gRPC refuses it before us
    try:
        wire.from_peer_request(request)
    except ValueError:
        pass

"""How every party of a cluster opens a gRPC channel to another, and serves it."""

from __future__ import annotations

CHANNEL = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel inherits the backoff of the last
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""Options of channels and servers. A step's tokens and a request's context know no limit but the configuration's."""

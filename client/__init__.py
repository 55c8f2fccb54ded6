"""The Python client of a Penstock cluster.

with Client() as client:
    for event in client.generate("Return the", max_tokens=64):
        ...
"""

from .asynchronous import AsyncClient
from .cluster import (
    Blocks,
    Cluster,
    Decision,
    Explanation,
    Instance,
    Move,
    Progress,
    Role,
    Router,
    Session,
    Work,
)
from .errors import InvalidRequest, PenstockError
from .events import Completion, Delta, Event, Finished, Logprobs, Model, Prompt, Segment, Started, Usage
from .request import Message, Options, Sampling
from .sync import Client

__all__ = [
    "AsyncClient",
    "Blocks",
    "Client",
    "Cluster",
    "Completion",
    "Decision",
    "Delta",
    "Event",
    "Explanation",
    "Finished",
    "Instance",
    "InvalidRequest",
    "Logprobs",
    "Message",
    "Model",
    "Move",
    "Options",
    "PenstockError",
    "Progress",
    "Prompt",
    "Role",
    "Router",
    "Sampling",
    "Segment",
    "Session",
    "Started",
    "Usage",
    "Work",
]

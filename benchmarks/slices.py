"""The traces that lie in `data/`; its README names their sources."""

from __future__ import annotations

from pathlib import Path

from ..cluster.traces import read
from ..cluster.workload import Workload

DATA = Path(__file__).with_name("data")


def azure_conversation() -> Workload:
    """The first 2,000 requests of Azure's conversation trace of 2023: 4.7 a second."""
    return read(DATA / "azure_conv_2023.csv", "azure")


def mooncake_conversation(seed: int = 0) -> Workload:
    """Mooncake's conversation trace: 12,031 requests with shared prefixes, 3.4 a second; `seed` spreads its ticks."""
    return read(DATA / "mooncake_conversation.jsonl.xz", "mooncake", seed)

"""When running requests move by themselves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationConfig:
    """When running requests move by themselves. Freeness is in decode steps until memory is predicted to be full."""

    low_steps: float = 16.0
    """An instance of less freeness is relieved."""

    enough_steps: float = 32.0
    """It is relieved until it has so much."""

    high_steps: float = 32.0
    """An instance of at least so much takes what others are relieved of."""

    most_per_instance: int = 4
    """Moves under way at a time from or to an instance."""

    most_per_link: int = 2
    """Moves under way at a time from an instance to another."""

    least_remaining: int = 16
    """Tokens that a sequence must have before it to be worth a move."""

    rest_s: float = 5.0
    """How long a sequence that was moved stays where it is, in seconds."""

    move_s: float = 10.0
    """When a move of which nothing was seen counts as not done, in seconds."""

    def __post_init__(self) -> None:
        if not self.low_steps <= self.enough_steps <= self.high_steps:
            raise ValueError(
                "low_steps, enough_steps and high_steps must ascend, "
                f"got {self.low_steps:g}, {self.enough_steps:g} and {self.high_steps:g}"
            )
        for name in ("most_per_instance", "most_per_link", "least_remaining"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("rest_s", "move_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or above, got {getattr(self, name)}")

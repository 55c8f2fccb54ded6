"""Bad deadlines and sizes are refused with a sentence."""

from __future__ import annotations

from dataclasses import fields

import pytest

from penstock.handover.config import HandoverConfig


@pytest.mark.parametrize("name", [field.name for field in fields(HandoverConfig)])
@pytest.mark.parametrize("value", [0, -1])
def test_every_deadline_and_size_is_above_0(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"handover.{name} must be above 0, not {value}"):
        HandoverConfig(**{name: value})


def test_the_final_stage_fits_in_a_message() -> None:
    with pytest.raises(ValueError, match="final_blocks must not exceed"):
        HandoverConfig(final_blocks=65, stage_blocks=64)
    HandoverConfig(final_blocks=64, stage_blocks=64)


def test_copies_have_no_more_than_all_of_the_time() -> None:
    with pytest.raises(ValueError, match="copy_share must be at most 1, not 1.5"):
        HandoverConfig(copy_share=1.5)
    HandoverConfig(copy_share=1.0)


def test_settings_are_named() -> None:
    with pytest.raises(TypeError):
        HandoverConfig(1.0)  # type: ignore[misc]


@pytest.mark.parametrize("told", [{"heartbeat_s": 1.0}, {"hung_after_s": 30.0}])
def test_nobody_counts_as_hung_before_it_could_show_life(told: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"handover.{next(iter(told))} must be below"):
        HandoverConfig(**told)

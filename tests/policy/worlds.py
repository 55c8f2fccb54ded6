"""Instances that policies see, made of the sequences that they run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import strategies as st

from penstock.policy.cost import CostModel, Law, LinkCost, Piece, StepCost
from penstock.policy.projection import joined, left
from penstock.policy.state import InstanceView, LoadView, Move, Priority, SequenceView

BLOCK = 16
TOTAL = 200
SLOTS = 32


def cost(copy_bytes_per_s: float = 1e9, per_context_token_s: float = 1e-6) -> CostModel:
    """Steps of 5 ms and a bit for each token; KV of 1 kB a token."""
    piece = Piece(
        base_s=5e-3, per_token_s=1e-4, per_chunk_work_s=1e-8, per_context_token_s=per_context_token_s
    )
    law = Law(split_tokens=64, below=piece, above=piece)
    return CostModel(
        step=StepCost(prefill=law, decode=law),
        kv_bytes_per_token=1000,
        capacity_tokens=TOTAL * BLOCK,
        links={"local": LinkCost(latency_s=1e-3, bandwidth_bytes_per_s=copy_bytes_per_s)},
    )


def instance(name: str, sequences: Iterable[SequenceView] = (), head: int = 0, **more) -> InstanceView:
    """A mixed instance whose load is that of its sequences, and whose next one waits for `head` blocks."""
    load = LoadView(
        total_blocks=TOTAL,
        free_blocks=TOTAL,
        prefill_tokens=512,
        decode_slots=SLOTS,
        block_size=BLOCK,
        head_blocks=head,
        waiting=int(head > 0),
        step_s=0.01,
    )
    view = InstanceView(name=name, life=1, address=f"host:{name}", pool="mixed", load=load)
    for one in sequences:
        view = replace(view, sequences=(*view.sequences, one)) if one.waits else joined(view, one)
    return replace(view, **more)


def with_load(view: InstanceView, **changes) -> InstanceView:
    return replace(view, load=replace(view.load, **changes))


def moved(views: list[InstanceView], moves: list[Move]) -> list[InstanceView]:
    """The views when these moves are done."""
    by_key = {view.key: view for view in views}
    for move in moves:
        source = by_key[move.source]
        one = next(one for one in source.sequences if one.session == move.session)
        by_key[move.source] = left(source, one)
        by_key[move.destination] = joined(by_key[move.destination], one)
    return list(by_key.values())


@st.composite
def fleets(draw, most: int = 5) -> list[InstanceView]:
    """Up to `most` instances with up to 10 sequences each, some draining, dead or of another role."""
    views = []
    for place in range(draw(st.integers(1, most))):
        name = "abcdefgh"[place]
        sequences = [
            SequenceView(
                session=f"{name}{number}",
                tokens=draw(st.integers(1, 400) | st.integers(400, 1600)),
                remaining=draw(st.integers(0, 400) | st.integers(400, 1200)),
                priority=draw(st.sampled_from([Priority.NORMAL, Priority.NORMAL, Priority.HIGH])),
                movable=draw(st.sampled_from([True, True, True, False])),
                waits=draw(st.sampled_from([False, False, False, True])),
            )
            for number in range(draw(st.integers(0, 10)))
        ]
        view = instance(
            name,
            sequences,
            head=draw(st.sampled_from([0, 0, 10, 100])),
            draining=draw(st.sampled_from([False, False, False, True])),
            alive=draw(st.sampled_from([True, True, True, True, False])),
        )
        slots = draw(st.sampled_from([SLOTS, SLOTS, SLOTS, 0]))
        views.append(with_load(view, decode_slots=slots))
    return views

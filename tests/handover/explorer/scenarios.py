"""What is explored. The quick scenarios are whole; of the long ones some are cut at a number of states."""

from __future__ import annotations

from dataclasses import replace

from penstock.handover.config import HandoverConfig
from penstock.handover.values import MoveMode

from .instance import Shape
from .scenario import THREE, Scenario

ONE_BLOCK = Shape(prompt=1, output=2, block_size=2, pool=2)
"""A prompt of 1 and 2 tokens out, in one block that is copied half full."""
STAGED = Shape(prompt=2, output=2, block_size=1, pool=3)
"""A stage of a full block comes before the final one."""
LONG = Shape(prompt=1, output=3, block_size=3, pool=1)
"""Three tokens out, in the only block of a pool."""
ONE_SLOT = replace(ONE_BLOCK, pool=1)
"""And no room for a second."""
TIGHT = Shape(prompt=2, output=2, block_size=1, pool=4, config=HandoverConfig(final_blocks=2, stage_blocks=2))
"""Two blocks in one write, which land one by one."""
SPLIT = replace(ONE_BLOCK, decodes="BC")
"""A prefills and nothing else: a session that stays there never ends."""
SHARED = Shape(prompt=2, output=2, block_size=1, pool=3, known=1)
"""The first block of the prompt is cached everywhere: a handover copies the other two."""
WINDOWED = Shape(prompt=2, output=3, block_size=1, pool=4, span=1)
"""A window passes over each block when the next but one is full, before, while and after it is handed over."""


AHEAD = Shape(prompt=1, output=2, block_size=2, pool=4, flights=2)
"""Two steps under way, in two blocks; the second may be one too many."""


BUDGET = {
    "lose": 3,
    "double": 3,
    "early": 4,
    "crash": 2,
    "boot": 2,
    "hang": 1,
    "wake": 1,
    "part": 1,
    "heal": 1,
    "break": 2,
    "suspect": 1,
    "router": 1,
    "restart": 1,
    "cut": 1,
    "resume": 2,
    "move": 3,
    "drain": 1,
    "cancel": 1,
    "preempt": 1,
}
"""Everything at once: too much to explore, good to walk through at random."""


def early(*what: str) -> dict:
    """Settings of a scenario in which one of these comes before its time."""
    return {"budget": {"early": 1}, "early": frozenset(what)}


SETTLING = early("settle")


def _both(name: str, shape: Shape, **settings) -> list[Scenario]:
    """The scenario on either transport."""
    return [
        Scenario(
            f"{name}, {'in place' if one_sided else 'by pairs'}",
            replace(shape, one_sided=one_sided),
            **settings,
        )
        for one_sided in (False, True)
    ]


THIRD = {"instances": THREE}
STREAMS = {"instances": THREE, "ordered": True}
"""With a third instance, and over streams: fewer orders, of longer lives."""

QUICK = [
    *_both("a handover, without faults and without any recovery", STAGED, recover_by_silence=False),
    *_both("a message is lost", ONE_BLOCK, budget={"lose": 1}),
    *_both("a message comes twice", ONE_BLOCK, budget={"double": 1}),
    *_both("a commit is asked about early", ONE_BLOCK, **early("settle", "beat"), picks_anew=False),
    *_both("a lease runs out early", ONE_BLOCK, **early("lease", "stop")),
    *_both("an instance gives up its router early", ONE_BLOCK, **early("grace", "nudge")),
    *_both("a transfer breaks", ONE_BLOCK, budget={"break": 1}, picks_anew=False),
    *_both("two blocks a write, and a transfer breaks", TIGHT, budget={"break": 1}, picks_anew=False),
    *_both("a live move after the handover", STAGED, budget={"move": 1}),
    *_both("a move, and back", ONE_BLOCK, budget={"move": 2}, handover=False),
    *_both(
        "a blocking move, and back", ONE_BLOCK, budget={"move": 2}, handover=False, mode=MoveMode.BLOCKING
    ),
    *_both("prefill does not decode, and a message is lost", SPLIT, budget={"lose": 1}),
    *_both("prefill does not decode, and dies", SPLIT, budget={"crash": 1}, crashing="A"),
    *_both(
        "a block that is shared already, without faults", SHARED, recover_by_silence=False, budget={"move": 1}
    ),
    *_both("a block that is shared already, and a lease runs out early", SHARED, **early("lease", "stop")),
    *_both("a sequence gives its memory back", STAGED, budget={"preempt": 1}),
    *_both("a window passes over blocks, without faults", WINDOWED, recover_by_silence=False),
    *_both("the client leaves", ONE_BLOCK, budget={"cancel": 1}),
    *_both("two steps at a time, a move, and the client leaves", AHEAD, budget={"move": 1, "cancel": 1}),
    *_both("an instance dies", ONE_BLOCK, budget={"crash": 1}),
    *_both("an instance hangs", STAGED, budget={"hang": 1}),
    *_both("the router dies", STAGED, budget={"router": 1}),
    *_both(
        "the router dies, the client resumes elsewhere",
        ONE_BLOCK,
        budget={"router": 1, "resume": 1},
        routers=2,
    ),
    Scenario(
        "the client resumes, a message is lost",
        replace(ONE_BLOCK, pool=1),
        {"cut": 1, "resume": 1, "lose": 1},
        handover=False,
        serving="A",
    ),
    *_both("an instance of three dies", ONE_BLOCK, budget={"crash": 1}, **THIRD),
    *_both("an instance of three hangs", ONE_BLOCK, budget={"hang": 1}, **THIRD),
    *_both("an instance of three is cut off", ONE_SLOT, budget={"part": 1}, **THIRD),
    *_both("an instance of three is cut off for a while", ONE_SLOT, budget={"part": 1, "heal": 1}, **STREAMS),
    *_both(
        "a session is recovered at a third though its instance lives",
        ONE_SLOT,
        budget={"suspect": 1},
        handover=False,
        serving="C",
        **THIRD,
    ),
    *_both("a message is lost, and a move", ONE_SLOT, budget={"lose": 1, "move": 1}, handover=False, **THIRD),
    *_both("the client leaves during a move", ONE_BLOCK, budget={"move": 1, "cancel": 1}, **THIRD),
    *_both("an instance is drained", ONE_BLOCK, budget={"drain": 1}, **THIRD),
    *_both("two instances are drained", ONE_SLOT, budget={"drain": 2}, **STREAMS),
    *_both("a second handover begins while the first settles", ONE_SLOT, serving="C", **SETTLING, **STREAMS),
    *_both(
        "what must leave is handed over again while the first settles",
        replace(ONE_SLOT, decodes="BC"),
        serving="A",
        **SETTLING,
        **STREAMS,
    ),
    *_both(
        "the router dies, the client resumes elsewhere, where there are three",
        ONE_BLOCK,
        budget={"router": 1, "resume": 1},
        routers=2,
        **THIRD,
    ),
]
"""Every state of each."""

LIMIT = 500_000

SLOW = [
    *_both("a transfer breaks", STAGED, budget={"break": 1}),
    *_both("a commit is asked about early, and a destination picked anew", ONE_BLOCK, **early("settle")),
    *_both("prefill does not decode, and a commit is asked about early", SPLIT, **early("settle")),
    *_both("prefill does not decode, and a lease runs out early", SPLIT, **early("lease", "reserve", "stop")),
    *_both("prefill does not decode, and a transfer breaks", SPLIT, budget={"break": 1}),
    *_both("a lease or a reservation runs out early", STAGED, **early("lease", "reserve", "stop")),
    *_both("a message is lost", STAGED, budget={"lose": 1}),
    *_both("a message comes twice", STAGED, budget={"double": 1}),
    *_both("a message is lost and one comes twice", ONE_BLOCK, budget={"lose": 1, "double": 1}),
    *_both("an instance dies and comes back", ONE_BLOCK, budget={"crash": 1, "boot": 1}),
    *_both("a session is recovered though its instance lives", ONE_BLOCK, budget={"suspect": 1}, serving="B"),
    *_both("a router loses patience", ONE_BLOCK, **early("silence")),
    *_both("an instance hangs and wakes", ONE_BLOCK, budget={"hang": 1, "wake": 1}),
    *_both("the client resumes while its router lives", ONE_BLOCK, budget={"cut": 1, "resume": 1}, routers=2),
    *_both(
        "a router comes back without its sessions", ONE_BLOCK, budget={"router": 1, "restart": 1, "resume": 1}
    ),
    *_both("a move and back with a message lost", ONE_BLOCK, budget={"move": 2, "lose": 1}, handover=False),
    *_both("a move, and an instance dies", STAGED, budget={"move": 1, "crash": 1}),
    *_both("a sequence gives its memory back, and moves", STAGED, budget={"preempt": 1, "move": 1}),
    *_both(
        "a sequence gives its memory back, and a lease runs out early",
        STAGED,
        budget={"preempt": 1, "early": 1},
        early=frozenset({"lease"}),
    ),
    *_both("a window passes over blocks, and a lease runs out early", WINDOWED, **early("lease", "stop")),
    *_both("a window passes over blocks of a sequence that moves", WINDOWED, budget={"move": 1}),
    *_both(
        "a router loses patience, where there are three", ONE_SLOT, serving="C", **early("silence"), **STREAMS
    ),
    *_both("an instance of three hangs and wakes", ONE_SLOT, budget={"hang": 1, "wake": 1}, **STREAMS),
    *_both("an instance is drained, and one dies", ONE_SLOT, budget={"drain": 1, "crash": 1}, **STREAMS),
    *_both(
        "an instance is drained, and the client leaves", ONE_SLOT, budget={"drain": 1, "cancel": 1}, **THIRD
    ),
    *_both(
        "an instance is drained, and a message is lost", ONE_SLOT, budget={"drain": 1, "lose": 1}, **THIRD
    ),
    *_both(
        "an instance is drained, the router dies, the client resumes elsewhere",
        ONE_SLOT,
        budget={"drain": 1, "router": 1, "resume": 1},
        routers=2,
        **STREAMS,
    ),
    *_both(
        "a drain while a handover settles",
        ONE_SLOT,
        budget={"drain": 1, "early": 1},
        early=frozenset({"settle"}),
        handover=False,
        serving="C",
        **STREAMS,
    ),
    *_both(
        "two moves, and a commit is asked about early",
        ONE_SLOT,
        budget={"move": 2, "early": 1},
        early=frozenset({"settle"}),
        handover=False,
        serving="C",
        **STREAMS,
    ),
    *_both(
        "a second handover begins while the first settles, in any order",
        ONE_SLOT,
        serving="C",
        **SETTLING,
        **THIRD,
    ),
    *_both("three tokens, a move, and back", LONG, budget={"move": 2}, handover=False),
    *_both("three tokens, and a commit is asked about early", LONG, **early("settle")),
]
"""Up to `LIMIT` states of each; 5 million and more in all."""

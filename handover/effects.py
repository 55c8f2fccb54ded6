"""What the machines hear besides messages (events), and what they ask of whoever drives them (effects).

The driver feeds every event and carries out every effect in order; it owns clocks, sockets and memory.
Timers are started by an effect and may fire late, early or in vain: a machine ignores a timeout that no longer matters.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .values import (
    Address,
    Commit,
    End,
    Epoch,
    Incarnation,
    InstanceMessage,
    LeaseKey,
    MoveMode,
    PeerMessage,
    Reserve,
    RouterMessage,
    Stage,
    Start,
    TokenRecord,
)


class Clock(Enum):
    """The timers of an instance; the configuration says how long each is."""

    RESERVE = "reserve"
    """A reservation goes unanswered (`reserve_wait_s`)."""
    SETTLE = "settle"
    """A commit, or an ask about it, goes unanswered (`hung_after_s`)."""
    LEASE = "lease"
    """A lease runs out (`lease_s`, renewed by each stage)."""
    STOP = "stop"
    """A writer does not answer `stop` (`stop_s`)."""


# ---- events of an instance's machines


@dataclass(frozen=True, slots=True)
class FromRouter:
    router: str
    message: RouterMessage


@dataclass(frozen=True, slots=True)
class FromPeer:
    sender: Incarnation
    message: PeerMessage


@dataclass(frozen=True, slots=True)
class Launched:
    """A step that holds this session's sequence has been launched and may still write its blocks.

    The one before it may be under way; steps complete in the order in which they were launched.
    """


@dataclass(frozen=True, slots=True)
class Stepped:
    """The oldest step that was launched is complete.

    `full` blocks of the table are computed and will not change, `blocks` hold anything, `computed` tokens have KV;
    `ready` says that the prompt is done, so that the sequence may change its owner. Its last token does not see
    the first `passed` blocks, nor will any that follows.
    """

    records: tuple[TokenRecord, ...]
    full: int
    blocks: int
    computed: int
    ready: bool
    passed: int = 0


@dataclass(frozen=True, slots=True)
class Preempted:
    """The sequence gave its memory back: none of its KV is here until it is computed again.

    Only where `Seat.may_preempt`.
    """


@dataclass(frozen=True, slots=True)
class Leased:
    """The answer to `Lease`: whether blocks were had; `have` leading ones hold their tokens already."""

    lease: LeaseKey
    granted: bool
    have: int = 0


@dataclass(frozen=True, slots=True)
class Written:
    """The answer to `Write`: no more of it can reach the destination.

    `ok` where all of it did, or was handed to the pair.
    """

    lease: LeaseKey
    ok: bool


@dataclass(frozen=True, slots=True)
class Received:
    """The answer to `Receive`: nothing more is written into the leased blocks by it."""

    lease: LeaseKey
    first: int
    count: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Timeout:
    clock: Clock
    lease: LeaseKey


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The incarnation is dead for certain: nothing of it can write any more."""

    peer: Incarnation


@dataclass(frozen=True, slots=True)
class Beat:
    """A heartbeat, or the router's stream is new: say again what is not yet seen."""


@dataclass(frozen=True, slots=True)
class RouterSilent:
    """The router of the sequence has been silent for the grace time."""


# ---- effects of an instance's machines


@dataclass(frozen=True, slots=True)
class ToRouter:
    router: str
    message: InstanceMessage


@dataclass(frozen=True, slots=True)
class ToPeer:
    peer: Incarnation
    message: PeerMessage


@dataclass(frozen=True, slots=True)
class Begin:
    """Make the sequence of `start` and queue it for prefill."""

    start: Start


@dataclass(frozen=True, slots=True)
class Reserving:
    """Fill in what the driver knows (context, fingerprint, layout, block count) and send a `Reserve` for this lease."""

    lease: LeaseKey
    epoch: Epoch
    destination: Address
    router: str
    one_sided: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """Launch no further step with the sequence."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Unpause:
    """The sequence may run again, from now on under `epoch`."""

    was: Epoch
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Drop:
    """Free the blocks of the sequence: it has ended, left or is void."""

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class Lease:
    """Allot blocks to a reservation; answer with `Leased`, now or as soon as there is room."""

    reserve: Reserve


@dataclass(frozen=True, slots=True)
class Write:
    """Copy the blocks of `stage` to the destination; answer with `Written`.

    Two-sided: the driver sends the header, then the blocks.
    One-sided: the blocks only; the machine sends the header after.
    """

    epoch: Epoch
    stage: Stage
    one_sided: bool


@dataclass(frozen=True, slots=True)
class Receive:
    """Two-sided: take the blocks of this stage into the lease; answer with `Received`."""

    stage: Stage


@dataclass(frozen=True, slots=True)
class CloseReceive:
    """Tear down one's own end of the pair that a receive under this lease waits on.

    `Received` follows when nothing more is written, within the transport's limit; until then the blocks are kept.
    """

    lease: LeaseKey


@dataclass(frozen=True, slots=True)
class Adopt:
    """The leased blocks become a running sequence under the lease's epoch."""

    lease: LeaseKey
    commit: Commit


@dataclass(frozen=True, slots=True)
class Release:
    """Free the lease's blocks, or forget that it waits for some."""

    lease: LeaseKey


@dataclass(frozen=True, slots=True)
class Quarantine:
    """The lease is over, and its writer may still be alive: its blocks serve nobody until `Release`."""

    lease: LeaseKey


@dataclass(frozen=True, slots=True)
class Condemn:
    """Ask the controller to end a writer that does not answer."""

    writer: Incarnation


@dataclass(frozen=True, slots=True)
class Timer:
    """Start the timer anew."""

    clock: Clock
    lease: LeaseKey


# ---- events of a session, at the router


@dataclass(frozen=True, slots=True)
class Dispatched:
    """Where the session goes: an instance that prefills, and one that decodes unless the first is to go on."""

    prefill: Address
    decode: Address | None = None


@dataclass(frozen=True, slots=True)
class FromInstance:
    sender: Incarnation
    message: InstanceMessage


@dataclass(frozen=True, slots=True)
class MoveAsked:
    """Somebody wants the session elsewhere, or a new destination was picked after `unmoved`."""

    destination: Address
    mode: MoveMode = MoveMode.LIVE
    first: bool = False
    """Still the handover that the dispatch asked for: where it fails, yet another destination is needed."""


@dataclass(frozen=True, slots=True)
class RecoverAsked:
    """Re-prefill the session, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class InstanceLost:
    instance: Incarnation


@dataclass(frozen=True, slots=True)
class Silent:
    """No message under the current or a higher epoch for the silence time."""


@dataclass(frozen=True, slots=True)
class Nudge:
    """A move has been pending for long: its messages may have been lost."""


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client has gone, or its deadline has passed."""


# ---- effects of a session


@dataclass(frozen=True, slots=True)
class Tell:
    instance: Incarnation
    message: RouterMessage


@dataclass(frozen=True, slots=True)
class Deliver:
    """Tokens for the client, each exactly once and in order, and who made them."""

    first_index: int
    records: tuple[TokenRecord, ...]
    maker: Incarnation


@dataclass(frozen=True, slots=True)
class NeedDispatch:
    """Pick instances for prompt and output so far; answer with `Dispatched`."""

    reason: str


@dataclass(frozen=True, slots=True)
class NeedDestination:
    """The destination did not take the session; pick another and answer with `MoveAsked`."""

    reason: str
    refused: Incarnation


@dataclass(frozen=True, slots=True)
class MoveEnded:
    """What became of a move: done, or why not."""

    destination: Incarnation
    done: bool
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over: with its last token, or cancelled (`end` is None)."""

    end: End | None


InstanceEvent = (
    FromRouter
    | FromPeer
    | Launched
    | Stepped
    | Preempted
    | Leased
    | Written
    | Received
    | Timeout
    | PeerLost
    | Beat
    | RouterSilent
)
InstanceEffect = (
    ToRouter
    | ToPeer
    | Begin
    | Reserving
    | Pause
    | Unpause
    | Drop
    | Lease
    | Write
    | Receive
    | CloseReceive
    | Adopt
    | Release
    | Quarantine
    | Condemn
    | Timer
)
SessionEvent = Dispatched | FromInstance | MoveAsked | RecoverAsked | InstanceLost | Silent | Nudge | Cancel
SessionEffect = Tell | Deliver | NeedDispatch | NeedDestination | MoveEnded | Closed

"""Streams of a model whose every layer has a sliding window are longer than the memory that they run in."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from bare_router import Stream, until
from test_instance_server import TRANSPORTS, at, prompt, running, server, settled

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.benchmarks.reference import Reference
from penstock.engine.checkpoint import read_checkpoint
from penstock.engine.server import InstanceServer
from penstock.handover.values import MoveMode

WINDOW, BLOCKS, BLOCK = 50, 12, 16
TIE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("mistral"), "mistral", seed=3, sliding_window=WINDOW)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder)


def small(name: str, folder: Path, **fields) -> InstanceServer:
    return server(name, model=str(folder), kv_blocks=BLOCKS, **fields)


def assert_greedy(stream: Stream, reference: Reference) -> None:
    """Every token is the reference's own choice after the same tokens."""
    logits = reference.logits(stream.context.prompt, stream.ids)
    lead = logits.max(dim=-1).values - logits[range(len(stream.ids)), stream.ids]
    assert lead.max() < TIE and (lead > 0).sum() <= 1
    assert len(set(stream.ids)) > 30, "a stream that says one thing would not notice damage"


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_stream_that_is_handed_over_and_moves_outgrows_every_memory(transport, folder, reference):
    contexts = {
        f"s{n}": prompt(length, n, temperature=0.0, max_tokens=250) for n, length in enumerate((1, 300, 700))
    }

    async def main() -> list[Stream]:
        prefill = small("prefill", folder, transport=transport, slots=0)
        left, right = (small(name, folder, transport=transport) for name in ("left", "right"))
        streams = []
        async with running(prefill, left, right) as router:
            for key, context in contexts.items():
                stream = router.start(key, context, at(prefill), at(left))
                for least, mode in ((5, MoveMode.LIVE), (60, MoveMode.BLOCKING), (120, MoveMode.LIVE)):
                    await until(lambda: settled(stream) > least)  # noqa: B023
                    to = right if stream.session.owner == left.me else left
                    router.move(key, at(to), mode)
                await until(lambda: stream.session.closed, 60)  # noqa: B023
                assert sum(stream.moves) >= 2 and stream.went_on_at("left", "right")
                streams.append(stream)
            sent = [one._engine.load.written_blocks + one._engine.load.sent_blocks for one in (left, right)]
            assert sum(sent) <= sum(len(stream.moves) for stream in streams) * BLOCKS
        return streams

    for stream in asyncio.run(main()):
        assert_greedy(stream, reference)


@pytest.mark.parametrize("host_bytes", [0, 4 << 20])
def test_streams_that_give_their_memory_back_outgrow_it(host_bytes, folder, reference):
    lengths = enumerate((1, 20, 30, 40))
    contexts = {f"s{n}": prompt(length, n, temperature=0.0, max_tokens=250) for n, length in lengths}

    async def main() -> list[Stream]:
        short = small("short", folder, admission="aggressive", host_kv_bytes=host_bytes, prefill=48)
        async with running(short) as router:
            for key, context in contexts.items():
                router.start(key, context, at(short))
            await until(lambda: all(stream.session.closed for stream in router.streams.values()), 60)
            assert short._engine.load.preemptions > 0
            if host_bytes:
                assert short._engine._scheduler.kv._host.host.counts().cached > 0
            return list(router.streams.values())

    for stream in asyncio.run(main()):
        assert_greedy(stream, reference)


def test_a_next_turn_begins_where_the_last_blocks_are(folder):
    """Those that no token sees any more have been evicted."""
    first = prompt(40 * BLOCK, 1, temperature=0.0, max_tokens=3)

    async def main() -> None:
        one = small("one", folder)
        async with running(one) as router:
            turn = router.start("first", first, at(one))
            await until(lambda: turn.session.closed)
            again = replace(first, prompt=(*first.prompt, *turn.ids, *range(20, 40)))
            turn = router.start("again", again, at(one))
            await until(lambda: turn.session.closed)
            assert one._engine.load.hit_tokens == 40 * BLOCK

    asyncio.run(main())


def test_a_layer_that_sees_everything_keeps_everything(tmp_path):
    fields = {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1}
    mixed = read_checkpoint(make_checkpoint(tmp_path / "mixed", "qwen2", seed=1, **fields))
    assert mixed.span(BLOCK) is None and mixed.longest(BLOCKS, BLOCK) == BLOCKS * BLOCK
    whole = read_checkpoint(
        make_checkpoint(tmp_path / "all", "qwen2", seed=1, **{**fields, "max_window_layers": 0})
    )
    assert whole.span(BLOCK) == 4 and whole.longest(BLOCKS, BLOCK) == whole.max_positions
    assert whole.longest(4, BLOCK) == 4 * BLOCK, "no room for what a token sees, and its own block"


@pytest.mark.parametrize("window, span", [(1, 0), (2, 1), (17, 1), (18, 2), (33, 2)])
def test_the_blocks_that_a_token_sees_are_counted_from_the_first_of_its_own(window, span, folder):
    spec = read_checkpoint(folder)
    assert replace(spec, windows=(window, 1)).span(BLOCK) == span

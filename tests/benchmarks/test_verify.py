"""`verify` against real clusters: clean as they are, and a failure for every fault that is planted in them."""

from dataclasses import replace

import pytest

from penstock.benchmarks.checkpoints import make_checkpoint
from penstock.benchmarks.exercise import Stream
from penstock.benchmarks.findings import EXERCISED, MANY, MUST_BE_0, UNITS, arrivals, failures
from penstock.benchmarks.trials import Trial
from penstock.benchmarks.trips import (
    AMPLE,
    CACHES,
    CHUNKS,
    RANDOM,
    RANKS,
    TINY,
    TRANSPORTS,
    Verification,
    draw_trips,
)
from penstock.benchmarks.verify import verify
from penstock.cluster.config import Config
from penstock.engine.checkpoint import read_checkpoint
from penstock.handover.config import HandoverConfig

CLEAN = dict.fromkeys(UNITS, 0) | {
    "requests": 64,
    "tokens": 20_000,
    "moves_done": 80,
    "damaged": 40,
    "sensitivity": 1.0,
    **dict.fromkeys(EXERCISED, 5),
}


def of(**options) -> Verification:
    config = Config(handover=HandoverConfig(grace_s=3.0))  # a leak is certain once it has passed
    few = Verification(
        requests=5,
        moves=2,
        seed=3,
        checkpoints=(RANDOM,),
        transports=("local",),
        ranks=((1, 1),),
        caches=(AMPLE,),
        config=config,
    )
    return replace(few, **options)


def wrong(figures) -> list[str]:
    return [name for name in MUST_BE_0 if figures[name]]


def test_a_sound_cluster_of_unequal_pools_passes_over_gloo():
    verdict = verify(of(transports=("gloo",), ranks=((2, 1),)))
    figures = verdict.report.figures
    assert verdict.failures == ()
    assert figures["requests"] == 5 and figures["tokens"] > 5 * 32
    assert figures["moves_done"] > 0
    assert figures.keys() == UNITS.keys()


def test_a_sound_cluster_whose_cache_is_tiny_passes_while_sequences_give_their_memory_back():
    verdict = verify(of(caches=(TINY,), requests=8))
    figures = verdict.report.figures
    assert verdict.failures == ()
    assert figures["preemptions"] > 0 and figures["hit_tokens"] == figures["moves_done"] == 0


@pytest.mark.parametrize(
    "fault, figure",
    [
        ({"instance": "planted:AlteringInstance"}, "mismatched"),
        ({"instance": "planted:KeepingInstance"}, "leaked_blocks"),
        ({"router": "planted:EchoingRouter"}, "duplicated"),
        ({"instance": "planted:SharingInstance"}, "crossed_tokens"),
    ],
    ids=[
        "a transport alters a block",
        "a pool keeps a block",
        "a router sends a delta twice",
        "a cache knows no tenants",
    ],
)
def test_a_planted_fault_shows_in_its_figure_and_no_other(fault, figure):
    verdict = verify(of(**fault))
    told = {"logprobs_wrong"}  # other tokens have others, and what comes twice brings its own twice
    others = {"mismatched": told, "duplicated": told}.get(figure, set())
    assert {figure} <= {*wrong(verdict.report.figures)} <= {figure} | others
    assert any(line.startswith(figure) for line in verdict.failures)


@pytest.fixture
def shares(tmp_path):
    """Two checkpoints, and what share of each one's requests samples."""
    families = ("llama", "qwen3_moe")
    return {make_checkpoint(tmp_path / family, family, 1): 0.0 for family in families}


def trips_of(shares, **options):
    asked = of(**options)
    return [(trip, trip.config(asked.config)) for trip in draw_trips(asked, shares)]


def test_every_division_of_both_pools_has_its_turn_where_the_model_allows_it(tmp_path, shares):
    both = {"requests": 64, "transports": TRANSPORTS, "ranks": RANKS}
    trips = trips_of(shares, **both)
    assert sorted(trip.ranks for trip, _ in trips) == sorted(RANKS)
    assert all(config.engine_of("prefill").tensor_parallel == trip.ranks[0] for trip, config in trips)
    odd = make_checkpoint(tmp_path / "odd", "llama", 1, intermediate_size=101)
    assert {trip.ranks for trip, _ in trips_of({odd: 0.0}, **both)} == {(1, 1)}


def test_every_size_of_a_chunk_has_its_turn_and_some_steps_a_target(shares):
    configs = [config for _, config in trips_of(shares, transports=TRANSPORTS)]
    chunks = sorted(config.cluster.prefill_tokens for config in configs)
    assert all(least <= chunk <= most for chunk, (least, most) in zip(chunks, CHUNKS, strict=True))
    targets = [config for config in configs if config.cluster.itl_target_s]
    assert 0 < len(targets) < len(configs) and all(config.cost for config in targets)


def test_each_checkpoint_has_a_tiny_cache_that_its_host_memory_does_not_hold(shares):
    trips = trips_of(shares, requests=64, transports=TRANSPORTS, caches=CACHES, ranks=RANKS)
    tiny = [(trip, config.engine) for trip, config in trips if trip.tiny]
    assert len(trips) == 6 and {trip.folder for trip, _ in tiny} == shares.keys()
    assert sum(trip.requests for trip, _ in trips) == 64
    for trip, engine in tiny:
        spec = read_checkpoint(trip.folder)
        for ranks in trip.ranks:
            kept = engine.host_block_count(spec.block_bytes(engine.block_size, "float32", ranks))
            assert 0 < kept < engine.kv_blocks == trip.blocks


def test_clean_figures_are_no_failure():
    assert list(failures(CLEAN, ours=True)) == []


@pytest.mark.parametrize("name", MUST_BE_0)
def test_one_of_what_must_be_0_is_a_failure(name):
    (line,) = failures(CLEAN | {name: 1}, ours=False)
    assert name in line


def test_fewer_than_80_percent_of_the_moves_done_is_a_failure():
    assert list(failures(CLEAN | {"moves_done": 80, "moves_aborted": 20}, ours=True)) == []
    assert list(failures(CLEAN | {"moves_done": 79, "moves_aborted": 21}, ours=True))
    assert list(failures(CLEAN | {"moves_done": 0, "moves_aborted": 0}, ours=True)) == []


@pytest.mark.parametrize("done, aborted, wrong", [(1, 1, False), (2, 1, False), (2, 2, True), (0, 1, True)])
def test_of_few_moves_a_single_one_may_abort_unless_none_is_done(done, aborted, wrong):
    assert bool(list(failures(CLEAN | {"moves_done": done, "moves_aborted": aborted}, ours=True))) is wrong


@pytest.mark.parametrize("tokens, most", [(1_000, 1), (20_000, 2), (1_000_000, 100)])
def test_more_ties_than_one_in_10_000_tokens_are_a_failure(tokens, most):
    assert list(failures(CLEAN | {"tokens": tokens, "ties": most}, ours=True)) == []
    assert list(failures(CLEAN | {"tokens": tokens, "ties": most + 1}, ours=True))


def test_instances_that_died_and_recoveries_that_nothing_called_for_are_a_failure():
    assert list(failures(CLEAN | {"restarts": 1}, ours=True))
    assert list(failures(CLEAN | {"recoveries": 3}, ours=True)) == []
    assert list(failures(CLEAN | {"recoveries": 4}, ours=True))


def test_our_own_checkpoints_must_notice_damage_and_foreign_ones_need_not():
    assert list(failures(CLEAN | {"sensitivity": 0.8}, ours=True))
    assert list(failures(CLEAN | {"sensitivity": 0.8}, ours=False)) == []
    assert list(failures(CLEAN | {"damaged": 4, "sensitivity": 0.75}, ours=True)) == []
    assert list(failures(CLEAN | {"damaged": 4, "sensitivity": 0.5}, ours=True))


@pytest.mark.parametrize("name", EXERCISED)
def test_a_kind_that_never_occurred_in_many_requests_is_a_failure(name):
    (line,) = failures(CLEAN | {name: 0}, ours=True)
    assert line.startswith(f"{name} is 0")
    assert list(failures(CLEAN | {name: 0, "requests": MANY - 1}, ours=True)) == []
    assert list(failures(CLEAN | {name: 0}, ours=False)) == []


def test_moves_in_a_tiny_cache_count_apart():
    moved = [Stream(Trial("r", (1,), 50, 0.0, 9, (3, 8, 30), None), tokens=[5] * 50, moved=[True, False])]
    ample, tiny = arrivals(moved, tiny=False), arrivals(moved, tiny=True)
    kinds = "moves_done", "moves_aborted", "moves_late"
    assert [ample[kind] for kind in kinds] == [tiny[f"{kind}_tiny"] for kind in kinds] == [1, 1, 1]
    assert not any(ample[f"{kind}_tiny"] or tiny[kind] for kind in kinds)


def test_blocks_that_took_another_transport_are_a_failure():
    assert list(failures(CLEAN | {"astray_blocks": 1}, ours=False))


@pytest.mark.parametrize(
    "options, words", [({"requests": 0}, "at least 1"), ({"moves": -1}, "cannot be moved")]
)
def test_nonsense_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        of(**options)


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_starts(tmp_path):
    with pytest.raises(ValueError, match="config.json"):
        verify(of(model=str(tmp_path)))

"""`penstock profile`: its shapes are such as an instance runs, and what it writes is a profile with its errors."""

import json
import xml.etree.ElementTree as ET

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.benchmarks import profile as bench
from penstock.benchmarks import surroundings
from penstock.benchmarks.profile import StepTurns, Turn
from penstock.benchmarks.scatter import Point, Scatter
from penstock.benchmarks.step_plans import StepPlan, draw_plans, items
from penstock.cli.errors import exit_code
from penstock.cli.profile import command
from penstock.cluster.fit import fit_steps
from penstock.cluster.profile import load
from penstock.engine.layout import CacheLayout
from penstock.policy.cost import StepShape


def cache(blocks: int, block_size: int = 16) -> CacheLayout:
    return CacheLayout(
        layers=1, blocks=blocks, block_size=block_size, kv_heads=1, head_dim=8, dtype="float32"
    )


@settings(deadline=None)
@given(st.integers(0, 99), st.sampled_from((64, 512, 16384)), st.sampled_from((16, 128, 4096)))
def test_every_step_fits_the_cache_and_the_context(seed, context, blocks):
    layout = cache(blocks)
    plans = draw_plans(30, seed, context, layout)
    assert draw_plans(30, seed, context, layout) == plans
    for plan in plans:
        assert plan.shape.tokens > 0
        assert all(fed > 0 and before >= 0 and fed + before <= context for fed, before in plan.sequences())
        held = [block for item in items(plan, layout, 100, seed) for block in item.block_table]
        assert len(set(held)) == len(held) and set(held) <= set(range(blocks))


def test_a_third_is_of_each_kind():
    shapes = [plan.shape for plan in draw_plans(30, 1, 16384, cache(4096))]
    assert sum(not shape.decodes for shape in shapes) == 10
    assert sum(not shape.chunk_tokens for shape in shapes) == 10


def test_a_cache_that_holds_nothing_is_refused():
    with pytest.raises(ValueError, match=r"engine\.kv_bytes"):
        draw_plans(30, 1, 16384, cache(4))


@settings(deadline=None)
@given(st.integers(0, 99))
def test_an_item_feeds_what_its_plan_says(seed):
    plan = StepPlan(chunks=((20, 5), (3, 0)), contexts=(7, 40))
    work = items(plan, cache(64), 50, seed)
    assert [(len(item.tokens), item.start) for item in work] == [(1, 7), (1, 40), (20, 5), (3, 0)]
    assert all(len(item.block_table) * 16 >= item.start + len(item.tokens) for item in work)
    assert all(0 <= token < 50 for item in work for token in item.tokens)


def test_a_shape_takes_the_median_of_its_turns_without_the_waiting():
    turns = [Turn(1.0, 0.0), Turn(9.0, 7.9), Turn(1.2, 0.0)]
    assert StepTurns(StepShape.of([(5, 0)]), turns).sample().seconds == pytest.approx(1.1)


def test_planted_surroundings_are_found_again_in_the_samples():
    found = surroundings.fit([(count, 3e-4 + 2e-5 * count) for count in surroundings.BATCHES])
    assert (found.base_s, found.per_sequence_s) == pytest.approx((3e-4, 2e-5))
    turns = StepTurns(StepShape.of([(5, 0)]), [Turn(1.0, 0.0)], found.predict(10))
    assert turns.sample().seconds == pytest.approx(1.0 + 5e-4)


def test_planted_surroundings_are_found_again_in_the_law():
    around, plans = surroundings.Surroundings(3e-4, 2e-5), draw_plans(60, 1, 16384, cache(4096))
    steps = [
        StepTurns(
            plan.shape, [Turn(1e-3 + 1e-4 * plan.shape.tokens, 0.0)], around.predict(plan.shape.decodes)
        )
        for plan in plans
        if not plan.shape.chunk_tokens or not plan.shape.decodes
    ]
    cost = fit_steps([step.sample() for step in steps])
    assert cost.decode.above.base_s == pytest.approx(1.3e-3, rel=1e-3)
    assert cost.decode.above.per_token_s == pytest.approx(1.2e-4, rel=1e-3)


POINTS = st.lists(
    st.builds(Point, st.floats(1e-6, 100), st.just(0.0) | st.floats(1e-8, 100), st.integers(0, 1)),
    min_size=1,
    max_size=20,
)


@settings(deadline=None)
@given(POINTS)
def test_a_picture_holds_every_point(points):
    scatter = Scatter("Times of <a & b>", points, ("in the fit", "held out"))
    tree = ET.fromstring(scatter.svg())
    circles = tree.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == len(points) + 2  # and those of the legend
    assert all(0 <= float(circle.get(axis, "-1")) <= 540 for circle in circles for axis in ("cx", "cy"))
    lines = scatter.text().splitlines()
    assert len({len(line) for line in lines[1:-2]}) == 1
    assert any(mark in "".join(lines[1:-2]) for mark in ".o")


def test_a_run_writes_a_profile_with_its_picture_and_figures(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", 48)
    monkeypatch.setattr(bench, "MOST_TURNS", 1)
    monkeypatch.setattr(bench, "FIRST_SHARE", 1.0)
    monkeypatch.setattr(bench, "COPY_ROUNDS", 1)
    path = tmp_path / "here.yaml"
    run = CliRunner().invoke(
        command, ["--seconds", "30", "--out", str(path), "--json"], catch_exceptions=False
    )
    assert run.exit_code == 0
    figures = json.loads(run.stdout.splitlines()[-1])["figures"]
    assert list(figures) == ["step_error_p50", "step_error_p90", "copy_error_p50"]
    profile = load(path)
    assert "around them" in profile.provenance.note
    assert profile.error.step_p50 == pytest.approx(figures["step_error_p50"], rel=1e-4)
    assert profile.cost.links.keys() == {"host", "local", "gloo"}
    assert (
        profile.cost.step.predict(StepShape.of([(512, 0)]))
        > profile.cost.step.predict(StepShape.of([(8, 0)]))
        > 0
    )
    assert (tmp_path / "here.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    "options, named",
    [
        (["--model", "/nowhere"], "/nowhere"),
        (["--config", "/nowhere.yaml"], "/nowhere.yaml"),
    ],
)
def test_a_checkpoint_or_a_file_that_is_not_there_is_one_line(options, named, tmp_path, capsys):
    run = [*options, "--out", str(tmp_path / "x.yaml")]
    assert exit_code(lambda: command.main(run, standalone_mode=False)) == 2
    told = capsys.readouterr().err
    assert named in told and told.count("\n") == 1


@pytest.mark.parametrize(
    "options, named",
    [
        (["--seconds", "1"], "--seconds"),
        (["--seconds", "9999"], "--seconds"),
        (["--seed", "-1"], "--seed"),
        (["--out", "/nowhere/at/all.yaml"], "--out: /nowhere/at/all.yaml cannot be written"),
        (["--out", "/tmp"], "--out: /tmp cannot be written"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_a_wrong_option_is_named_before_anything_is_measured(options, named):
    run = CliRunner().invoke(command, options)
    assert run.exit_code == 2 and named in run.output

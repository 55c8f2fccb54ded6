"""`bench transfer` reports every figure that it promises."""

import pytest
from click.testing import CliRunner

from penstock.benchmarks.transfer import LAYOUT, WAYS, measure
from penstock.cli.bench_transfer import command


def test_every_way_and_size_has_a_figure_with_its_spread():
    report = measure(rounds=1, sizes=(1, 16))
    assert set(report.figures) == {f"{way}_gbps_{blocks}" for way in WAYS for blocks in (1, 16)}
    assert set(report.units.values()) == {"GB/s"}
    assert all(low <= report.figures[key] <= high for key, (low, high) in report.spread.items())
    assert min(report.figures.values()) > 0


def test_a_block_has_256_kib():
    assert LAYOUT.block_bytes == 256 * 1024


@pytest.mark.parametrize("rounds", ["0", "-1", "many"])
def test_rounds_that_are_no_count_are_refused(rounds):
    outcome = CliRunner().invoke(command, ["--rounds", rounds])
    assert outcome.exit_code == 2 and "--rounds" in outcome.output

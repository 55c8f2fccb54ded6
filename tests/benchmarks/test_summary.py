"""Laws of the results page: it holds every recorded figure, and the committed one is what the results give."""

import json
import re

import pytest

from penstock.benchmarks.figures import RESULTS, Report
from penstock.benchmarks.summary import PAGE, curves_of, draw, page

FIGURES = {
    "live_ms_128": 10.5,
    "live_ms_8192": 11.25,
    "slowdown": 1.003,
    "gbps_1": 2.0,
    "gbps_16": 3.5,
    "gbps_64": 4.0,
}
REPORT = Report(
    command="bench migration",
    figures=FIGURES,
    units={name: "ms" if "ms" in name else "GB/s" if "gbps" in name else "1" for name in FIGURES},
    spread={"slowdown": (0.9, 1.1)},
)


@pytest.fixture
def results(tmp_path):
    REPORT.save("migration", tmp_path)
    return tmp_path


def test_every_figure_stands_in_the_page_with_its_command_unit_and_spread(results):
    text = page(results)
    assert "`penstock bench migration`" in text
    assert "| slowdown | 1.003 | 1 | 0.9 to 1.1 |" in text
    assert "| figure | unit | 128 | 8192 |" in text and "| live_ms | ms | 10.5 | 11.25 |" in text
    assert "| figure | unit | 1 | 16 | 64 |" in text and "| gbps | GB/s | 2 | 3.5 | 4 |" in text


def test_numbered_figures_are_points_of_one_curve():
    (live, gbps) = curves_of(REPORT.as_json())
    assert (live.name, live.points) == ("live_ms", {128: 10.5, 8192: 11.25})
    assert (gbps.unit, gbps.points) == ("GB/s", {1: 2.0, 16: 3.5, 64: 4.0})


def test_pictures_are_drawn_of_curves_and_linked(results):
    draw(results)
    assert "</svg>" in (results / "migration.svg").read_text()
    assert "(results/migration.svg)" in page(results)


def test_results_without_curves_get_no_picture(tmp_path):
    Report(command="verify", figures={"tokens": 5}, units={"tokens": "tokens"}).save("verify", tmp_path)
    draw(tmp_path)
    assert not list(tmp_path.glob("*.svg"))
    assert "| tokens | 5 | tokens |" in page(tmp_path)


def test_the_committed_page_is_the_one_that_the_committed_results_give():
    assert PAGE.read_text() == page(RESULTS)


def test_every_recorded_result_has_a_command_and_a_unit_for_each_figure():
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert re.match(r"(verify|bench|profile|chaos|plan|simulate)\b", result["command"])
        assert result["figures"].keys() == result["units"].keys()

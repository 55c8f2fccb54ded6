"""`bench kernels` reports every figure that it promises, and says so where there is no GPU."""

import json
import subprocess
import sys

import pytest
import torch

from penstock.benchmarks.kernels import Seconds, Sizes, run

TINY = Sizes(
    batches=(1, 2),
    contexts=(16, 40),
    neighbours=(1, 2, 3),
    neighbour_context=20,
    chunks=((8, 0), (5, 11)),
    shared=(3, 32, 7),
    copied_blocks=4,
    copy_bytes=64,
    matmul=4,
    heads=4,
    kv_heads=2,
    dim=8,
)


def clock(work) -> Seconds:
    work()
    return Seconds(0.5, 0.25, 1.0)


def test_every_case_has_a_figure():
    report = run(TINY, torch.device("cpu"), clock)
    assert set(report.figures) == {
        "copy_tbps",
        "matmul_tflops",
        *(f"decode_share_b{batch}_c{context}" for batch in (1, 2) for context in (16, 40)),
        "decode_worst_growth_c20",
        "shared_prefix_ratio_b3_c32",
        "prefill_share_n8_p0",
        "prefill_share_n5_p11",
        "gather_tbps",
        "scatter_tbps",
    }


def test_figures_follow_from_bytes_products_and_seconds():
    report = run(TINY, torch.device("cpu"), clock)
    assert report.figures["copy_tbps"] == pytest.approx(2 * 64 / 0.5 / 1e12)
    kv_bytes = 2 * 40 * 2 * 2 * 8 * 2
    assert report.figures["decode_share_b2_c40"] == pytest.approx(kv_bytes / (2 * 64))
    products = 4 * 4 * 8 * (5 * 11 + 1 + 2 + 3 + 4 + 5)
    assert report.figures["prefill_share_n5_p11"] == pytest.approx(products / (2 * 4**3))
    assert report.figures["decode_worst_growth_c20"] == 0
    assert report.spread["gather_tbps"] == pytest.approx((2 * 4096 / 1e12, 8 * 4096 / 1e12))


def test_cases_beyond_the_memory_are_left_out():
    report = run(Sizes(**{**vars(TINY), "most_kv_bytes": 64 * 40}), torch.device("cpu"), clock)
    assert "decode_share_b1_c40" in report.figures and "decode_share_b2_c40" not in report.figures


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_and_the_users_error():
    command = [sys.executable, "-m", "penstock.cli.main", "bench", "kernels", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "GPU" in json.loads(done.stdout)["error"]["message"]
    assert len(done.stderr.splitlines()) == 1 and "GPU" in done.stderr

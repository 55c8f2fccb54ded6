"""The checks of `make gpu-check` pass where the kernels are their own twins, and notice what is wrong."""

import subprocess
import sys

import pytest
import torch

from penstock.benchmarks import gpu_check
from penstock.benchmarks.checkpoints import VARIANTS
from penstock.engine import layers

CPU = torch.device("cpu")


def test_the_cpu_is_right():
    report, wrong = gpu_check.run(CPU, range(1), VARIANTS[1:2])
    assert wrong == []
    assert report.figures["engine_tokens"] == len(gpu_check.PROMPTS) * gpu_check.OUTPUT_TOKENS
    errors = {key for key in report.figures if "_error_" in key}
    attention = ("decode", "decode_window", "shared_prefix", "prefill", "prefill_window")
    names = (*attention, "store_kv", "gather_scatter", "add_rms_norm", "rope", "silu_mul")
    assert errors == {f"{name}_error_{dtype}" for name in names for dtype in ("float32", "bfloat16")}
    assert 0 < report.figures["decode_error_bfloat16"]


def test_a_wrong_kernel_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        gpu_check, "silu_mul", lambda x: x[:, : x.shape[1] // 2].float() * 1.1 ** (x.dtype != torch.float32)
    )
    _, wrong = gpu_check.run(CPU, range(1), ())
    assert len(wrong) == 1 and "silu_mul" in wrong[0] and "bfloat16" in wrong[0]


def test_an_engine_that_reads_wrong_keys_is_named(monkeypatch: pytest.MonkeyPatch):
    whole = layers.paged_decode_attention

    def first_key_head(q, kv, batch):
        return whole(q, kv[:, :, :, :1].expand_as(kv).contiguous(), batch)

    monkeypatch.setattr(layers, "paged_decode_attention", first_key_head)
    _, wrong = gpu_check.run(CPU, range(0), VARIANTS[1:2])
    assert len(wrong) == 1 and "mistral" in wrong[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, "-m", "penstock.benchmarks.gpu_check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no GPU" in done.stderr


def test_it_comes_without_what_a_lent_gpu_may_lack():
    program = """
import sys
for name in ("ray", "grpc", "google.protobuf", "llguidance", "yaml"):
    sys.modules[name] = None
import penstock.benchmarks.gpu_check
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr

"""The device chooses the path, and CPU workers come without Triton."""

import subprocess
import sys

import numpy as np
import torch

from penstock.kernels.device import on_gpu, upload


def test_a_step_on_the_cpu_loads_no_triton() -> None:
    program = """
import sys
from penstock.engine.config import EngineConfig
from penstock.engine.runner import Runner, SampleSpec, StepItem
runner = Runner(EngineConfig(device="cpu", kv_blocks=4))
runner.step([StepItem([1, 2, 3], 0, [0], SampleSpec(0.0, 0, 0, 0)), StepItem([4], 0, [1], None)])
runner.cache.scatter([2], runner.cache.gather([0]))
print("triton" in sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["False"]


def test_what_lies_on_the_cpu_stays_there() -> None:
    numbers = np.arange(3)
    assert upload(numbers, torch.device("cpu")).data_ptr() == numbers.ctypes.data
    assert not on_gpu(torch.empty(1))

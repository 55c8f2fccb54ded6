"""Which path a kernel takes, and how a step's numbers reach the device."""

import numpy as np
import torch


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether a kernel on `tensor` is the Triton one (`*_triton.py`, imported then only) or its torch twin."""
    return tensor.is_cuda


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """`array` on `device`, without waiting for it: through pinned memory, in the order of the current stream."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)

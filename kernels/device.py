"""Which path a kernel takes, and how a step's numbers reach the device and come back, without waiting for it."""

import numpy as np
import torch


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether a kernel on `tensor` is the Triton one (`*_triton.py`, imported then only) or its torch twin."""
    return tensor.is_cuda


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """`array` on `device`, without waiting for it: through pinned memory, in the order of the current stream."""
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def download(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` on the host, in pinned memory where it comes from a GPU: there once a later `Milestone` is reached."""
    if tensor.device.type == "cpu":
        return tensor
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


class Milestone:
    """The work that `device` was given so far, in the order of its current stream. A CPU has done it at once."""

    def __init__(self, device: torch.device) -> None:
        self._event = None if device.type == "cpu" else torch.cuda.Event()
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        """Return when all of it is done; other threads run meanwhile."""
        if self._event is not None:
            self._event.synchronize()

"""How tensors reach the device that computes."""

import torch
from torch import Tensor


def sent(value: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The host's goes to a GPU through pinned memory, so that the host does not wait."""
    if device.type == "cuda" and value.device.type == "cpu":
        value = value.pin_memory()
    return value.to(device, non_blocking=True)

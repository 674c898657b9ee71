"""From the host to a device, without waiting for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def sent(values: Any, device: torch.device) -> Tensor:
    """A tensor, an array or numbers on a device. A plain copy would wait until a GPU has done all that it was given."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

"""Peak memory: of the GPU if one is used, else of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def reset_peak(device: torch.device) -> None:
    """Give freed memory back and measure from here on (man 5 proc, clear_refs); nothing where a system has no way."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """The most memory in use since `reset_peak`, or since the start where that does nothing."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        memory: Any = psutil.Process().memory_info()
        return memory.peak_wset
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

"""A connection to Ray: to a cluster that runs already, or to what Ray starts of this machine alone."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SERVE_FRONT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "softprompt.cluster.replicas.in_front"}
"""What Ray Serve puts in front of replicas, told to its processes by their environment."""
ANSWERS_WITHIN_S = 8.0  # ours: with Ray's import, an address that does not answer is told within ten seconds


@contextmanager
def ray_cluster(address: str | None, *, processors: int | None = None) -> Iterator[None]:
    """Be connected to Ray until the block ends; where this process is connected already, it stays so.

    address: a cluster's, HOST:PORT, or auto for one that was started on this machine; None: Ray is started here, with
    so many processors (None: those there are), and ends with the block. ValueError where Ray is not installed, or the
    address does not answer.
    """
    # Nobody is told who uses Ray; what has no GPU of its own sees those there are; a worker's end is seen in a second.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "1")
    os.environ.update(SERVE_FRONT)
    if address not in (None, "auto"):
        _check_listens(address)
    try:
        import ray
    except ImportError:
        raise ValueError("this runs on Ray, which is not installed; pip install 'softprompt[ray]'") from None
    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)  # Ray sets one of its own
    if address is None:
        _start(processors)
    else:
        _connect(address)
    signal.signal(signal.SIGTERM, before)
    try:
        yield
    finally:
        ray.shutdown()


def _start(processors: int | None) -> None:
    """Start Ray on this machine; once more where it is too slow for Ray, which waits 30 seconds for its own parts."""
    import ray

    for is_last in (False, False, True):
        try:
            ray.init("local", num_cpus=processors, include_dashboard=False, logging_level=logging.ERROR)
            return
        except Exception as error:  # of no class of its own
            ray.shutdown()
            if is_last:
                raise OSError(f"Ray does not start on this machine: {' '.join(str(error).split())}") from error


def _check_listens(address: str) -> None:
    """ValueError where nothing listens there, before anything waits for it."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--address is {address!r}; give HOST:PORT, or auto for a cluster on this machine")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS_WITHIN_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(
            f"no Ray answers at {address} ({reason}); start one there (ray start --head), or leave --address out"
        ) from None


def _connect(address: str) -> None:
    """Connect this process. ValueError where Ray does not answer in time, or refuses."""
    import ray

    failed: list[Exception] = []

    def connect() -> None:
        try:
            ray.init(address, logging_level=logging.ERROR, runtime_env={"env_vars": SERVE_FRONT})
        except Exception as error:
            failed.append(error)

    connecting = threading.Thread(target=connect, daemon=True)
    connecting.start()
    connecting.join(ANSWERS_WITHIN_S)
    if connecting.is_alive() or failed:
        reason = " ".join(str(failed[0]).split()) if failed else f"nothing within {ANSWERS_WITHIN_S:.0f} seconds"
        raise ValueError(f"no Ray that can be used answers at {address}: {reason}")


def gpus_each(device: str) -> int:
    """How many GPUs a process of this device takes: one where the device may be a GPU and the cluster has some."""
    import ray

    return int(device in ("auto", "cuda") and ray.cluster_resources().get("GPU", 0) > 0)

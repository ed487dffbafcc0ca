"""The worker pool on a Ray cluster that somebody else runs, such as KubeRay: `dreamserve pool` in its head's pod."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.settings import Settings

__all__ = ["ClusterUnreachable", "ensure_pool"]

log = logging.getLogger(__name__)

RETRY_S = 1.0
ANSWER_S = 5.0


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answered in time."""


def ensure_pool(settings: Settings, address: str, timeout_s: float) -> bool:
    """Start the pool on the Ray cluster at `address`, unless it is there; whether it was started now.

    Safe to call again, also by two at once. The pool outlives this process, and does not wait to be scheduled:
    the nodes that it needs may come later. Raises `ClusterUnreachable` when no cluster answers within `timeout_s`.
    """
    import ray

    from workers.pool import NAMESPACE, SCALER_NAME, start_pool

    _connect(address, timeout_s)
    try:
        if _is_there(SCALER_NAME, NAMESPACE):
            return False
        try:
            start_pool(settings)
        except ValueError:  # Ray's, for a name that is taken: somebody else was faster
            if not _is_there(SCALER_NAME, NAMESPACE):
                raise
            return False
        return True
    finally:
        ray.shutdown()


def _connect(address: str, timeout_s: float) -> None:
    import ray

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if ":" in address:  # Ray itself would try for three minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            return
        except (OSError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise ClusterUnreachable(
                    f"no Ray cluster answered at '{address}' within {timeout_s:.0f} s ({error}). Run this where a Ray "
                    "node runs, with the cluster's RAY_AUTH_MODE and RAY_AUTH_TOKEN, or give another --address"
                ) from error
            log.info("no Ray cluster at %s yet: %s", address, error)
        time.sleep(RETRY_S)


def _is_there(name: str, namespace: str) -> bool:
    import ray

    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True

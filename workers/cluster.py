"""The worker pool on a Ray cluster that somebody else runs, such as KubeRay: `dreamserve pool` in its head's pod."""

from __future__ import annotations

import logging
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from service.settings import Settings

__all__ = ["ClusterFacts", "ClusterUnreachable", "WrongRay", "connect", "ensure_pool", "look_at"]

log = logging.getLogger(__name__)

RETRY_S = 1.0
ANSWER_S = 5.0


class ClusterUnreachable(RuntimeError):
    """No Ray cluster answered in time."""


class WrongRay(RuntimeError):
    """The cluster runs another Ray or Python than this process."""


class ClusterFacts(NamedTuple):
    """What a cluster has."""

    nodes: int
    cpus: float
    gpus: float
    has_pool: bool


def look_at(address: str, timeout_s: float) -> ClusterFacts:
    """Tell what the Ray cluster at `address` has; raises as `connect` does."""
    import ray

    from workers.pool import NAMESPACE, SCALER_NAME

    connect(address, timeout_s)
    try:
        state: Any = ray  # these two are untyped
        alive = [node for node in state.nodes() if node["Alive"]]
        has = state.cluster_resources()
        pool = _is_there(SCALER_NAME, NAMESPACE)
        return ClusterFacts(len(alive), has.get("CPU", 0.0), has.get("GPU", 0.0), pool)
    finally:
        ray.shutdown()


def ensure_pool(settings: Settings, address: str, timeout_s: float) -> bool:
    """Start the pool on the Ray cluster at `address`, unless it is there; whether it was started now.

    Safe to call again, also by two at once. The pool outlives this process, and does not wait to be scheduled:
    the nodes that it needs may come later. Raises as `connect` does.
    """
    import ray

    from workers.pool import NAMESPACE, SCALER_NAME, start_pool

    connect(address, timeout_s)
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


def connect(address: str, timeout_s: float) -> None:
    """Join the Ray cluster at `address` (HOST:PORT, or auto for this machine's), which may be starting still.

    Raises `ClusterUnreachable` when none answers within `timeout_s`, and `WrongRay`.
    """
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
            if "Version mismatch" in str(error):
                raise WrongRay(_in_one_line(error)) from error
            if time.monotonic() > deadline:
                raise ClusterUnreachable(
                    f"no Ray cluster answered at '{address}' within {timeout_s:.0f} s ({_in_one_line(error)}). Run "
                    "this where a Ray node runs, with the cluster's RAY_AUTH_MODE and RAY_AUTH_TOKEN, or give "
                    "another --address"
                ) from error
            log.info("no Ray cluster at %s yet: %s", address, error)
        time.sleep(RETRY_S)


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_there(name: str, namespace: str) -> bool:
    import ray

    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True

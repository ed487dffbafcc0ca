"""On a Ray cluster that somebody else runs, such as KubeRay: the worker pool, or the whole service.

`dreamserve pool` in its head's pod starts what goes on without it; `dreamserve up --cluster` what ends with it.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.settings import Settings

__all__ = [
    "ClusterFacts",
    "ClusterUnfit",
    "ClusterUnreachable",
    "ClusterUnusable",
    "WrongRay",
    "connect",
    "ensure_pool",
    "joined_ray",
    "look_at",
    "start_service",
]

log = logging.getLogger(__name__)

RETRY_S = 1.0
ANSWER_S = 5.0


class ClusterUnusable(RuntimeError):
    """The text says what was found, which may name hosts, and then `advice`: what is the matter and what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(f"{found}. {advice}")
        self.advice = advice


class ClusterUnreachable(ClusterUnusable):
    """No Ray cluster answered in time."""


class ClusterUnfit(ClusterUnusable):
    """The service cannot run on this cluster."""


class WrongRay(ClusterUnfit):
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

    with joined_ray(address, timeout_s):
        state: Any = ray  # these two are untyped
        alive = [node for node in state.nodes() if node["Alive"]]
        has = state.cluster_resources()
        pool = _is_there(SCALER_NAME, NAMESPACE)
        return ClusterFacts(len(alive), has.get("CPU", 0.0), has.get("GPU", 0.0), pool)


def ensure_pool(settings: Settings, address: str, timeout_s: float) -> bool:
    """Start the pool on the Ray cluster at `address`, unless it is there; whether it was started now.

    Safe to call again, also by two at once. The pool outlives this process, and does not wait to be scheduled:
    the nodes that it needs may come later. Raises as `connect` does, and `ClusterUnfit`.
    """
    from workers.pool import NAMESPACE, SCALER_NAME, start_pool

    with joined_ray(address, timeout_s):
        if _is_there(SCALER_NAME, NAMESPACE):
            return False
        _refuse_a_file_for_many(settings)
        try:
            start_pool(settings)
        except ValueError:  # Ray's, for a name that is taken: somebody else was faster
            if not _is_there(SCALER_NAME, NAMESPACE):
                raise
            return False
        return True


@contextlib.contextmanager
def joined_ray(address: str, timeout_s: float) -> Iterator[None]:
    """Connect to the Ray cluster at `address` for a while; raises as `connect` does."""
    import ray

    connect(address, timeout_s)
    try:
        yield
    finally:
        ray.shutdown()


def start_service(settings: Settings, host: str, port: int, ending: contextlib.ExitStack) -> tuple[Any, bool]:
    """Start frontend and pool on the connected cluster: the pool scaler's handle, and whether the pool is ours.

    A pool that is there already is left as it is. What is started here is put into `ending`. Raises `ClusterUnfit`.
    """
    import ray

    from workers.pool import NAMESPACE, SCALER_NAME, end_pool, start_pool
    from workers.up import start_frontend

    _refuse_a_file_for_many(settings)
    ending.callback(_end_frontend, was_there=_is_there("SERVE_CONTROLLER_ACTOR", "serve"))
    start_frontend(settings, host, port)
    if _is_there(SCALER_NAME, NAMESPACE):
        return ray.get_actor(SCALER_NAME, namespace=NAMESPACE), False
    ending.callback(end_pool, settings)
    return start_pool(settings), True


def _refuse_a_file_for_many(settings: Settings) -> None:
    """Raise `ClusterUnfit` where nodes of the connected cluster would each have a database of their own."""
    import ray

    state: Any = ray  # this one is untyped
    nodes = sum(node["Alive"] for node in state.nodes())
    if nodes > 1 and settings.database_url.startswith("sqlite"):
        raise ClusterUnfit(
            f"the cluster has {nodes} nodes, and the database is a file of this one ({settings.database_url})",
            "No server's database is named: set DREAMSERVE_DATABASE_URL to a PostgreSQL database that all nodes reach",
        )


def _end_frontend(*, was_there: bool) -> None:
    """End the Serve application, and Serve itself unless it ran before."""
    import ray.serve

    serve: Any = ray.serve  # its functions are untyped
    if was_there:
        serve.delete("default")  # Serve's name for an application without one
    else:
        serve.shutdown()


def connect(address: str, timeout_s: float) -> None:
    """Join the Ray cluster at `address` (HOST:PORT, or auto for this machine's), which may be starting still.

    Raises `ClusterUnreachable` when none answers within `timeout_s`, `WrongRay`, and `ClusterUnfit` without its token.
    """
    import ray
    from ray.exceptions import AuthenticationError

    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if ":" in address:  # Ray itself would try for three minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
            return
        except AuthenticationError as error:
            advice = "The cluster's secret is missing: set RAY_AUTH_TOKEN here to the token of its nodes"
            raise ClusterUnfit(
                f"Ray's token was not found (RAY_AUTH_MODE=token) at '{address}'", advice
            ) from error
        except (OSError, RuntimeError) as error:
            if "Version mismatch" in str(error):
                raise WrongRay(_in_one_line(error).rstrip("."), _same_ray()) from error
            if time.monotonic() > deadline:
                raise ClusterUnreachable(
                    f"no Ray cluster answered at '{address}' within {timeout_s:.0f} s ({_in_one_line(error)})",
                    "Run this where a Ray node runs, with the cluster's RAY_AUTH_MODE and RAY_AUTH_TOKEN, or give "
                    "another --address",
                ) from error
            log.info("no Ray cluster at %s yet: %s", address, error)
        time.sleep(RETRY_S)


def _same_ray() -> str:
    import ray

    here = f"Ray {ray.__version__}, Python {platform.python_version()}"
    return (
        f"The cluster runs another Ray or Python than this image ({here}): give all images of the cluster the same, "
        "and set rayVersion to it"
    )


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_there(name: str, namespace: str) -> bool:
    import ray

    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True

"""The Ray Serve application: the HTTP frontend as a deployment. No logic: it opens the stores and builds the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ray import serve

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from service.settings import Settings

__all__ = ["Frontend", "build_app", "build_from_environment"]

MAX_ONGOING_REQUESTS = 1_000
"""Of one replica: an open event stream is an ongoing request too, and Serve's default is 5."""
STREAM_GRACE_S = 3.0
"""How long a replica that ends waits for streams; clients take them up again elsewhere, losing nothing."""


@serve.deployment(
    name="Frontend",
    max_ongoing_requests=MAX_ONGOING_REQUESTS,
    graceful_shutdown_wait_loop_s=0.5,
    graceful_shutdown_timeout_s=STREAM_GRACE_S,
    ray_actor_options={"num_cpus": 0},
)
@serve.ingress()
class Frontend:
    """One replica of the HTTP frontend; without settings it reads those of its own environment."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Open the stores in the replica, where they are used, and build the API over them."""
        from service.http.api import build_api
        from service.jobs.objects import open_checked_store
        from service.jobs.store import JobStore
        from service.settings import Settings

        settings = self._settings or Settings()
        store = JobStore(
            settings.database_url,
            retention_s=settings.retention_days * 86_400,
            max_queued=settings.max_queued,
        )
        objects = open_checked_store(settings.objects_url, public_endpoint=settings.s3_public_endpoint)
        return build_api(store, objects, settings)


def build_app(settings: Settings) -> Application:
    """Describe the frontend for `serve.run`; the same settings reach every replica."""
    application: Application = Frontend.bind(settings)  # type: ignore[attr-defined]
    return application


def build_from_environment(arguments: dict[str, Any]) -> Application:
    """Describe the frontend for a Serve configuration (its `import_path`); raises ValueError for any arguments.

    Each replica reads its own environment, so that no secret of it passes through Ray.
    """
    if arguments:
        raise ValueError(
            f"the frontend takes no `args`, but the Serve configuration gives {', '.join(sorted(arguments))}; "
            "set DREAMSERVE_… in the pods' environment instead"
        )
    application: Application = Frontend.bind()  # type: ignore[attr-defined]
    return application

"""One process under test: the real frontend on a port, or a real worker, whose prior is the analytic one."""

from __future__ import annotations

import logging
import sys

from service.settings import Settings


def frontend(settings: Settings, port: int) -> None:
    """Serve the API until killed."""
    import uvicorn

    from service.http.api import build_api
    from service.jobs.objects import open_object_store
    from service.jobs.store import JobStore

    store = JobStore(settings.database_url, max_queued=settings.max_queued)
    api = build_api(store, open_object_store(settings.objects_url), settings)
    uvicorn.run(api, host="127.0.0.1", port=port, log_level="warning", ws="none")


def worker(settings: Settings, name: str) -> None:
    """Work until killed."""
    from service.jobs.objects import open_object_store
    from service.jobs.store import JobStore
    from tests.unit.workers.small_workers import small_networks, with_referee
    from workers.worker import Worker

    store = JobStore(settings.database_url)
    Worker(
        name, store, open_object_store(settings.objects_url), lambda: with_referee(small_networks()), settings
    ).run()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    kind, argument = sys.argv[1:]
    if kind == "frontend":
        frontend(Settings(), int(argument))
    else:
        worker(Settings(), argument)

"""One process of whichever release PYTHONPATH names: its real frontend, or its real worker on the analytic prior.

Run by path, with `frontend PORT` or `worker NAME`. It imports only what every release since 0.2.0 has.
"""

from __future__ import annotations

import signal
import sys

from service.jobs.objects import open_object_store
from service.jobs.store import JobStore
from service.settings import Settings


def work(settings: Settings, name: str) -> None:
    """Work until SIGTERM, then drain."""
    from tests.unit.workers.small_workers import small_networks, with_referee
    from workers.worker import Worker

    store, objects = JobStore(settings.database_url), open_object_store(settings.objects_url)
    worker = Worker(name, store, objects, lambda: with_referee(small_networks()), settings)
    signal.signal(signal.SIGTERM, lambda *_: worker.drain())
    worker.run()


if __name__ == "__main__":
    kind, argument = sys.argv[1:]
    if kind == "frontend":
        from tests.chaos.subject import frontend

        frontend(Settings(), int(argument))
    else:
        work(Settings(), argument)

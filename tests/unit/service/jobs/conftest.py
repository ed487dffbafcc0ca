"""Job stores on every database that this machine has."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from service.jobs.store import JobStore
from tests.unit.service.jobs.job_samples import FakeClock
from tests.unit.service.jobs.postgres import find_programs, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_numbers = itertools.count()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    programs = find_programs()
    if programs is None:
        told = "PostgreSQL is not installed (no initdb on PATH): the store is tested on SQLite only"
        pytest.fail(told) if os.environ.get("CI") == "true" else pytest.skip(told)
    with running_server(programs) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.sqlite3'}"
        return
    template = request.getfixturevalue("postgres_url")
    name = f"jobs{next(_numbers)}"
    admin = sa.create_engine(template.format(name="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
        yield template.format(name=name)
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def store(database_url: str, clock: FakeClock) -> Iterator[JobStore]:
    store = JobStore(database_url, max_queued=1_000, clock=clock)
    yield store
    store.close()

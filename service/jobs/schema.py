"""Bringing a database to the newest schema: alembic's migrations, run inside a transaction of ours.

A process asks once, at its first transaction. Alembic is imported only when there is something to do.
"""

from __future__ import annotations

import contextlib
import threading
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from service.jobs.errors import UnusableDatabase

if TYPE_CHECKING:
    from alembic.config import Config

__all__ = ["MIGRATIONS", "alembic_config", "found_revision", "head", "is_current", "upgrade"]

MIGRATIONS: Final = Path(__file__).parent / "migrations"
_ALEMBIC: Final = threading.Lock()
"""Alembic keeps what it is doing in global variables."""


@cache
def head() -> str:
    """Name the newest revision, which is the number that its file begins with."""
    return max(_revisions())


def is_current(engine: sa.Engine) -> bool:
    """Tell by one SELECT whether a database has the newest schema; False too when it cannot be asked."""
    with contextlib.suppress(DBAPIError), engine.connect() as connection:
        return _revision(connection) == head()
    return False


def found_revision(connection: sa.Connection) -> str | None:
    """Read which schema a database has; None for an empty one.

    Raises `UnusableDatabase` when it was made by a release that had no migrations, or by a newer one.
    """
    names = sa.inspect(connection).get_table_names()
    if "alembic_version" not in names:
        if "jobs" in names:
            raise UnusableDatabase(
                "the database was made by an early release, which left no version in it, and cannot be brought up "
                "to date; let its jobs end with that release, then name an empty database (DREAMSERVE_DATABASE_URL) "
                "or another data folder"
            )
        return None
    found = _revision(connection)
    if found is not None and found not in _revisions():
        raise UnusableDatabase(
            f"the database has the schema {found} of a newer release, and this one knows up to {head()}; "
            "run the newer release"
        )
    return found


def upgrade(connection: sa.Connection) -> None:
    """Bring a database to the newest schema, in the transaction of this connection; raises `UnusableDatabase`."""
    if found_revision(connection) == head():
        return
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    with _ALEMBIC:
        command.upgrade(config, "head")


def alembic_config() -> Config:
    """Configure alembic for our migrations, without a file: whoever uses it gives `attributes["connection"]`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return config


def _revisions() -> list[str]:
    return [file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")]


def _revision(connection: sa.Connection) -> str | None:
    found: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return found

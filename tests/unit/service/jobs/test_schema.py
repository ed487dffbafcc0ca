"""Migrations: they make the schema that the code speaks of, once, and refuse what they do not understand."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from service.jobs import tables
from service.jobs.database import Database
from service.jobs.errors import StoreUnavailable, UnusableDatabase
from service.jobs.schema import alembic_config, head, is_current, upgrade

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    """An empty database, without anything of ours on its connections."""
    engine = sa.create_engine(database_url)
    yield engine
    engine.dispose()


def test_the_migrations_make_the_tables_of_the_code(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        assert compare_metadata(context, tables.metadata) == [], (
            "tables.py has changed: run `python -m service.jobs.migrations MESSAGE`"
        )


def test_the_newest_migration_is_known_without_alembic() -> None:
    assert ScriptDirectory.from_config(alembic_config()).get_heads() == [head()]


def test_a_database_goes_up_and_down_and_up_again(engine: sa.Engine) -> None:
    config = alembic_config()
    with engine.begin() as connection:
        upgrade(connection)
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert sa.inspect(connection).get_table_names() == ["alembic_version"]
        upgrade(connection)
        upgrade(connection)
    assert is_current(engine)


def test_a_database_is_opened_with_the_newest_schema(database_url: str, engine: sa.Engine) -> None:
    assert not is_current(engine)
    databases = [Database(database_url) for _ in range(4)]

    def open_one(database: Database) -> None:
        with database.reading() as tx:
            tx.execute(sa.select(tables.jobs))

    threads = [threading.Thread(target=open_one, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in databases:
        database.close()
    assert is_current(engine)


def test_a_database_of_an_early_release_is_refused(database_url: str, engine: sa.Engine) -> None:
    tables.metadata.create_all(engine)
    database = Database(database_url)
    with pytest.raises(UnusableDatabase, match="left no version in it") as caught, database.reading():
        pass
    assert isinstance(caught.value, StoreUnavailable)
    database.close()


def test_a_database_of_a_newer_release_is_refused_and_left_alone(engine: sa.Engine) -> None:
    with engine.begin() as connection:
        upgrade(connection)
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with engine.begin() as connection, pytest.raises(UnusableDatabase, match="9999 of a newer release"):
        upgrade(connection)
    assert not is_current(engine)

"""One database, SQLite or PostgreSQL: transactions with the database's clock, and outages as one error.

The engines differ in few places, all of them here: how a transaction begins (a write takes SQLite's lock at
once), how the clock is read, how a conflicting insert is spelled. `FOR UPDATE SKIP LOCKED` is silently left
out on SQLite, where one writer works at a time anyway.
"""

from __future__ import annotations

import functools
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from service.jobs import schema, tables
from service.jobs.errors import StoreUnavailable

__all__ = ["DAY_S", "Clock", "Database", "Transaction", "database_time"]

Clock = Callable[[sa.Connection], float]
"""Reads the time, in seconds since 1970."""

DAY_S = 86_400
_NUM_SHARDS = 8
_PATIENCE = {
    "connect_timeout": 5,
    # A server that vanished without a word is noticed in 15 s, not in the two hours of the kernel's default.
    "keepalives_idle": 5,
    "keepalives_interval": 3,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_SESSION = (
    # To compile the statement that counts places takes longer than to run it.
    "SET jit = off",
    # A client that vanished, or froze, in the middle of a transaction must not keep its locks: no statement of ours is
    # followed by so long a pause, and nobody waits for a lock longer than is left of a lease.
    "SET idle_in_transaction_session_timeout = '15s'",
    "SET lock_timeout = '10s'",
)
_SETUP_LOCK = 0x64726561  # any fixed number; names the advisory lock under which the schema changes
_ADVICE = {
    "no password supplied": "put the password into",
    "password authentication failed": "correct user or password in",
    "does not exist": "make this database and its user, or name others in",
}
_TIME_SQL = {
    # SQLite's julianday counts days and has milliseconds; 2440587.5 is 1970-01-01.
    "sqlite": sa.text("SELECT (julianday('now') - 2440587.5) * 86400.0"),
    "postgresql": sa.text("SELECT extract(epoch from clock_timestamp())"),
}


def database_time(connection: sa.Connection) -> float:
    """Read the database's own clock, the only one that leases are measured by."""
    return float(connection.execute(_TIME_SQL[connection.dialect.name]).scalar_one())


@dataclass
class Transaction:
    """One transaction, the time it began, and what it counted so far."""

    connection: sa.Connection
    now: float
    _counted: defaultdict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    _served: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _lifted: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def count(self, name: str, labels: str = "", amount: float = 1.0) -> None:
        """Add to a tally; `labels` as in `tallies.py`. Written when the transaction ends."""
        self._counted[name, labels] += amount

    def serve(self, owner: str, *, worker_s: float = 0.0, at_least: float = 0.0) -> None:
        """Move an owner's clock on by `worker_s` ÷ weight, and to `at_least` (see `shares.py`).

        Like tallies it is written when the transaction ends.
        """
        self._served[owner] += worker_s
        self._lifted[owner] = max(self._lifted[owner], at_least)

    def lifted_to(self, owner: str) -> float:
        """Tell how far this transaction will lift an owner's clock; 0 when it does not."""
        return self._lifted.get(owner, 0.0)

    def execute(self, statement: sa.Executable, parameters: Any = None) -> sa.CursorResult[*tuple[Any, ...]]:
        """Run a statement in this transaction."""
        result = self.connection.execute(statement, parameters)
        assert isinstance(result, sa.CursorResult)
        return result

    def try_lock(self, name: str) -> bool:
        """Take a lock until this transaction ends, unless another one has it; SQLite has one writer anyway."""
        if self.connection.dialect.name == "sqlite":
            return True
        lock = sa.func.pg_try_advisory_xact_lock(_SETUP_LOCK, sa.func.hashtext(name))
        return bool(self.connection.execute(sa.select(lock)).scalar_one())

    def upsert(self, table: sa.Table, key: str, values: dict[str, Any]) -> None:
        """Insert a row, or replace the one whose column `key` has the same value."""
        row = self._insert(table).values(values)
        self.connection.execute(
            row.on_conflict_do_update(
                index_elements=[key], set_={k: v for k, v in values.items() if k != key}
            )
        )

    def insert_or_keep(self, table: sa.Table, values: dict[str, Any]) -> None:
        """Insert a row unless its primary key or one of its unique columns is there already."""
        self.connection.execute(self._insert(table).values(values).on_conflict_do_nothing())

    def write_counts(self) -> None:
        """Write clocks and tallies, in one order for all writers and after every other lock: so nobody deadlocks."""
        for owner in sorted(self._served):
            self._write_clock(owner, self._served[owner], self._lifted[owner])
        for owner, worker_s in sorted(self._served.items()):
            if worker_s:
                self._write_usage(owner, worker_s)
        shard = random.randrange(_NUM_SHARDS)  # noqa: S311 - spreads load, guards nothing
        rows = [
            {"name": name, "labels": labels, "shard": shard, "value": amount}
            for (name, labels), amount in sorted(self._counted.items())
        ]
        if rows:
            self.connection.execute(_add_to_tallies(self.connection.dialect.name), rows)

    def _write_clock(self, owner: str, worker_s: float, at_least: float) -> None:
        columns = tables.owners.c
        moved = columns.served_s + worker_s / columns.weight
        row = self._insert(tables.owners).values(owner=owner, served_s=max(worker_s, at_least))
        later = sa.case((moved < at_least, at_least), else_=moved)
        self.connection.execute(row.on_conflict_do_update(index_elements=["owner"], set_={"served_s": later}))

    def _write_usage(self, owner: str, worker_s: float) -> None:
        row = self._insert(tables.usage).values(owner=owner, day=int(self.now // DAY_S), worker_s=worker_s)
        self.connection.execute(
            row.on_conflict_do_update(
                index_elements=["owner", "day"],
                set_={"worker_s": tables.usage.c.worker_s + row.excluded.worker_s},
            )
        )

    def _insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        return _insert(self.connection.dialect.name, table)


def _insert(dialect: str, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Begin an insert that may say what to do on a conflict (not in SQLAlchemy's common language)."""
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


@functools.cache
def _add_to_tallies(dialect: str) -> sa.Insert:
    row = _insert(dialect, tables.tallies)
    added = {"value": tables.tallies.c.value + row.excluded.value}
    return row.on_conflict_do_update(index_elements=["name", "labels", "shard"], set_=added)


class Database:
    """A pool of connections to `url`; migrated at the first use, so that it may start before its server."""

    def __init__(self, url: str, clock: Clock = database_time) -> None:
        self._clock = clock
        try:
            parsed = sa.make_url(url)
        except sa.exc.ArgumentError as error:
            raise ValueError(
                "DREAMSERVE_DATABASE_URL cannot be read as a URL; expected sqlite:///FILE or "
                "postgresql+psycopg://USER:PASSWORD@HOST/NAME"
            ) from error
        self._engine = _connect_sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _connect(parsed)
        self._writer = self._engine.execution_options(writes=True)
        self._reader = _snapshots(self._engine)
        self._is_current = False

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """Open a transaction that sees one consistent state and writes nothing."""
        with _outages_named(), self._prepared(self._reader).begin() as connection:
            yield Transaction(connection, self._clock(connection))

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """Open a transaction that commits at the end of the block, or changes nothing when it raises."""
        with _outages_named(), self._prepared(self._writer).begin() as connection:
            tx = Transaction(connection, self._clock(connection))
            yield tx
            tx.write_counts()

    def look(self) -> tuple[str, str | None, float]:
        """Tell the server's name and version, its schema (None: empty) and its time, without changing anything.

        Raises `StoreUnavailable`.
        """
        with _outages_named(), self._engine.connect() as connection:
            found = schema.found_revision(connection)
            version = ".".join(str(part) for part in connection.dialect.server_version_info or ())
            return f"{connection.dialect.name} {version}", found, self._clock(connection)

    @property
    def announces(self) -> bool:
        """Whether it can tell those who listen that something has happened."""
        return self._engine.dialect.name == "postgresql"

    @property
    def driver_error(self) -> type[Exception]:
        """What the driver itself raises, on a connection that was lent."""
        error: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        return error

    def lend_connection(self) -> Any:
        """Open a connection of the driver, in autocommit, outside the pool; the borrower closes it."""
        dialect = self._engine.dialect
        positional, named = dialect.create_connect_args(self._engine.url)
        return dialect.connect(*positional, **named, **_PATIENCE, autocommit=True)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _prepared(self, engine: sa.Engine) -> sa.Engine:
        """Bring the schema up to date unless this process has seen it so; any number of processes may at once."""
        if not self._is_current:
            if not schema.is_current(self._engine):
                with self._writer.begin() as connection:
                    if connection.dialect.name == "postgresql":
                        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SETUP_LOCK)))
                    schema.upgrade(connection)
            self._is_current = True
        return engine


# PostgreSQL refuses NaN in JSON, so SQLite does too.
_json = functools.partial(json.dumps, allow_nan=False)


def _connect(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() != "postgresql":
        raise ValueError(
            f"the database is {url.get_backend_name()!r}, but only sqlite and postgresql are supported; "
            "set DREAMSERVE_DATABASE_URL to sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
        )
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        engine = sa.create_engine(
            url,
            json_serializer=_json,
            pool_pre_ping=True,
            pool_size=5,
            max_overflow=15,
            pool_timeout=10,
            connect_args=_PATIENCE,
        )
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the database is PostgreSQL, whose driver is not installed ({error}); install dreamserve[postgres]"
        ) from error

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        for statement in _SESSION:
            connection.execute(statement)
        connection.commit()

    return engine


def _connect_sqlite(url: sa.URL) -> sa.Engine:
    if url.database in (None, "", ":memory:"):
        raise ValueError(
            "the SQLite database needs a file, because threads and processes share it: sqlite:///FILE"
        )
    assert url.database is not None
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(
            "database", f"cannot make the folder of {url.database}: {error.strerror}"
        ) from error
    engine = sa.create_engine(
        url, json_serializer=_json, connect_args={"timeout": 30}, pool_size=5, max_overflow=59
    )

    @sa.event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # the driver must not begin transactions by itself
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A write takes its lock at once: one that reads first and locks later can fail halfway.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _snapshots(engine: sa.Engine) -> sa.Engine:
    """Let all statements of a transaction see one moment, as SQLite does by itself."""
    return (
        engine
        if engine.dialect.name == "sqlite"
        else engine.execution_options(isolation_level="REPEATABLE READ")
    )


@contextmanager
def _outages_named() -> Iterator[None]:
    """Turn what a driver raises during an outage into `StoreUnavailable`; let mistakes of ours pass."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError):
        raise
    except DBAPIError as error:
        told = str(error.orig).strip().partition("\n")[0]
        raise StoreUnavailable("database", told, _advice(told)) from error
    except PoolTimeoutError as error:
        raise StoreUnavailable("database", "all connections are in use") from error


def _advice(told: str) -> str:
    """Say what to do about words of PostgreSQL's driver, which gives no code for a connection that it was refused."""
    match = next((part for part in _ADVICE if part in told), None)
    return "" if match is None else f"{_ADVICE[match]} DREAMSERVE_DATABASE_URL"

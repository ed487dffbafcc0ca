"""What keeps workers from starting: told by them and by who starts them, so that /readyz can say why there are none.

A process that cannot start is gone when somebody asks; what it told stays until a worker has started, or `KEPT_S`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import sqlalchemy as sa

from service.jobs import tables

if TYPE_CHECKING:
    from service.jobs.database import Transaction

__all__ = ["KEPT_S", "Source", "Trouble", "forget", "known", "note", "told"]

Source = Literal["worker", "pool"]

KEPT_S: Final = 3_600.0
"""A pool that tries again tells its trouble anew each minute or so; what is older was given up."""
MOST_CHARACTERS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is the matter, and what to do about it."""

    source: str
    """Who has told it."""
    detail: str
    at: float
    """When it was told last, by the database's clock."""


def note(tx: Transaction, source: Source, detail: str) -> None:
    """Remember what is the matter; it replaces what this source has told before. Anybody can read it."""
    # PostgreSQL takes no zero byte, and UTF-8 no half of a pair.
    plain = detail.replace("\0", "").encode("utf-8", "replace").decode()
    values = {"source": source, "detail": plain[:MOST_CHARACTERS], "at": tx.now}
    tx.upsert(tables.troubles, "source", values)


def forget(tx: Transaction) -> None:
    """Forget all: a worker has started. What is still the matter will be told again."""
    tx.execute(sa.delete(tables.troubles))


def told(tx: Transaction) -> list[Trouble]:
    """Tell what was noted."""
    columns = tables.troubles.c
    noted = sa.select(tables.troubles).where(columns.at > tx.now - KEPT_S).order_by(columns.source)
    return [Trouble(row.source, row.detail, row.at) for row in tx.execute(noted)]


def known(tx: Transaction) -> list[Trouble]:
    """Tell what was noted, and otherwise that nobody starts workers, where none lives and no pool runs."""
    found = told(tx)
    if not found and not _is_tended(tx):
        detail = (
            "no worker lives, and no pool runs that would start one. Start it with `dreamserve pool` on a node of the "
            "Ray cluster, or a worker with `dreamserve worker`; if it was started, its log says why it ended"
        )
        found.append(Trouble("pool", detail, tx.now))
    return found


def _is_tended(tx: Transaction) -> bool:
    """Whether a worker lives, or a pool that starts some when they are wanted."""
    workers, leaders = tables.workers.c, tables.leaders.c
    lives = sa.exists().where(workers.expires_at > tx.now)
    leads = sa.exists().where(leaders.lease_until > tx.now)
    return bool(tx.execute(sa.select(sa.or_(lives, leads))).scalar_one())

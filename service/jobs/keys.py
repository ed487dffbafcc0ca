"""KeyStore: the API keys, and what their owners may have.

A key is 256 random bits, shown once. Only its SHA-256 is kept: that is enough to know it again, and, since nobody can
guess 256 bits, as safe as a slow hash is for a password that somebody chose. Several keys may have one owner, say
while one replaces another; what the owner may have is then the most that any of its keys allows.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple, get_args

import sqlalchemy as sa
from pydantic import Field, StringConstraints
from ulid import ULID

from service.jobs import tables
from service.jobs.documents import rfc3339
from service.jobs.knobs import Part

if TYPE_CHECKING:
    from service.jobs.database import Database, Transaction
    from service.jobs.documents import Document, Row

__all__ = ["SCOPES", "Holder", "KeyStore", "NewKey", "Quotas", "Scope"]

Scope = Literal["read", "submit", "admin"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

_PREFIX: Final = "ds_"
_TOKEN: Final = re.compile(_PREFIX + "[A-Za-z0-9_-]{43}")
_USE_NOTED_EVERY_S: Final = 60.0

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,99}$")]


def _without_uniqueness(schema: dict[str, Any]) -> None:
    del schema["uniqueItems"]


class Quotas(Part):
    """What the jobs of an owner may use; null: no bound."""

    max_queued: int | None = Field(None, ge=0, le=10**9, description="Jobs queued at a time.")
    max_running: int | None = Field(None, ge=0, le=10**9, description="Jobs running at a time.")
    max_worker_s_per_day: float | None = Field(
        None, ge=0, description="Worker seconds that its jobs may hold a day (UTC)."
    )


class NewKey(Part):
    """What a key is made from; `name` is enough."""

    name: Name = Field(description="Tells people which key it is.")
    owner: Name | None = Field(None, description="Whose jobs it sees and makes; default: the name.")
    scopes: frozenset[Scope] = Field(
        frozenset({"read", "submit"}),
        strict=False,
        min_length=1,
        # A scope that is said twice counts once, as ever in a set.
        json_schema_extra=_without_uniqueness,
        description="read: look. submit: make, change, cancel. admin: keys. None of them implies another.",
    )
    quotas: Quotas = Quotas()
    weight: float = Field(
        1.0, gt=0, le=1_000, description="Its owner's share of the workers, beside those of others."
    )


class Holder(NamedTuple):
    """Who showed a key that is valid."""

    owner: str
    scopes: frozenset[Scope]


class KeyStore:
    """The keys in one database. Methods raise `StoreUnavailable` when it does not answer."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, new: NewKey) -> tuple[Document, str]:
        """Make a key: its document, and the key itself, which nobody can read again."""
        token = _PREFIX + secrets.token_urlsafe(32)
        with self._database.writing() as tx:
            row = {
                "id": f"key_{ULID.from_timestamp(tx.now)}",
                "name": new.name,
                "owner": new.owner or new.name,
                "scopes": sorted(new.scopes, key=SCOPES.index),
                "sha256": _sha256(token),
                "created_at": tx.now,
                "weight": new.weight,
                **new.quotas.model_dump(),
            }
            tx.execute(sa.insert(tables.api_keys).values(row))
            _grant_to_owner(tx, row["owner"])
            return _document(_find(tx, row["id"])), token

    def list_keys(self) -> list[Document]:
        """List all keys, revoked ones too, the oldest first."""
        with self._database.reading() as tx:
            rows = tx.execute(sa.select(tables.api_keys).order_by(tables.api_keys.c.id))
            return [_document(row) for row in rows]

    def revoke(self, key_id: str) -> Document | None:
        """End a key at once; harmless to repeat. Returns its document, None when it never existed."""
        columns = tables.api_keys.c
        with self._database.writing() as tx:
            tx.execute(
                sa.update(tables.api_keys)
                .where(columns.id == key_id, columns.revoked_at.is_(None))
                .values(revoked_at=tx.now)
            )
            row = _find(tx, key_id)
            if row is None:
                return None
            _grant_to_owner(tx, row.owner)
            return _document(row)

    def authenticate(self, token: str) -> Holder | None:
        """Tell whose key this is; None when it is no key, or revoked."""
        if not _TOKEN.fullmatch(token):
            return None
        digest, columns = _sha256(token), tables.api_keys.c
        with self._database.reading() as tx:
            row = tx.execute(sa.select(tables.api_keys).where(columns.sha256 == digest)).one_or_none()
            now = tx.now
        # The look-up goes by the hash, of which nobody can choose a part; the comparison takes the same time always.
        if row is None or not hmac.compare_digest(row.sha256, digest) or row.revoked_at is not None:
            return None
        if row.last_used_at is None or now - row.last_used_at >= _USE_NOTED_EVERY_S:
            with self._database.writing() as tx:
                tx.execute(sa.update(tables.api_keys).where(columns.id == row.id).values(last_used_at=tx.now))
        return Holder(row.owner, frozenset(row.scopes))

    def is_empty(self) -> bool:
        """Tell whether no key is valid, so that nobody can call."""
        columns = tables.api_keys.c
        with self._database.reading() as tx:
            valid = tx.execute(sa.select(columns.id).where(columns.revoked_at.is_(None)).limit(1))
            return valid.one_or_none() is None


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _find(tx: Transaction, key_id: str) -> Row | None:
    return tx.execute(sa.select(tables.api_keys).where(tables.api_keys.c.id == key_id)).one_or_none()


def _grant_to_owner(tx: Transaction, owner: str) -> None:
    """Give an owner the most that its valid keys allow; without any, its queued jobs keep to what there was."""
    columns = tables.api_keys.c
    valid = sa.select(tables.api_keys).where(columns.owner == owner, columns.revoked_at.is_(None))
    keys = tx.execute(valid).all()
    if not keys:
        return
    bounds: dict[str, Any] = {name: [getattr(key, name) for key in keys] for name in Quotas.model_fields}
    most = {name: None if None in values else max(values) for name, values in bounds.items()}
    tx.upsert(tables.owners, "owner", {"owner": owner, "weight": max(key.weight for key in keys), **most})


def _document(row: Row | None) -> Document:
    assert row is not None
    times = {name: getattr(row, name) for name in ("created_at", "revoked_at", "last_used_at")}
    return {
        "id": row.id,
        "name": row.name,
        "owner": row.owner,
        "scopes": row.scopes,
        "quotas": {name: getattr(row, name) for name in Quotas.model_fields},
        "weight": row.weight,
        **{name: None if at is None else rfc3339(at) for name, at in times.items()},
    }

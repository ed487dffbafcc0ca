"""The tables, portable between SQLite and PostgreSQL.

Times are seconds since 1970 by the database's clock. Tables are made by `create_all` when a store opens
(there are no migrations yet); `Database` guards that against several processes starting at once.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = [
    "LOCAL_OWNER",
    "artifacts",
    "attempts",
    "capabilities",
    "checkpoints",
    "events",
    "idempotency_keys",
    "jobs",
    "metadata",
    "scores",
    "tallies",
    "workers",
]

metadata = sa.MetaData()

LOCAL_OWNER = "local"
"""Whose everything is where authentication is off."""

_ID = sa.String(40)
_NAME = sa.String(200)
_TIME = sa.Double

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    # Whose job it is (see `keys.py`): a job of another owner does not exist for a caller.
    sa.Column("owner", _NAME, nullable=False, default=LOCAL_OWNER),
    sa.Column("retry_of", _ID),
    sa.Column("batch_id", _ID),
    sa.Column("batch_number", sa.Integer),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    sa.Column("priority", sa.SmallInteger, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("not_before", _TIME, nullable=False),
    sa.Column("deadline_at", _TIME, nullable=False),
    sa.Column("started_at", _TIME),
    sa.Column("ended_at", _TIME),
    sa.Column("max_attempts", sa.Integer, nullable=False),
    # The lease. `attempt` grows at every claim and is the fence of every write.
    sa.Column("attempt", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.Column("worker", _NAME),
    sa.Column("lease_until", _TIME),
    sa.Column("cancel_requested", sa.Boolean, nullable=False, default=False),
    # Progress. `max_step` is the furthest step of any attempt: what lies below it is redone.
    sa.Column("stage", sa.String(16)),
    sa.Column("stage_since", _TIME),
    sa.Column("step", sa.Integer, nullable=False, default=0),
    sa.Column("max_step", sa.Integer, nullable=False, default=0),
    sa.Column("steps_total", sa.Integer, nullable=False, default=0),
    sa.Column("steps_per_s", sa.Double),
    sa.Column("progress_at", _TIME),
    sa.Column("progress_events", sa.Integer, nullable=False, default=0),
    sa.Column("last_event", sa.Integer, nullable=False, default=0),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON(none_as_null=True)),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Index("jobs_by_turn", "state", "priority", "id"),
    sa.Index("jobs_by_lease", "state", "lease_until"),
    sa.Index("jobs_by_deadline", "state", "deadline_at"),
    sa.Index("jobs_by_end", "state", "ended_at"),
    sa.Index("jobs_by_method", "method", "id"),
)

attempts = sa.Table(
    "attempts",
    metadata,
    sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("worker", _NAME, nullable=False),
    sa.Column("started_at", _TIME, nullable=False),
    sa.Column("ended_at", _TIME),
    sa.Column("outcome", sa.String(16)),
    sa.Column("resumed_from_step", sa.Integer),
    sa.Column("worker_s", sa.Double, nullable=False, default=0.0),
)

checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("key", _NAME, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("step", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
)

scores = sa.Table(
    "scores",
    metadata,
    sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("step", sa.Integer, primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("reward", _NAME),
    sa.Column("reward_score", sa.Double),
    sa.Column("referee", _NAME),
    sa.Column("referee_score", sa.Double),
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)

artifacts = sa.Table(
    "artifacts",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), nullable=False, index=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("content_type", sa.String(100), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("key", _NAME, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("expires_at", _TIME, nullable=False),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("key", sa.String(256), primary_key=True),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("job_id", _ID, sa.ForeignKey("jobs.id"), nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
)

capabilities = sa.Table(
    "capabilities",
    metadata,
    sa.Column("worker", _NAME, primary_key=True),
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("expires_at", _TIME, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("name", _NAME, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("busy_slots", sa.Integer, nullable=False),
    sa.Column("seen_at", _TIME, nullable=False),
    sa.Column("expires_at", _TIME, nullable=False),
)

# Counters and histograms, added to in the transaction of the fact they count. A name is spread over a few
# shards, so that writers seldom wait for each other.
tallies = sa.Table(
    "tallies",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("labels", sa.String(200), primary_key=True),
    sa.Column("shard", sa.SmallInteger, primary_key=True),
    sa.Column("value", sa.Double, nullable=False),
)

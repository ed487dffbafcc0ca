"""The tables, portable between SQLite and PostgreSQL.

Times are seconds since 1970 by the database's clock. After a change here write its migration with
`python -m service.jobs.migrations MESSAGE` (before the first release: `--fresh`); `Database` runs it when it opens.
"""

from __future__ import annotations

import sqlalchemy as sa

__all__ = [
    "LOCAL_OWNER",
    "api_keys",
    "artifacts",
    "attempts",
    "batch_events",
    "batch_items",
    "batches",
    "capabilities",
    "checkpoints",
    "erased_jobs",
    "events",
    "idempotency_keys",
    "jobs",
    "leaders",
    "metadata",
    "owners",
    "scores",
    "tallies",
    "troubles",
    "turns",
    "usage",
    "webhook_endpoints",
    "webhook_messages",
    "webhook_tries",
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
    # Not to be claimed now: its batch is paused.
    sa.Column("held", sa.Boolean, nullable=False, default=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("method", sa.String(32), nullable=False),
    # Who goes first among the jobs of one owner: the smallest (see `shares.py`).
    sa.Column("turn_at", _TIME, nullable=False),
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
    sa.Column("keep_partial", sa.Boolean, nullable=False, default=False),
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
    # Which candidates a person wants kept (see `choosing.py`); null: those that the result names.
    sa.Column("choice", sa.JSON(none_as_null=True)),
    sa.Column("error", sa.JSON(none_as_null=True)),
    sa.Index("jobs_by_turn", "state", "held", "owner", "turn_at", "id"),
    sa.Index("jobs_by_lease", "state", "lease_until"),
    sa.Index("jobs_by_deadline", "state", "deadline_at"),
    sa.Index("jobs_by_end", "state", "ended_at"),
    # For lists, newest first: each filter has an index that ends in the order.
    sa.Index("jobs_by_owner", "owner", "id"),
    sa.Index("jobs_by_state", "owner", "state", "id"),
    sa.Index("jobs_by_method", "owner", "method", "id"),
    sa.Index("jobs_by_batch", "batch_id", "id"),
    sa.Index("jobs_by_batch_state", "batch_id", "state", "id"),
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
    # Whose it is, kept or not; null: the whole job's.
    sa.Column("candidate", sa.Integer),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("content_type", sa.String(100), nullable=False),
    sa.Column("size_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("key", _NAME, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("expires_at", _TIME, nullable=False),
    # When its object was deleted, some time after it expired.
    sa.Column("removed_at", _TIME),
    sa.Index("artifacts_by_end", "removed_at", "expires_at"),
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", _NAME, primary_key=True),
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

# What keeps workers from starting (see `troubles.py`): of each who tells, the last.
troubles = sa.Table(
    "troubles",
    metadata,
    sa.Column("source", sa.String(16), primary_key=True),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("at", _TIME, nullable=False),
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

# Webhooks (see `outbox.py`). No foreign keys: an endpoint or a job that is deleted while a job ends must not
# make its end fail; a message without an endpoint is never sent, and forgotten in time.
webhook_endpoints = sa.Table(
    "webhook_endpoints",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("owner", _NAME, nullable=False, index=True),
    # Null: the owner's default endpoint, which signs what goes to the URLs that single jobs name.
    sa.Column("url", sa.Text),
    sa.Column("event_types", sa.JSON, nullable=False),
    # In the clear, because signing needs it: whoever reads this database could write the messages anyway.
    sa.Column("secret", sa.String(100), nullable=False),
    # Earlier secrets that still sign: [{"secret", "until" (seconds)}], the newest first.
    sa.Column("previous_secrets", sa.JSON, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("failing_since", _TIME),
    sa.Column("disabled_at", _TIME),
    sa.Column("disabled_reason", sa.Text),
    sa.Column("idempotency_key", sa.String(256)),
    sa.Column("body_hash", sa.String(64)),
    sa.UniqueConstraint("owner", "idempotency_key"),
)

webhook_messages = sa.Table(
    "webhook_messages",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("endpoint_id", _ID, nullable=False),
    # Null: the endpoint's.
    sa.Column("url", sa.Text),
    # What happened: `subject` is a job or a batch, `number` its event; null in a test message.
    sa.Column("subject", _ID),
    sa.Column("number", sa.Integer),
    sa.Column("type", sa.String(32), nullable=False),
    # The very bytes that are signed and sent, the same at every try; ASCII.
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("next_try_at", _TIME, nullable=False),
    sa.Column("leased_until", _TIME),
    # `tries` grows at every claim and is the fence of what is written about a try; `failures` counts those since
    # the message was last wanted, and is the place in the schedule.
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Column("failures", sa.Integer, nullable=False, default=0),
    sa.UniqueConstraint("endpoint_id", "subject", "number"),
    sa.Index("webhook_messages_by_turn", "state", "next_try_at"),
    sa.Index("webhook_messages_by_endpoint", "endpoint_id", "id"),
    sa.Index("webhook_messages_by_subject", "subject"),
)

webhook_tries = sa.Table(
    "webhook_tries",
    metadata,
    sa.Column("message_id", _ID, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("duration_s", sa.Double, nullable=False),
    sa.Column("status", sa.SmallInteger),
    sa.Column("error", sa.Text),
    sa.Column("answer", sa.Text, nullable=False),
)

# A batch and its lines (see `batch_items.py`). Two more states than the API shows: `uploading` while its lines
# still arrive, and `discarded` when they were refused and are being erased.
batches = sa.Table(
    "batches",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("owner", _NAME, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", _TIME, nullable=False),
    # When a line last arrived, or was last made into a job: batches take turns by it.
    sa.Column("touched_at", _TIME, nullable=False),
    sa.Column("paused_at", _TIME),
    sa.Column("ended_at", _TIME),
    sa.Column("max_parallel", sa.Integer),
    sa.Column("defaults", sa.JSON, nullable=False),
    sa.Column("sweep", sa.JSON, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    # The first problems of invalid lines, for the document; each item has its own.
    sa.Column("problems", sa.JSON, nullable=False),
    sa.Column("idempotency_key", sa.String(256)),
    sa.Column("body_hash", sa.String(64)),
    # The counts when it ended, or last told as progress: so an ended batch is read without counting its items.
    sa.Column("counts", sa.JSON(none_as_null=True)),
    sa.Column("progress_at", _TIME),
    sa.Column("progress_events", sa.Integer, nullable=False, default=0),
    sa.Column("last_event", sa.Integer, nullable=False, default=0),
    sa.UniqueConstraint("owner", "idempotency_key"),
    sa.Index("batches_by_state", "state", "touched_at"),
    sa.Index("batches_by_owner", "owner", "id"),
)

batch_items = sa.Table(
    "batch_items",
    metadata,
    sa.Column("batch_id", _ID, sa.ForeignKey("batches.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("line", sa.Integer, nullable=False),
    sa.Column("custom_id", sa.String(128)),
    sa.Column("sweep", sa.JSON, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    # The complete job, until it is made; a retry brings it back from the job that failed.
    sa.Column("spec", sa.JSON(none_as_null=True)),
    sa.Column("warnings", sa.JSON, nullable=False),
    sa.Column("problems", sa.JSON, nullable=False),
    # The newest try.
    sa.Column("job_id", _ID),
    sa.Column("tries", sa.Integer, nullable=False, default=0),
    sa.Index("batch_items_by_state", "batch_id", "state", "number"),
)

batch_events = sa.Table(
    "batch_events",
    metadata,
    sa.Column("batch_id", _ID, sa.ForeignKey("batches.id"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("at", _TIME, nullable=False),
    sa.Column("data", sa.JSON, nullable=False),
)

# What is left of an erased job (see `erasing.py`): whose objects may have to be deleted still, and how it ended.
erased_jobs = sa.Table(
    "erased_jobs",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("owner", _NAME, nullable=False),
    sa.Column("outcome", sa.String(32), nullable=False),
    sa.Column("ended_at", _TIME, nullable=False),
    sa.Column("erased_at", _TIME, nullable=False),
    sa.Column("objects_gone_at", _TIME),
    sa.Index("erased_jobs_by_end", "ended_at"),
    sa.Index("erased_jobs_by_objects", "objects_gone_at"),
)

# Whose turn it is: of several processes with the same periodic work, one does it each time.
turns = sa.Table(
    "turns",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("next_at", _TIME, nullable=False),
)

# Who acts: of several processes with the same task, the holder does it (see `leadership.py`).
leaders = sa.Table(
    "leaders",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("holder", _NAME, nullable=False),
    sa.Column("lease_until", _TIME, nullable=False),
)

# Who may call (see `keys.py`). Of a key only the hash is kept.
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", _ID, primary_key=True),
    sa.Column("name", _NAME, nullable=False),
    sa.Column("owner", _NAME, nullable=False, index=True),
    sa.Column("scopes", sa.JSON, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, unique=True),
    sa.Column("created_at", _TIME, nullable=False),
    sa.Column("revoked_at", _TIME),
    sa.Column("last_used_at", _TIME),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("max_queued", sa.Integer),
    sa.Column("max_running", sa.Integer),
    sa.Column("max_worker_s_per_day", sa.Double),
)

# What each owner may have, taken from its keys, and what it has had (see `shares.py`).
owners = sa.Table(
    "owners",
    metadata,
    sa.Column("owner", _NAME, primary_key=True),
    # Worker seconds had, each divided by the weight of its time; lifted when the owner returns.
    sa.Column("served_s", sa.Double, nullable=False, default=0.0),
    sa.Column("weight", sa.Double, nullable=False, default=1.0),
    sa.Column("max_queued", sa.Integer),
    sa.Column("max_running", sa.Integer),
    sa.Column("max_worker_s_per_day", sa.Double),
)

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("owner", _NAME, primary_key=True),
    # Days since 1970-01-01, UTC.
    sa.Column("day", sa.Integer, primary_key=True),
    sa.Column("worker_s", sa.Double, nullable=False),
)

"""A job's budget of worker seconds, `limits.max_gpu_s`: what all its attempts together may hold workers for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import tables

if TYPE_CHECKING:
    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = ["overdrawn"]


def overdrawn(tx: Transaction, row: Row) -> str | None:
    """Say how a job's attempts have used up its budget; None when they have not, or when it has none."""
    budget_s = row.spec["limits"].get("max_gpu_s")
    if budget_s is None:
        return None
    columns = tables.attempts.c
    total = sa.select(sa.func.sum(columns.worker_s)).where(columns.job_id == row.id)
    used_s = float(tx.execute(total).scalar_one() or 0.0)
    if used_s < budget_s:
        return None
    return (
        f"its attempts have held workers for {used_s:.1f} s, and limits.max_gpu_s allows {budget_s:g} s; "
        "submit it again with a larger budget or fewer steps"
    )

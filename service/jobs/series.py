"""Two scores of a job at each of its checkpoints: by the reward that steers it, and by its referee.

When the first goes up while the second goes down, the job fools its reward ("reward hacking").
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import events, tables
from service.jobs.events import EventType
from service.jobs.states import ACTIVE

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Document, Row

__all__ = ["Divergence", "ScorePoint", "divergences", "keep", "read"]

RECENT_S = 3_600.0
"""Ended jobs count in the divergence for so long: else a quiet service would show none."""


@dataclass(frozen=True, slots=True)
class ScorePoint:
    """What was said of one checkpoint: name and score of the steering reward and of the referee, if there are."""

    step: int
    reward: tuple[str, float] | None
    referee: tuple[str, float] | None

    def document(self) -> Document:
        """Write it as JSON, for the job's document and its events."""
        return {"step": self.step, "reward": _score(self.reward), "referee": _score(self.referee)}


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far recent jobs of one reward and one referee have come apart."""

    reward: str
    referee: str
    ratio: float
    """Mean over jobs: of the checkpoints that the reward finds worse than the newest, the share that the referee
    finds better. 0: they agree; 1/2: they have nothing to do with each other; 1: the job fools its reward."""


def _score(named: tuple[str, float] | None) -> Document | None:
    return None if named is None else {"name": named[0], "score": named[1]}


def keep(tx: Transaction, row: Row, points: Iterable[ScorePoint]) -> None:
    """Add to a job's series what its running attempt tells, and tell it as events.

    A step that is done again, after a resumption, replaces what was said of it and of later ones.
    """
    columns = tables.scores.c
    for point in points:
        place = {"job_id": row.id, "step": point.step, "attempt": row.attempt}
        same = (columns[name] == value for name, value in place.items())
        if tx.execute(sa.select(columns.step).where(*same)).one_or_none() is not None:
            continue  # the same report again, after an answer that got lost
        tx.execute(sa.delete(tables.scores).where(columns.job_id == row.id, columns.step >= point.step))
        reward, reward_score = point.reward or (None, None)
        referee, referee_score = point.referee or (None, None)
        values = {"reward": reward, "reward_score": reward_score}
        values |= {"referee": referee, "referee_score": referee_score}
        tx.execute(sa.insert(tables.scores).values(**place, **values))
        events.append(tx, row.id, EventType.SCORE, point.document())


def read(tx: Transaction, job_ids: Sequence[str]) -> defaultdict[str, list[Document]]:
    """Read the series of some jobs, in the order of their steps."""
    series: defaultdict[str, list[Document]] = defaultdict(list)
    if not job_ids:
        return series
    columns = tables.scores.c
    query = sa.select(tables.scores).where(columns.job_id.in_(job_ids)).order_by(columns.step)
    for row in tx.execute(query):
        reward = None if row.reward is None else (row.reward, row.reward_score)
        referee = None if row.referee is None else (row.referee, row.referee_score)
        series[row.job_id].append(ScorePoint(row.step, reward, referee).document())
    return series


def divergences(tx: Transaction) -> list[Divergence]:
    """Compare the two series of each job that runs, or has ended within `RECENT_S`."""
    jobs, kept = tables.jobs.c, tables.scores.c
    newest = (
        sa.select(kept.job_id, sa.func.max(kept.step).label("step"))
        .join_from(tables.scores, tables.jobs)
        .where(jobs.state.in_(sorted(ACTIVE)) | (jobs.ended_at >= tx.now - RECENT_S))
        .where(kept.reward.is_not(None), kept.referee.is_not(None))
        .group_by(kept.job_id)
        .subquery()
    )
    now, before = tables.scores.alias(), tables.scores.alias()
    of_the_same = (before.c.job_id == now.c.job_id) & (before.c.step < now.c.step)
    fell = sa.case((before.c.referee_score > now.c.referee_score, 1.0), else_=0.0)
    per_job = (
        sa.select(now.c.reward, now.c.referee, sa.func.avg(fell).label("ratio"))
        .join_from(now, newest, (now.c.job_id == newest.c.job_id) & (now.c.step == newest.c.step))
        .join(before, of_the_same & (before.c.reward_score < now.c.reward_score))
        .group_by(now.c.job_id, now.c.reward, now.c.referee)
        .subquery()
    )
    names = (per_job.c.reward, per_job.c.referee)
    query = sa.select(*names, sa.func.avg(per_job.c.ratio).label("ratio")).group_by(*names).order_by(*names)
    return [Divergence(row.reward, row.referee, float(row.ratio)) for row in tx.execute(query)]

"""A person overrules the reward: which candidates of a job that has succeeded are kept.

Every candidate's files are there as long as the job's, so that a choice moves no bytes: it is one column of the job's
row, beside the result, in which the reward's choice stays as it was published. Another choice takes its place; the
events of the job tell of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from service.jobs import events, tables
from service.jobs.documents import rfc3339
from service.jobs.errors import ArtifactsExpired, FieldProblem, NothingToChoose, Refused
from service.jobs.events import EventType
from service.jobs.states import JobState
from service.jobs.transitions import update

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.database import Transaction
    from service.jobs.documents import Row

__all__ = ["keep"]


def keep(tx: Transaction, row: Row, candidates: Sequence[int]) -> None:
    """Keep these candidates of a locked job and no others, the first of them foremost; harmless to repeat.

    Raises `NothingToChoose`, `Refused` (an index that no object has), `ArtifactsExpired`.
    """
    if row.state != JobState.SUCCEEDED:
        raise NothingToChoose(
            "job-not-succeeded",
            f"{row.id} is {row.state}, and a choice is made among the results of a success",
        )
    made = row.result["candidates"]
    if not made:
        raise NothingToChoose("no-candidates", f"{row.id} has made no object to choose")
    _check(tx, row, candidates, len(made))
    if row.choice is None or row.choice["candidates"] != list(candidates):
        choice = {"by": "person", "candidates": list(candidates), "at": rfc3339(tx.now)}
        update(tx, row, choice=choice)
        events.append(tx, row.id, EventType.CHOSEN, choice)


def _check(tx: Transaction, row: Row, candidates: Sequence[int], num_made: int) -> None:
    """Raise `Refused` and `ArtifactsExpired` unless each of these candidates has a mesh."""
    columns = tables.artifacts.c
    meshes = sa.select(columns.candidate, columns.expires_at).where(
        columns.job_id == row.id, columns.kind == "glb", columns.candidate.in_(candidates)
    )
    kept_until = {mesh.candidate: mesh.expires_at for mesh in tx.execute(meshes)}
    problems = [
        FieldProblem(
            f"/candidates/{place}",
            f"the job has the candidates 0 to {num_made - 1}, found {index}"
            if index >= num_made
            else f"candidate {index} has become no object",
        )
        for place, index in enumerate(candidates)
        if index not in kept_until
    ]
    if problems:
        raise Refused("invalid-request", problems, "Name candidates whose `files` the job's result lists.")
    if min(kept_until.values()) <= tx.now:
        raise ArtifactsExpired(f"the files of {row.id} were kept until {rfc3339(min(kept_until.values()))}")

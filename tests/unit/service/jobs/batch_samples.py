"""What the tests of batches share: a way from lines to a batch, and one to look at all of its items."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from service.jobs.admission import admit
from service.jobs.batch_input import plan_of
from service.jobs.batch_intake import Intake
from service.jobs.capabilities import embedded_capabilities
from service.settings import Settings
from tests.unit.service.jobs.job_samples import ARTIFACTS, result_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.jobs.batches import BatchStore
    from service.jobs.documents import Document
    from service.jobs.states import Lease
    from service.jobs.store import JobStore

__all__ = ["admit_embedded", "all_results", "batch_of", "drive", "finish", "intake_of", "lines_of"]

admit_embedded = partial(admit, capabilities=embedded_capabilities(), settings=Settings())


def lines_of(count: int, **fields: Any) -> list[dict[str, Any]]:
    """Valid lines named a0, a1, …"""
    return [{"custom_id": f"a{n}", "body": {"prompt": f"a red cube {n}", **fields}} for n in range(count)]


def intake_of(batches: BatchStore, owner: str = "ann", **options: Any) -> Intake:
    return Intake(batches, owner, plan_of(options), admit_embedded)


def batch_of(
    batches: BatchStore,
    lines: Sequence[object],
    *,
    owner: str = "ann",
    key: str | None = None,
    body_hash: str | None = None,
    **options: Any,
) -> Document:
    """Make a batch of lines; its document."""
    intake = intake_of(batches, owner, **options)
    try:
        intake.take_all(lines)
        return intake.accept(key, body_hash)[0]
    finally:
        intake.close()


def drive(batches: BatchStore) -> int:
    """Advance until nothing is due; how many changes that made."""
    total = 0
    while changed := batches.advance():
        total += changed
    return total


def finish(store: JobStore, lease: Lease) -> None:
    store.finish(lease, result_of(lease.attempt), ARTIFACTS)


def all_results(batches: BatchStore, batch_id: str, page: int = 7) -> list[Document]:
    """Every result, by pages."""
    found: list[Document] = []
    after: int | None = -1
    while after is not None:
        answer = batches.results(batch_id, after=after, limit=page)
        assert answer is not None
        items, after = answer
        found += items
    return found

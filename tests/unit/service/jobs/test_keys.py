"""API keys: what is kept of them, who they let in, and what their owners may have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.jobs import tables
from service.jobs.errors import QuotaExceeded
from service.jobs.keys import KeyStore, NewKey
from service.jobs.states import JobState, Stage
from tests.unit.service.jobs.job_samples import claimed, spec_of

if TYPE_CHECKING:
    from service.jobs.store import JobStore
    from tests.unit.service.jobs.job_samples import FakeClock


@pytest.fixture
def keys(store: JobStore) -> KeyStore:
    return KeyStore(store.database)


def new_key(name: str, **fields: Any) -> NewKey:
    return NewKey.model_validate({"name": name, **fields})


def test_a_key_is_known_again_and_only_its_hash_is_kept(store: JobStore, keys: KeyStore) -> None:
    document, token = keys.create(new_key("studio"))
    assert len(token) == len("ds_") + 43  # 256 bits in base64
    assert keys.authenticate(token) == ("studio", {"read", "submit"})
    with store.database.reading() as tx:
        row = tx.execute(sa.select(tables.api_keys)).one()
    assert token[3:] not in str(row)
    assert row.id == document["id"]


def test_two_keys_are_never_alike(keys: KeyStore) -> None:
    assert len({keys.create(new_key("studio"))[1] for _ in range(20)}) == 20


@pytest.mark.parametrize("token", ["", "ds_", "ds_" + "A" * 43, "ds_" + "A" * 44, "\0", "ds_" + "ä" * 43])
def test_what_is_no_key_lets_nobody_in(keys: KeyStore, token: str) -> None:
    keys.create(new_key("studio"))
    assert keys.authenticate(token) is None


def test_a_revoked_key_lets_nobody_in(keys: KeyStore) -> None:
    document, token = keys.create(new_key("studio"))
    other = keys.create(new_key("studio"))[1]
    revoked = keys.revoke(document["id"])
    assert revoked is not None
    assert keys.revoke(document["id"]) == revoked
    assert keys.authenticate(token) is None
    assert keys.authenticate(other) is not None
    assert keys.revoke("key_none") is None


def test_the_last_use_is_noted_at_most_once_a_minute(keys: KeyStore, clock: FakeClock) -> None:
    token = keys.create(new_key("studio"))[1]
    noted = []
    for _ in range(5):
        keys.authenticate(token)
        noted.append(keys.list_keys()[0]["last_used_at"])
        clock.advance(25)
    assert len(set(noted)) == 2
    assert noted[2] == noted[0] != noted[3]


def test_an_owner_may_have_the_most_that_its_valid_keys_allow(store: JobStore, keys: KeyStore) -> None:
    narrow, _ = keys.create(new_key("a", owner="team", quotas={"max_queued": 1, "max_running": 1}))
    wide, _ = keys.create(new_key("b", owner="team", quotas={"max_queued": 2}, weight=3))

    def allowed() -> tuple[Any, ...]:
        with store.database.reading() as tx:
            columns = tables.owners.c
            query = sa.select(columns.weight, columns.max_queued, columns.max_running)
            return tuple(tx.execute(query.where(columns.owner == "team")).one())

    assert allowed() == (3, 2, None)
    keys.revoke(wide["id"])
    assert allowed() == (1, 1, 1)
    keys.revoke(narrow["id"])  # what is queued keeps to what there was
    assert allowed() == (1, 1, 1)


def test_a_quota_on_queued_jobs_refuses_the_next_one(store: JobStore, keys: KeyStore) -> None:
    keys.create(new_key("small", quotas={"max_queued": 2}))
    for _ in range(2):
        store.submit(spec_of(), owner="small")
    with pytest.raises(QuotaExceeded, match="its quota is 2"):
        store.submit(spec_of(), owner="small")
    claimed(store)
    store.submit(spec_of(), owner="small")
    store.submit(spec_of(), owner="other")


def test_a_daily_quota_refuses_until_midnight(store: JobStore, keys: KeyStore, clock: FakeClock) -> None:
    keys.create(new_key("small", quotas={"max_worker_s_per_day": 100}))
    store.submit(spec_of(), owner="small")
    lease = claimed(store)
    for worker_s in (60, 99.5):
        store.report(lease, stage=Stage.COARSE, step=1, steps_total=300, worker_s=worker_s)
        store.submit(spec_of(), owner="small")
    store.report(lease, stage=Stage.COARSE, step=2, steps_total=300, worker_s=101)
    with pytest.raises(QuotaExceeded, match="101 s today") as caught:
        store.submit(spec_of(), owner="small")
    waiting = store.list_jobs(owner="small", status=JobState.QUEUED)[0]
    assert [job["queue"]["reason"] for job in waiting] == ["quota", "quota"]
    assert store.claim("worker-2") is None, "what was queued before the quota was used up waits too"
    clock.advance(caught.value.retry_after_s)
    store.submit(spec_of(), owner="small")
    assert store.claim("worker-2") is not None

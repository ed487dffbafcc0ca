"""The outbox and the endpoints on both databases: one message per event and endpoint, tries, secrets, replay."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from service.jobs import outbox, tables
from service.jobs.database import Database
from service.jobs.erasing import Eraser
from service.jobs.errors import IdempotencyKeyReused, StoreUnavailable
from service.jobs.events import EventType
from service.jobs.events import append as append_event
from service.jobs.objects import open_object_store
from service.jobs.states import FailureCode
from service.jobs.webhook_tries import DISABLE_AFTER_S, JITTER, RETRY_AFTER_S, Answer, Message
from service.jobs.webhooks import MAX_ENDPOINTS, DefaultEndpoint, TooManyEndpoints, WebhookStore
from tests.unit.service.jobs.job_samples import ARTIFACTS, claimed, result_of, spec_of

if TYPE_CHECKING:
    from pathlib import Path

    from service.jobs.store import JobStore
    from tests.unit.service.jobs.job_samples import FakeClock

URL = "https://receiver.example/hook"
OK = Answer(0.1, 200)
BROKEN = Answer(0.1, 500, None, "oops")
OWNER = tables.LOCAL_OWNER


@pytest.fixture
def webhooks(store: JobStore) -> WebhookStore:
    return WebhookStore(store.database)


def messages(store: JobStore) -> list[Any]:
    with store.database.reading() as tx:
        return list(tx.execute(sa.select(tables.webhook_messages).order_by(tables.webhook_messages.c.id)))


def succeed(store: JobStore, **fields: Any) -> str:
    """Run a job to its good end; its id."""
    store.submit(spec_of(**fields))
    lease = claimed(store)
    store.finish(lease, result_of(), ARTIFACTS)
    return lease.job_id


def only(webhooks: WebhookStore, limit: int = 8) -> Message:
    (message,) = webhooks.claim(limit, 60.0)
    return message


# ---- the outbox


def test_each_endpoint_of_the_owner_gets_one_message_per_subscribed_event(
    store: JobStore, webhooks: WebhookStore
) -> None:
    ends = webhooks.create(OWNER, URL)
    starts = webhooks.create(OWNER, URL, ["job.started", "job.succeeded"])
    webhooks.create("somebody else", URL)
    off = webhooks.create(OWNER, URL)
    webhooks.update(off["id"], OWNER, enabled=False)
    job_id = succeed(store, metadata={"order": "66"})
    found = {(row.endpoint_id, row.type) for row in messages(store)}
    assert found == {
        (ends["id"], "job.succeeded"),
        (starts["id"], "job.started"),
        (starts["id"], "job.succeeded"),
    }
    assert len(messages(store)) == 3
    (event,) = [event for event in store.events(job_id) if event["type"] == "job.succeeded"]
    row = next(row for row in messages(store) if row.type == "job.succeeded")
    assert json.loads(row.body) == {
        "type": "job.succeeded",
        "timestamp": event["at"],
        "data": {"job_id": job_id, "batch_id": None, "metadata": {"order": "66"}, "event": event},
    }


@pytest.mark.parametrize("end", ["succeeded", "failed", "canceled"])
def test_the_url_of_a_job_is_told_its_end_and_nothing_else(
    store: JobStore, webhooks: WebhookStore, end: str
) -> None:
    document, _ = store.submit(spec_of(webhook=URL, limits={"max_attempts": 1}))
    if end == "canceled":
        store.cancel(document["id"])
    elif end == "failed":
        store.fail(claimed(store), FailureCode.NAN_DIVERGENCE, "it blew up")
    else:
        store.finish(claimed(store), result_of(), ARTIFACTS)
    (row,) = messages(store)
    assert (row.type, row.url, row.subject) == (f"job.{end}", URL, document["id"])
    message = only(webhooks)
    assert message.secrets == (webhooks.default(OWNER)["secret"],)
    assert message.url == URL


def append_and_crash(store: JobStore, job_id: str) -> None:
    with store.database.writing() as tx:
        append_event(tx, job_id, EventType.SUCCEEDED, {})
        raise RuntimeError("crash")


def test_a_transaction_that_is_rolled_back_or_repeated_leaves_one_message(
    store: JobStore, webhooks: WebhookStore
) -> None:
    webhooks.create(OWNER, URL)
    document, _ = store.submit(spec_of(webhook=URL))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="crash"):
            append_and_crash(store, document["id"])
    assert messages(store) == []
    lease = claimed(store)
    for _ in range(3):  # the worker repeats a call whose answer got lost
        store.finish(lease, result_of(), ARTIFACTS)
    assert len(messages(store)) == 2


def test_the_database_itself_refuses_a_second_message_for_an_event(
    store: JobStore, webhooks: WebhookStore
) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    with store.database.writing() as tx:
        outbox.tell(tx, OWNER, "batch.completed", {"batch_id": "batch_1"}, "batch_1", 7)
    with pytest.raises(sa.exc.IntegrityError), store.database.writing() as tx:
        outbox.tell(tx, OWNER, "batch.completed", {"batch_id": "batch_1"}, "batch_1", 7)
    assert [(row.endpoint_id, row.type) for row in messages(store)] == [(endpoint, "batch.completed")]


def test_two_transactions_that_need_the_default_endpoint_first_share_it(
    store: JobStore, webhooks: WebhookStore
) -> None:
    ids = [store.submit(spec_of(webhook=URL))[0]["id"] for _ in range(6)]
    threads = [threading.Thread(target=store.cancel, args=(job_id,)) for job_id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    endpoint = webhooks.default(OWNER)["id"]
    assert [row.endpoint_id for row in messages(store)] == [endpoint] * 6
    assert webhooks.default("somebody else")["id"] != endpoint


# ---- tries


def test_tries_follow_the_schedule_with_one_id_and_then_give_up(
    store: JobStore, webhooks: WebhookStore, clock: FakeClock
) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    succeed(store)
    ids, bodies = set(), set()
    for pause_s in (*RETRY_AFTER_S, None):
        message = only(webhooks)
        ids.add(message.id)
        bodies.add(message.body)
        webhooks.record(message, BROKEN)
        assert webhooks.claim(8, 60.0) == []
        if pause_s is not None:
            clock.advance(pause_s * 0.999)
            assert webhooks.claim(8, 60.0) == []
            clock.advance(pause_s * (JITTER + 0.002))
    assert (len(ids), len(bodies)) == (1, 1)
    clock.advance(10 * 86_400)
    assert webhooks.claim(8, 60.0) == []
    (delivery,), _ = webhooks.deliveries(endpoint, OWNER) or ([], None)
    assert (delivery["status"], delivery["next_try_at"]) == ("failed", None)
    assert [one["number"] for one in delivery["tries"]] == list(range(1, 9))
    assert delivery["tries"][0] | {"at": ""} == {
        "number": 1,
        "at": "",
        "duration_s": 0.1,
        "status": 500,
        "error": None,
        "answer": "oops",
    }
    assert webhooks.get(endpoint) == webhooks.get(endpoint, OWNER)


def test_pauses_differ_by_chance(store: JobStore, webhooks: WebhookStore) -> None:
    webhooks.create(OWNER, URL)
    for _ in range(6):
        succeed(store)
    while claimed_now := webhooks.claim(8, 60.0):
        for message in claimed_now:
            webhooks.record(message, BROKEN)
    assert len({row.next_try_at for row in messages(store)}) > 1


def test_any_2xx_is_a_success_and_ends_the_tries(
    store: JobStore, webhooks: WebhookStore, clock: FakeClock
) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    succeed(store)
    webhooks.record(only(webhooks), Answer(0.1, 500))
    assert (webhooks.get(endpoint) or {})["failing_since"] is not None
    clock.advance(6)
    webhooks.record(only(webhooks), Answer(0.1, 299))
    (delivery,), _ = webhooks.deliveries(endpoint) or ([], None)
    assert delivery["status"] == "delivered"
    assert (webhooks.get(endpoint) or {})["failing_since"] is None
    clock.advance(100_000)
    assert webhooks.claim(8, 60.0) == []


@pytest.mark.parametrize(
    "answer", [Answer(0.1, 199), Answer(0.1, 302), Answer(10.0, 200, "no whole answer"), BROKEN]
)
def test_anything_else_is_tried_again(store: JobStore, webhooks: WebhookStore, answer: Answer) -> None:
    webhooks.create(OWNER, URL)
    succeed(store)
    webhooks.record(only(webhooks), answer)
    (row,) = messages(store)
    assert (row.state, row.failures) == ("waiting", 1)


def test_a_message_that_is_being_sent_is_nobody_elses_until_its_lease_runs_out(
    store: JobStore, webhooks: WebhookStore, clock: FakeClock
) -> None:
    webhooks.create(OWNER, URL)
    succeed(store)
    first = only(webhooks)
    assert webhooks.claim(8, 60.0) == []
    clock.advance(61)  # the sender is dead, or slow
    second = only(webhooks)
    assert (second.id, second.number) == (first.id, first.number + 1)
    webhooks.record(first, OK)  # the fence
    assert messages(store)[0].state == "waiting"
    webhooks.record(second, OK)
    webhooks.record(second, BROKEN)  # once only
    (row,) = messages(store)
    assert (row.state, row.failures) == ("delivered", 0)


def test_senders_at_the_same_time_claim_every_message_once(store: JobStore, webhooks: WebhookStore) -> None:
    for _ in range(10):
        webhooks.create(OWNER, URL)
    for _ in range(2):
        succeed(store)
    got: list[str] = []

    def send() -> None:
        for _ in range(10):
            got.extend(message.id for message in webhooks.claim(3, 60.0))

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(set(got)) == 20


def test_an_endpoint_with_much_to_send_leaves_room_for_others(
    store: JobStore, webhooks: WebhookStore
) -> None:
    busy = webhooks.create(OWNER, URL, ["job.queued"])
    for _ in range(10):
        store.submit(spec_of())
    other = webhooks.create(OWNER, "https://other.example/", ["job.queued"])
    store.submit(spec_of())
    urls = [message.url for message in webhooks.claim(8, 60.0)]
    assert sorted(urls) == sorted([busy["url"]] * 2 + [other["url"]])


def test_many_urls_of_one_owners_jobs_delay_nobody_else(store: JobStore, webhooks: WebhookStore) -> None:
    for number in range(10):
        job, _ = store.submit(spec_of(webhook=f"https://dead-{number}.example/"))
        store.cancel(job["id"])
    other = webhooks.create("other", "https://other.example/", ["job.queued"])
    store.submit(spec_of(), owner="other")
    urls = [message.url for message in webhooks.claim(8, 60.0)]
    assert len(urls) == 3
    assert other["url"] in urls


def test_410_disables_the_endpoint_and_enabling_sends_what_waits(
    store: JobStore, webhooks: WebhookStore
) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    succeed(store)
    succeed(store)
    gone, waiting = webhooks.claim(8, 60.0)
    webhooks.record(waiting, BROKEN)
    webhooks.record(gone, Answer(0.1, 410))
    document = webhooks.get(endpoint) or {}
    assert (document["enabled"], document["disabled_reason"]) == (False, "the receiver answered 410 Gone")
    succeed(store)  # no message for a disabled endpoint
    assert len(messages(store)) == 2
    webhooks.replay(endpoint, waiting.id)
    assert webhooks.claim(8, 60.0) == []
    assert (webhooks.update(endpoint, enabled=True) or {})["failing_since"] is None
    assert only(webhooks).id == waiting.id


def test_an_endpoint_that_takes_nothing_for_days_is_disabled(
    store: JobStore, webhooks: WebhookStore, clock: FakeClock
) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    give_up(store, webhooks, clock)
    assert (webhooks.get(endpoint) or {})["enabled"]
    clock.advance(DISABLE_AFTER_S)
    give_up(store, webhooks, clock)
    document = webhooks.get(endpoint) or {}
    assert not document["enabled"]
    assert "nothing has arrived for 7." in document["disabled_reason"]


def give_up(store: JobStore, webhooks: WebhookStore, clock: FakeClock) -> None:
    succeed(store)
    for pause_s in (*RETRY_AFTER_S, 0.0):
        webhooks.record(only(webhooks), BROKEN)
        clock.advance(pause_s * (1 + JITTER) + 1)


def test_410_from_a_jobs_url_ends_that_message_only(store: JobStore, webhooks: WebhookStore) -> None:
    succeed(store, webhook=URL)
    webhooks.record(only(webhooks), Answer(0.1, 410))
    assert messages(store)[0].state == "failed"
    succeed(store, webhook="https://other.example/")
    assert only(webhooks).url == "https://other.example/"


def test_outcomes_are_counted(store: JobStore, webhooks: WebhookStore, clock: FakeClock) -> None:
    webhooks.create(OWNER, URL)
    give_up(store, webhooks, clock)
    succeed(store)
    webhooks.record(only(webhooks), OK)
    counted = {
        tally.labels["outcome"]: tally.value
        for tally in store.snapshot().tallies
        if tally.name == "webhook_deliveries"
    }
    assert counted == {"retried": 7, "given_up": 1, "delivered": 1}


# ---- endpoints


def test_a_rotated_secret_still_signs_for_a_day(
    store: JobStore, webhooks: WebhookStore, clock: FakeClock
) -> None:
    made = webhooks.create(OWNER, URL)
    rotated = webhooks.rotate(made["id"], OWNER) or {}
    again = webhooks.rotate(made["id"], OWNER) or {}
    succeed(store)
    message = only(webhooks)
    assert message.secrets == (again["secret"], rotated["secret"], made["secret"])
    webhooks.record(message, BROKEN)
    clock.advance(86_401)
    assert only(webhooks).secrets == (again["secret"],)
    assert "secret" not in (webhooks.get(made["id"]) or {})


def test_secrets_of_endless_rotations_do_not_pile_up(store: JobStore, webhooks: WebhookStore) -> None:
    made = webhooks.create(OWNER, URL)
    for _ in range(20):
        webhooks.rotate(made["id"])
    succeed(store)
    assert len(only(webhooks).secrets) == 5


def test_replay_sends_again_with_the_same_id_and_the_whole_schedule(
    store: JobStore, webhooks: WebhookStore, clock: FakeClock
) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    succeed(store)
    first = only(webhooks)
    webhooks.record(first, OK)
    replayed = webhooks.replay(endpoint, first.id, OWNER) or {}
    assert (replayed["status"], replayed["id"]) == ("waiting", first.id)
    again = only(webhooks)
    assert (again.id, again.number, again.body) == (first.id, 2, first.body)
    assert (
        webhooks.replay(endpoint, first.id, OWNER) is not None
    )  # while it is being sent: not twice at a time
    assert webhooks.claim(8, 60.0) == []
    webhooks.record(again, BROKEN)
    clock.advance(RETRY_AFTER_S[0] * (1 + JITTER))
    webhooks.record(only(webhooks), OK)
    (delivery,), _ = webhooks.deliveries(endpoint) or ([], None)
    assert [one["status"] for one in delivery["tries"]] == [200, 500, 200]


def test_a_changed_url_gets_what_waits(store: JobStore, webhooks: WebhookStore) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    succeed(store)
    changed = webhooks.update(endpoint, OWNER, url="https://new.example/", event_types=["job.failed"]) or {}
    assert (changed["url"], changed["event_types"]) == ("https://new.example/", ["job.failed"])
    assert only(webhooks).url == "https://new.example/"


def test_what_belongs_to_another_owner_does_not_exist(store: JobStore, webhooks: WebhookStore) -> None:
    made = webhooks.create(OWNER, URL)["id"]
    succeed(store)
    message = only(webhooks)
    other = "somebody else"
    assert webhooks.get(made, other) is None
    assert webhooks.update(made, other, url="https://evil.example/") is None
    assert not webhooks.delete(made, other)
    assert webhooks.rotate(made, other) is None
    assert webhooks.test(made, other) is None
    assert webhooks.deliveries(made, other) is None
    assert webhooks.replay(made, message.id, other) is None
    mine = webhooks.create(other, URL)["id"]
    assert webhooks.replay(mine, message.id, other) is None
    assert webhooks.list_endpoints(other)[0] == [webhooks.get(mine)]
    assert (webhooks.get(made) or {})["url"] == URL


def test_a_deleted_endpoint_takes_its_messages_along(store: JobStore, webhooks: WebhookStore) -> None:
    endpoint = webhooks.create(OWNER, URL)["id"]
    succeed(store)
    webhooks.record(only(webhooks), BROKEN)
    succeed(store)
    in_flight = only(webhooks)
    assert webhooks.delete(endpoint, OWNER)
    assert messages(store) == []
    webhooks.record(in_flight, OK)
    assert not webhooks.delete(endpoint, OWNER)
    with store.database.reading() as tx:
        assert tx.execute(sa.select(tables.webhook_tries)).all() == []


def test_an_erased_job_is_not_told_of_any_more(
    store: JobStore, webhooks: WebhookStore, tmp_path: Path
) -> None:
    webhooks.create(OWNER, URL)
    kept, erased = succeed(store), succeed(store)
    assert Eraser(store.database, open_object_store((tmp_path / "objects").as_uri())).forget(erased)
    assert [row.subject for row in messages(store)] == [kept]


def test_the_default_endpoint_is_nobodys_to_change(webhooks: WebhookStore) -> None:
    default = webhooks.default(OWNER)["id"]
    for act in (webhooks.update, webhooks.delete, webhooks.test):
        with pytest.raises(DefaultEndpoint):
            act(default, OWNER)
    assert webhooks.list_endpoints(OWNER) == ([], None)
    assert (webhooks.rotate(default, OWNER) or {})["secret"] == webhooks.default(OWNER)["secret"]


def test_endpoints_are_listed_in_pages_and_bounded(webhooks: WebhookStore, clock: FakeClock) -> None:
    made = []
    for _ in range(MAX_ENDPOINTS):
        clock.advance(1)
        made.append(webhooks.create(OWNER, URL)["id"])
    with pytest.raises(TooManyEndpoints, match="20 webhooks"):
        webhooks.create(OWNER, URL)
    first, cursor = webhooks.list_endpoints(OWNER, limit=15)
    rest, end = webhooks.list_endpoints(OWNER, limit=15, cursor=cursor)
    assert [one["id"] for one in (*first, *rest)] == made[::-1]
    assert end is None


def test_one_idempotency_key_makes_one_endpoint(webhooks: WebhookStore) -> None:
    key = {"idempotency_key": "k", "body_hash": "a" * 64}
    first = webhooks.create(OWNER, URL, **key)
    assert webhooks.create(OWNER, URL, **key) == first
    with pytest.raises(IdempotencyKeyReused):
        webhooks.create(OWNER, URL, idempotency_key="k", body_hash="b" * 64)
    assert webhooks.create("somebody else", URL, **key)["id"] != first["id"]


def test_parallel_requests_with_one_idempotency_key_make_one_endpoint(webhooks: WebhookStore) -> None:
    made: list[str] = []

    def create() -> None:
        made.append(webhooks.create(OWNER, URL, idempotency_key="k", body_hash="a" * 64)["id"])

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(set(made))) == (8, 1)


def test_old_messages_are_forgotten(store: JobStore, webhooks: WebhookStore, clock: FakeClock) -> None:
    webhooks.create(OWNER, URL)
    succeed(store)
    webhooks.record(only(webhooks), OK)
    clock.advance(29 * 86_400)
    succeed(store)
    assert webhooks.forget_old() == 0
    clock.advance(2 * 86_400)
    assert webhooks.forget_old() == 1
    assert len(messages(store)) == 1


def test_an_outage_is_told_as_one() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreUnavailable):
        WebhookStore(database).claim(8, 60.0)
    database.close()

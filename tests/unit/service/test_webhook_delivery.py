"""Delivery from the outbox to real receivers: signatures, deaths between sending and writing, many senders."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from service.jobs.database import Database, database_time
from service.jobs.webhook_signing import new_secret, sign
from service.jobs.webhooks import WebhookStore
from service.webhook_connector import Connector
from service.webhook_delivery import deliver_due
from tests import waiting
from tests.unit.service.jobs.job_samples import spec_of
from tests.unit.service.webhook_receivers import Received, Receiver, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from service.jobs.store import JobStore
    from service.settings import Settings

OWNER = "local"
wait_until = functools.partial(waiting.wait_until, timeout_s=20, every_s=0.05)
SENDER = """
import sys
from service.jobs.database import Database
from service.jobs.webhooks import WebhookStore
from service.webhook_connector import Connector
from service.webhook_delivery import deliver_due

deliver_due(WebhookStore(Database(sys.argv[1])), Connector(allow_private=True))
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def webhooks(store: JobStore) -> WebhookStore:
    return WebhookStore(store.database)


@pytest.fixture
def connector() -> Connector:
    return Connector(allow_private=True)


@pytest.fixture
def webhooks_later(settings: Settings) -> Iterator[Callable[[float], WebhookStore]]:
    """The same webhooks, some seconds later."""
    with contextlib.ExitStack() as ending:

        def later(seconds: float) -> WebhookStore:
            database = Database(settings.database_url, lambda connection: database_time(connection) + seconds)
            ending.callback(database.close)
            return WebhookStore(database)

        yield later


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"webhook_allow_private": True})


def test_the_signature_is_that_of_the_specifications_test_vector() -> None:
    headers = sign(
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
        ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_message_arrives_signed_and_is_written_down(
    webhooks: WebhookStore, connector: Connector, receiver: Receiver
) -> None:
    made = webhooks.create(OWNER, receiver.url)
    sent = webhooks.test(made["id"]) or {}
    assert deliver_due(webhooks, connector) == 1
    (got,) = receiver.received
    assert got.headers["webhook-id"] == sent["id"]
    assert got.headers["content-type"] == "application/json"
    assert abs(int(got.headers["webhook-timestamp"]) - time.time()) < 60
    assert verify(made["secret"], got)
    assert not verify(new_secret(), got)
    assert not verify(made["secret"], got._replace(body=got.body + b" "))
    assert json.loads(got.body) == sent["payload"]
    (delivery,), _ = webhooks.deliveries(made["id"]) or ([], None)
    assert (delivery["status"], delivery["tries"][0]["status"]) == ("delivered", 204)
    assert deliver_due(webhooks, connector) == 0


def test_both_secrets_verify_while_the_old_one_is_valid(
    webhooks: WebhookStore, connector: Connector, receiver: Receiver
) -> None:
    made = webhooks.create(OWNER, receiver.url)
    rotated = webhooks.rotate(made["id"]) or {}
    webhooks.test(made["id"])
    deliver_due(webhooks, connector)
    (got,) = receiver.received
    assert rotated["secret"] != made["secret"]
    assert verify(rotated["secret"], got)
    assert verify(made["secret"], got)


def test_a_receiver_that_hangs_up_or_fails_gets_the_same_message_again(
    webhooks: WebhookStore,
    webhooks_later: Callable[[float], WebhookStore],
    connector: Connector,
    receiver: Receiver,
) -> None:
    made = webhooks.create(OWNER, receiver.url)
    answers = {1: None, 2: 503}
    receiver.status = lambda number: answers.get(number, 200)
    webhooks.test(made["id"])
    for later_s in (0, 10, 1_000):
        assert deliver_due(webhooks_later(later_s), connector) == 1
    assert _ids(receiver.received) == [receiver.received[0].headers["webhook-id"]] * 3
    assert len({got.body for got in receiver.received}) == 1
    assert all(verify(made["secret"], got) for got in receiver.received)
    (delivery,), _ = webhooks.deliveries(made["id"]) or ([], None)
    assert [one["status"] for one in delivery["tries"]] == [None, 503, 200]
    assert delivery["tries"][0]["error"].startswith("the answer is not proper HTTP")


def test_a_sender_that_is_killed_after_sending_loses_nothing_and_the_id_tells_the_repetition(
    settings: Settings,
    webhooks: WebhookStore,
    webhooks_later: Callable[[float], WebhookStore],
    connector: Connector,
    receiver: Receiver,
) -> None:
    made = webhooks.create(OWNER, receiver.url)
    webhooks.test(made["id"])
    arrived = threading.Event()
    may_answer = threading.Event()

    def hold_the_first(number: int) -> int | None:
        if number > 1:
            return 200
        arrived.set()
        may_answer.wait(30)
        return None

    receiver.status = hold_the_first
    sender = subprocess.Popen(
        [sys.executable, "-c", SENDER, settings.database_url], cwd=Path(__file__).parents[3]
    )
    assert arrived.wait(60)
    os.kill(sender.pid, signal.SIGKILL)
    sender.wait()
    may_answer.set()
    assert deliver_due(webhooks, connector) == 0  # the dead one's lease
    assert deliver_due(webhooks_later(61), connector) == 1
    first, second = receiver.received
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    (delivery,), _ = webhooks.deliveries(made["id"]) or ([], None)
    assert delivery["status"] == "delivered"
    assert [one["number"] for one in delivery["tries"]] == [2]


def test_many_senders_send_every_message_once(
    webhooks: WebhookStore, connector: Connector, receiver: Receiver
) -> None:
    made = webhooks.create(OWNER, receiver.url)
    for _ in range(24):
        webhooks.test(made["id"])
    threads = [threading.Thread(target=deliver_due, args=(webhooks, connector)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    deliver_due(webhooks, connector)
    assert len(receiver.received) == len(set(_ids(receiver.received))) == 24


def test_a_mistake_in_sending_is_written_down_and_the_schedule_goes_on(
    webhooks: WebhookStore, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(host: str, port: int, timeout_s: float) -> list[object]:
        raise ZeroDivisionError

    made = webhooks.create(OWNER, receiver.url)
    webhooks.test(made["id"])
    assert deliver_due(webhooks, Connector(allow_private=True, resolve=broken)) == 1  # type: ignore[arg-type]
    (delivery,), _ = webhooks.deliveries(made["id"]) or ([], None)
    assert delivery["tries"][0]["error"] == "the sender failed; the service's log says why"
    assert "ZeroDivisionError" in caplog.text


def test_a_frontend_delivers_by_itself_and_a_jobs_own_webhook_ends_to_end(
    url: str,
    store: JobStore,
    finish: Callable[..., None],
    receiver: Receiver,
) -> None:
    with httpx.Client(base_url=url) as http:
        job = http.post(
            "/generate", json={"prompt": "a red cube", "webhook": receiver.url, "metadata": {"k": "v"}}
        )
        assert job.status_code == 202, job.text
        secret = http.post("/v1/webhooks/default").json()
        lease = store.claim("worker")
        assert lease is not None
        finish(lease)
        wait_until(lambda: bool(receiver.received))
        (got,) = receiver.received
        assert verify(secret["secret"], got)
        payload = json.loads(got.body)
        assert payload["type"] == "job.succeeded"
        assert (payload["data"]["job_id"], payload["data"]["metadata"]) == (job.json()["id"], {"k": "v"})
        log = f"/v1/webhooks/{secret['id']}/deliveries"
        wait_until(lambda: http.get(log).json()["items"][0]["status"] == "delivered")
        message = http.get(log).json()["items"][0]
        assert http.post(f"{log}/{message['id']}/replay").status_code == 202
        wait_until(lambda: len(receiver.received) == 2)
    assert _ids(receiver.received) == [message["id"]] * 2


def test_a_job_that_is_canceled_is_told_too(
    http: httpx.Client, webhooks: WebhookStore, connector: Connector, receiver: Receiver, store: JobStore
) -> None:
    job, _ = store.submit(spec_of(webhook=receiver.url))
    http.post(f"/v1/jobs/{job['id']}/cancel")
    assert deliver_due(webhooks, connector) == 1
    assert json.loads(receiver.received[0].body)["type"] == "job.canceled"


def _ids(received: list[Received]) -> list[str]:
    return [got.headers["webhook-id"] for got in received]

"""The delivery of webhooks: claim what is due, sign it, send it, write down what came of it.

Any number of processes may do this at once. One that dies between sending and writing leaves a lease that runs
out; the message is sent again with the same id, which is what receivers tell repetitions by.
"""

from __future__ import annotations

import functools
import logging
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from service.background import Chore
from service.jobs.webhook_signing import sign
from service.jobs.webhook_tries import Answer
from service.jobs.webhooks import WebhookStore
from service.webhook_connector import TIMEOUT_S, Connector

if TYPE_CHECKING:
    from service.jobs.database import Database
    from service.jobs.webhook_tries import Message
    from service.settings import Settings

__all__ = ["LEASE_S", "chores", "deliver_due"]

logger = logging.getLogger(__name__)

POLL_S: Final = 1.0
FORGET_EVERY_S: Final = 60.0
NUM_AT_ONCE: Final = 8
LEASE_S: Final = 6 * TIMEOUT_S
"""Far more than a sending takes, so that only what a dead process has claimed is sent by another."""
_MAX_ROUNDS = 20


def chores(database: Database, settings: Settings) -> list[Chore]:
    """List what a frontend does for webhooks beside answering."""
    webhooks = WebhookStore(database)
    connector = Connector(allow_private=settings.webhook_allow_private)
    return [
        Chore(functools.partial(deliver_due, webhooks, connector), POLL_S),
        Chore(webhooks.forget_old, FORGET_EVERY_S),
    ]


def deliver_due(webhooks: WebhookStore, connector: Connector) -> int:
    """Send messages that are due, some at a time; how many. Raises `StoreUnavailable`."""
    num_sent = 0
    for _ in range(_MAX_ROUNDS):
        messages = webhooks.claim(NUM_AT_ONCE, LEASE_S)
        if not messages:
            break
        with ThreadPoolExecutor(len(messages)) as senders:
            list(senders.map(functools.partial(_deliver, webhooks, connector), messages))
        num_sent += len(messages)
    return num_sent


def _deliver(webhooks: WebhookStore, connector: Connector, message: Message) -> None:
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"Dreamserve/{version('dreamserve')}",
        **sign(message.id, int(message.at), message.body, message.secrets),
    }
    try:
        answer = connector.post(message.url, headers, message.body)
    except Exception:
        # A mistake of ours: the message goes on along its schedule instead of coming back for ever.
        logger.exception("sending %s failed", message.id)
        answer = Answer(0.0, error="the sender failed; the service's log says why")
    webhooks.record(message, answer)

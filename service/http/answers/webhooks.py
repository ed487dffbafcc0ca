"""Webhooks and what was sent to them, as they are answered."""

from __future__ import annotations

from typing import Any

from service.http.answers.base import Answer, Page, Time
from service.jobs.outbox import MessageState

__all__ = ["Delivery", "DeliveryPage", "Webhook", "WebhookPage", "WebhookWithSecret"]


class Webhook(Answer):
    """A URL that is told of events."""

    id: str
    url: str | None
    """Null: the default one, which signs what goes to the `webhook` URLs of single jobs."""
    event_types: list[str]
    enabled: bool
    disabled_at: Time | None
    disabled_reason: str | None
    failing_since: Time | None
    created_at: Time


class WebhookWithSecret(Webhook):
    """A webhook, and the secret that verifies its messages."""

    secret: str


class WebhookPage(Page[Webhook]):
    """Webhooks, newest first."""


class DeliveryTry(Answer):
    """One try to send a message."""

    number: int
    at: Time
    duration_s: float
    status: int | None
    """HTTP status of the answer, if there was one."""
    error: str | None
    answer: str | None


class Delivery(Answer):
    """A message to a webhook, with every try to send it."""

    id: str
    webhook_id: str
    url: str
    type: str
    payload: dict[str, Any]
    status: MessageState
    created_at: Time
    next_try_at: Time | None
    tries: list[DeliveryTry]


class DeliveryPage(Page[Delivery]):
    """Messages of the last 30 days, newest first."""

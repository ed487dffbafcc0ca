"""Signatures as the Standard Webhooks specification wants them: HMAC-SHA256 over id, time and body.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

import base64
import hmac
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SECRET_PREFIX", "new_secret", "sign"]

SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
_SECRET_BYTES = 32
"""The specification wants 24 to 64."""


def new_secret() -> str:
    """Draw a secret: `whsec_` and base64 of random bytes."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(message_id: str, at: int, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """Build the headers of one sending: `at` in seconds since 1970, and one signature per valid secret."""
    signed = b".".join((message_id.encode(), str(at).encode(), body))
    signatures = [
        hmac.digest(base64.b64decode(key.removeprefix(SECRET_PREFIX)), signed, "sha256") for key in keys
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(one).decode()}" for one in signatures),
    }

"""What keeps a worker from starting, told in the store: its process is gone when somebody asks /readyz why."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from service.jobs.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from service.jobs.store import JobStore
    from service.jobs.troubles import Source

__all__ = ["note_trouble", "public_words", "trouble_noted"]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def trouble_noted(store: JobStore) -> Iterator[None]:
    """Note for /readyz what ends the start of a worker, and raise it on."""
    try:
        yield
    except Exception as error:
        log.error("this worker cannot start: %s", error)
        note_trouble(store, "worker", public_words(error))
        raise


def note_trouble(store: JobStore, source: Source, sentence: str) -> None:
    """Note it for /readyz, unless the database does not answer, which /readyz says by itself."""
    try:
        store.note_trouble(source, sentence)
    except StoreUnavailable as error:
        log.warning("cannot tell what is the matter (%s): %s", sentence, error)


def public_words(error: Exception) -> str:
    """Say what was the matter in words that anybody may read: our own, as those of others may name hosts and users."""
    match error:
        case StoreUnavailable():
            name = "object store" if error.dependency == "objects" else "database"
            return f"the {name} does not answer a worker: {error.advice}"
        case ValueError() | FileNotFoundError():
            return str(error)
        case _:
            return f"a worker could not start ({type(error).__name__}); its log has the rest"

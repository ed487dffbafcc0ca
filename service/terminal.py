"""What all commands of the client share: sentences on stderr, JSON on stdout, and exit codes for what goes wrong."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Final, NoReturn

import typer
from rich.console import Console

from service.client_errors import (
    ApiError,
    ClientError,
    InvalidRequestError,
    NotFoundError,
    UnauthorizedError,
    WaitTimeoutError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["INTERRUPTED", "explained_errors", "print_json", "say", "stderr", "usage"]

INTERRUPTED: Final = 130
EXIT_CODES: Final[tuple[tuple[type[ClientError], int], ...]] = (
    (InvalidRequestError, 2),
    (UnauthorizedError, 3),
    (NotFoundError, 4),
    (WaitTimeoutError, 5),
    (ClientError, 1),
)
"""The first class that fits decides."""


@contextlib.contextmanager
def explained_errors() -> Iterator[None]:
    """Turn what can go wrong into a sentence on stderr and the exit code that scripts rely on."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except ClientError as error:
        say(f"Error: {error}")
        if isinstance(error, ApiError):
            for field in error.errors[1:]:
                say(f"  {field['pointer']}: {field['detail']}")
        if error.request_id:
            say(f"(request {error.request_id})")
        raise typer.Exit(next(code for kind, code in EXIT_CODES if isinstance(error, kind))) from None
    except OSError as error:
        say(f"Error: {error}")
        raise typer.Exit(1) from None


def usage(sentence: str) -> NoReturn:
    """Say what is wrong with the command line, and exit 2."""
    say(f"Error: {sentence}")
    raise typer.Exit(2)


def stderr() -> Console:
    """Open stderr for progress: plain text, whatever a prompt holds."""
    return Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)


def say(sentence: str) -> None:
    """Tell a person something."""
    typer.echo(sentence, err=True)


def print_json(document: dict[str, Any]) -> None:
    """Give a program one document, on a line of its own."""
    # ASCII, so that no prompt can put control characters on a terminal or break a pipe's encoding.
    typer.echo(json.dumps(document))

"""POST to a URL that a stranger chose, without becoming a door into the network that this service runs in.

The name is resolved once, every address that it has must be public (`webhook_targets.py`), and the connection
goes to one of those very addresses, with the name in SNI, certificate check and `Host`. So a name that
resolves to something else a moment later changes nothing. Redirects are not followed, proxies of the
environment are not used, and time and bytes of the answer are bounded.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpcore
import httpx

from service.jobs.webhook_targets import Address, address_problem, url_problem
from service.jobs.webhook_tries import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

__all__ = ["TIMEOUT_S", "Connector", "connect_to", "resolve_name"]

TIMEOUT_S: Final = 10.0
"""For all of it: resolving, connecting, sending, and reading the whole answer."""
MAX_ANSWER_BYTES: Final = 64 * 1024
KEPT_BYTES: Final = 1024
_READ_BYTES = 16 * 1024
_MAX_ERROR = 300

Resolve: TypeAlias = "Callable[[str, int, float], list[Address]]"
Connect: TypeAlias = "Callable[[Address, int, float], socket.socket]"


def resolve_name(host: str, port: int, timeout_s: float) -> list[Address]:
    """List all addresses of a name. Raises `OSError`, as a `TimeoutError` when the resolver takes too long."""
    found: list[Address] = []
    failed: list[OSError] = []

    def ask() -> None:
        try:
            answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.extend(ipaddress.ip_address(answer[4][0]) for answer in answers)
        except (OSError, UnicodeError) as error:
            failed.append(error if isinstance(error, OSError) else OSError(str(error)))

    # In a thread of its own, since a resolver cannot be told when to give up.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(timeout_s)
    if asking.is_alive():
        raise TimeoutError
    if failed:
        raise failed[0]
    return list(dict.fromkeys(found))


def connect_to(address: Address, port: int, timeout_s: float) -> socket.socket:
    """Open a TCP connection to an address, which no resolver is asked about."""
    return socket.create_connection((str(address), port), timeout_s)


class TargetRefused(Exception):
    """A URL or an address that no webhook may be sent to."""


class Connector:
    """Sends webhooks from this process; may be used by several threads at once."""

    def __init__(
        self,
        *,
        allow_private: bool = False,
        trust: ssl.SSLContext | None = None,
        timeout_s: float = TIMEOUT_S,
        resolve: Resolve = resolve_name,
        connect: Connect = connect_to,
    ) -> None:
        """Prepare to send. `trust`: by default certifi's authorities, or those of SSL_CERT_FILE."""
        self._allow_private = allow_private
        self._trust = trust or httpx.create_ssl_context()
        self._timeout_s = timeout_s
        self._resolve = resolve
        self._connect = connect

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send `body` and tell what came of it; whatever the other side does becomes an `Answer`."""
        began = time.monotonic()
        try:
            status, text = self._exchange(url, headers, body, began + self._timeout_s)
        except (OSError, httpcore.ProtocolError, TargetRefused) as error:
            return Answer(time.monotonic() - began, error=self._said(error))
        redirect = "a redirect, which is not followed" if 300 <= status < 400 else None
        return Answer(time.monotonic() - began, status, redirect, text)

    def _exchange(self, url: str, headers: Mapping[str, str], body: bytes, until: float) -> tuple[int, str]:
        problem = url_problem(url, allow_private=self._allow_private)
        if problem is not None:
            raise TargetRefused(problem)
        target = httpcore.URL(url)
        backend = _CheckedBackend(self._checked_connection, target.scheme == b"http", until)
        received = bytearray()
        with (
            httpcore.HTTPConnection(
                target.origin, ssl_context=self._trust, network_backend=backend
            ) as connection,
            connection.stream("POST", target, headers=list(headers.items()), content=body) as answer,
        ):
            for block in answer.iter_stream():
                received += block
                if len(received) >= MAX_ANSWER_BYTES:
                    break
        return answer.status, received[:KEPT_BYTES].decode("utf-8", "replace").replace("\0", "�")

    def _checked_connection(self, host: str, port: int, plain: bool, until: float) -> socket.socket:
        """Connect to an address of `host`, after all of its addresses have been found fit."""
        addresses = self._resolve(host, port, _left(until))
        for address in addresses:
            problem = address_problem(address, allow_private=self._allow_private, plain=plain)
            if problem is not None:
                # Which address is not said: an inner name's would tell a stranger about the inner network.
                raise TargetRefused("the host has an address that webhooks may not be sent to")
        failure = OSError("the host has no address")
        for index, address in enumerate(addresses):
            try:
                return self._connect(address, port, _left(until) / (len(addresses) - index))
            except OSError as error:
                failure = error
        raise failure

    def _said(self, error: Exception) -> str:
        """Say what went wrong to the owner of the webhook."""
        match error:
            case TargetRefused():
                return f"refused: {error}"
            case TimeoutError():
                return f"no whole answer within {self._timeout_s:g} s"
            case ssl.SSLCertVerificationError():
                return f"the certificate is not trusted: {error.verify_message}"
            case ssl.SSLError():
                return f"no TLS connection: {error.reason or error}"
            case socket.gaierror():
                return "the host's name does not resolve"
            case OSError():
                return f"the connection failed: {error.strerror or error}"
            case _:
                return f"the answer is not proper HTTP: {error}"[:_MAX_ERROR]


class _CheckedBackend(httpcore.NetworkBackend):
    """Gives httpcore connections that were checked, and that end in time."""

    def __init__(
        self, open_: Callable[[str, int, bool, float], socket.socket], plain: bool, until: float
    ) -> None:
        self._open, self._plain, self._until = open_, plain, until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, check and connect; httpcore's own timeouts are not used."""
        host = host.removeprefix("[").removesuffix("]")
        return _Stream(self._open(host, port, self._plain, self._until), self._until)


class _Stream(httpcore.NetworkStream):
    """A socket all of whose operations together end at one time, however slowly the other side drips."""

    def __init__(self, connection: socket.socket, until: float) -> None:
        self._socket, self._until = connection, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._socket.settimeout(_left(self._until))
        return self._socket.recv(min(max_bytes, _READ_BYTES))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        while buffer:
            self._socket.settimeout(_left(self._until))
            buffer = buffer[self._socket.send(buffer) :]

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        self._socket.settimeout(_left(self._until))
        try:
            return _Stream(
                ssl_context.wrap_socket(self._socket, server_hostname=server_hostname), self._until
            )
        except BaseException:
            self._socket.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        return None


def _left(until: float) -> float:
    """Count the seconds that are left; raises `TimeoutError` when none are."""
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s

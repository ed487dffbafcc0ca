"""The connector against real servers: names that resolve badly, answers that never end, certificates, redirects."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from service.webhook_connector import MAX_ANSWER_BYTES, Connector, connect_to, resolve_name
from tests.unit.service.webhook_receivers import Certificate, Receiver, make_certificate, raw_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from service.jobs.webhook_targets import Address

PUBLIC = ipaddress.ip_address("93.184.216.34")
LOOPBACK = ipaddress.ip_address("127.0.0.1")
NAME = "receiver.example"
BAD = ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "240.0.0.1", "0.0.0.0"]
BAD += ["::1", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]


@pytest.fixture
def certificate(tmp_path: Path) -> Certificate:
    return make_certificate(tmp_path, NAME)


@pytest.fixture
def receiver(certificate: Certificate) -> Iterator[Receiver]:
    with Receiver(certificate.server) as receiver:
        yield receiver


class Network:
    """What a resolver answers, time after time, and where connections to public addresses really go."""

    def __init__(self, *answers: list[Address]) -> None:
        self.answers = list(answers) or [[PUBLIC]]
        self.asked: list[str] = []
        self.connected: list[Address] = []

    def resolve(self, host: str, port: int, timeout_s: float) -> list[Address]:
        self.asked.append(host)
        return self.answers[min(len(self.asked), len(self.answers)) - 1]

    def connect(self, address: Address, port: int, timeout_s: float) -> socket.socket:
        self.connected.append(address)
        return connect_to(LOOPBACK, port, timeout_s)


def connector(network: Network, certificate: Certificate | None = None, **options: Any) -> Connector:
    trust = None if certificate is None else certificate.client
    return Connector(resolve=network.resolve, connect=network.connect, trust=trust, **options)


def test_a_message_arrives_whole_with_the_name_in_sni_and_host(
    receiver: Receiver, certificate: Certificate
) -> None:
    network = Network()
    receiver.body = b"thank you"
    url = f"https://{NAME}:{receiver.port}/hook?a=b"
    answer = connector(network, certificate).post(url, {"webhook-id": "msg_1"}, b'{"a": 1}')
    assert (answer.status, answer.error, answer.text, answer.delivered) == (200 + 4, None, "", True)
    (got,) = receiver.received
    assert (got.path, got.body, got.headers["webhook-id"]) == ("/hook?a=b", b'{"a": 1}', "msg_1")
    assert got.headers["host"] == f"{NAME}:{receiver.port}"
    assert receiver.names == [NAME]
    assert network.connected == [PUBLIC]


def test_the_beginning_of_the_answer_is_kept(receiver: Receiver, certificate: Certificate) -> None:
    receiver.status = lambda _number: 500
    receiver.body = b"\0\xff" + b"x" * 5_000
    answer = connector(Network(), certificate).post(f"https://{NAME}:{receiver.port}/", {}, b"")
    assert (answer.status, answer.delivered) == (500, False)
    assert answer.text == "��" + "x" * 1_022


def test_a_name_that_resolves_elsewhere_a_moment_later_changes_nothing(
    receiver: Receiver, certificate: Certificate
) -> None:
    network = Network([PUBLIC], [LOOPBACK])
    sender = connector(network, certificate)
    url = f"https://{NAME}:{receiver.port}/"
    assert sender.post(url, {}, b"").delivered
    assert (network.asked, network.connected) == (
        [NAME],
        [PUBLIC],
    )  # asked once, and connected to what it said
    refused = sender.post(url, {}, b"")
    assert refused.error is not None
    assert refused.error.startswith("refused: ")
    assert len(receiver.received) == 1
    assert network.connected == [PUBLIC]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_one_bad_address_among_good_ones_refuses_the_name_before_any_connection(
    bad: str, first: bool
) -> None:
    address = ipaddress.ip_address(bad)
    network = Network([address, PUBLIC] if first else [PUBLIC, address])
    answer = connector(network).post(f"https://{NAME}/", {}, b"")
    assert answer.error == "refused: the host has an address that webhooks may not be sent to"
    assert network.connected == []


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1:{port}/", "http://receiver.example:{port}/", "http://127.0.0.1:{port}/"]
)
def test_a_url_that_was_stored_under_other_settings_is_refused_when_sent(
    receiver: Receiver, url: str
) -> None:
    answer = Connector().post(url.format(port=receiver.port), {}, b"")
    assert answer.error is not None
    assert answer.error.startswith("refused: ")
    assert receiver.received == []


def test_a_redirect_to_loopback_is_not_followed(receiver: Receiver, certificate: Certificate) -> None:
    with Receiver() as inner:
        receiver.status, receiver.location = lambda _number: 307, inner.url
        answer = connector(Network(), certificate).post(f"https://{NAME}:{receiver.port}/", {}, b"")
        assert (answer.status, answer.delivered) == (307, False)
        assert "redirect" in (answer.error or "")
        assert inner.received == []


def test_a_proxy_of_the_environment_is_not_used(
    receiver: Receiver, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver() as proxy:
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert connector(Network(), certificate).post(f"https://{NAME}:{receiver.port}/", {}, b"").delivered
        assert proxy.received == []


def test_a_certificate_of_another_name_or_authority_is_not_trusted(
    receiver: Receiver, certificate: Certificate
) -> None:
    other = connector(Network(), certificate).post(f"https://other.example:{receiver.port}/", {}, b"")
    assert "certificate is not trusted" in (other.error or "")
    unknown = connector(Network()).post(f"https://{NAME}:{receiver.port}/", {}, b"")
    assert "certificate is not trusted" in (unknown.error or "")
    assert receiver.received == []


def drip(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def drip_body(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def say_nothing(connection: socket.socket) -> None:
    connection.recv(1)


@pytest.mark.parametrize("behave", [drip, drip_body, say_nothing])
def test_an_answer_that_drips_or_never_comes_ends_in_time(behave: Callable[[socket.socket], None]) -> None:
    with raw_server(behave) as port:
        began = time.monotonic()
        sender = Connector(allow_private=True, timeout_s=0.4)
        answer = sender.post(f"http://127.0.0.1:{port}/", {}, b"")
        assert answer.error == "no whole answer within 0.4 s"
        assert 0.3 < answer.duration_s <= time.monotonic() - began < 2


def test_a_tls_handshake_that_never_comes_ends_in_time() -> None:
    with raw_server(say_nothing) as port:
        answer = Connector(allow_private=True, timeout_s=0.4).post(f"https://127.0.0.1:{port}/", {}, b"")
        assert answer.error == "no whole answer within 0.4 s"


def test_a_receiver_that_does_not_read_ends_in_time() -> None:
    with raw_server(lambda connection: time.sleep(1.5)) as port:
        answer = Connector(allow_private=True, timeout_s=0.4).post(
            f"http://127.0.0.1:{port}/", {}, b"x" * 50_000_000
        )
        assert answer.error == "no whole answer within 0.4 s"


def test_no_more_than_a_bound_is_read_of_a_giant_answer() -> None:
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            sent.append(connection.send(b"x" * 65_536))

    with raw_server(flood) as port:
        answer = Connector(allow_private=True).post(f"http://127.0.0.1:{port}/", {}, b"")
        assert (answer.status, answer.delivered, len(answer.text)) == (200, True, 1024)
    # Beyond what was read, only what lay in the sockets' buffers has left the server.
    assert sum(sent) < MAX_ANSWER_BYTES + 16 * 2**20


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "not proper HTTP"),
        (b"", "not proper HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "not proper HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "not proper HTTP"),
    ],
)
def test_what_is_no_whole_http_answer_is_an_error(said: bytes, error: str) -> None:
    with raw_server(lambda connection: connection.sendall(said)) as port:
        answer = Connector(allow_private=True).post(f"http://127.0.0.1:{port}/", {}, b"")
        assert error in (answer.error or "")
        assert not answer.delivered


def test_a_closed_port_and_an_unknown_name_are_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    answer = Connector(allow_private=True).post(f"https://127.0.0.1:{port}/", {}, b"")
    assert "Connection refused" in (answer.error or "")

    def fail(host: str, port: int, timeout_s: float) -> list[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    assert (
        Connector(resolve=fail).post("https://nowhere.example/", {}, b"").error
        == "the host's name does not resolve"
    )


def test_the_next_address_is_tried_when_one_does_not_answer(
    receiver: Receiver, certificate: Certificate
) -> None:
    other = ipaddress.ip_address("2606:4700:4700::1111")
    network = Network([other, PUBLIC])

    def connect(address: Address, port: int, timeout_s: float) -> socket.socket:
        if address == other:
            raise OSError("no route")
        return network.connect(address, port, timeout_s)

    sender = Connector(resolve=network.resolve, connect=connect, trust=certificate.client)
    assert sender.post(f"https://{NAME}:{receiver.port}/", {}, b"").delivered


def test_a_literal_of_ipv6_is_connected_to_and_verified(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "2606:4700:4700::1111")
    with Receiver(certificate.server) as receiver:
        network = Network([ipaddress.ip_address("2606:4700:4700::1111")])
        url = f"https://[2606:4700:4700::1111]:{receiver.port}/"
        assert connector(network, certificate).post(url, {}, b"").error is None
        assert network.asked == ["2606:4700:4700::1111"]


def test_the_systems_resolver_is_asked_with_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert LOOPBACK in resolve_name("127.0.0.1", 443, 5.0)
    answer = threading.Event()

    def late(*_arguments: object, **_options: object) -> list[object]:
        answer.wait(30)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", late)
    with pytest.raises(TimeoutError):
        resolve_name("slow.example", 443, 0.1)
    answer.set()

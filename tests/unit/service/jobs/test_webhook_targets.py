"""Where webhooks may point, address class by address class."""

from __future__ import annotations

import ipaddress

import pytest

from service.jobs.webhook_targets import address_problem, url_problem

REFUSED = {
    "loopback": "127.0.0.1",
    "loopback, another": "127.255.255.254",
    "unspecified": "0.0.0.0",
    "this network": "0.1.2.3",
    "private 10": "10.1.2.3",
    "private 172": "172.31.255.255",
    "private 192": "192.168.0.1",
    "carrier NAT": "100.64.0.1",
    "link-local, cloud metadata": "169.254.169.254",
    "Azure's wire server": "168.63.129.16",
    "protocol assignments": "192.0.0.8",
    "documentation": "203.0.113.7",
    "benchmark": "198.19.0.1",
    "6to4 relay": "192.88.99.1",
    "multicast": "224.0.0.251",
    "multicast, of an organization": "239.1.2.3",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "v6 loopback": "::1",
    "v6 unspecified": "::",
    "v6 unique local": "fd00:ec2::254",
    "v6 link-local": "fe80::1",
    "v6 site-local": "fec0::1",
    "v6 multicast": "ff02::1",
    "v4-mapped private": "::ffff:10.0.0.1",
    "v4-mapped public": "::ffff:8.8.8.8",
    "v4-compatible": "::7f00:1",
    "NAT64": "64:ff9b::7f00:1",
    "NAT64, local": "64:ff9b:1::7f00:1",
    "6to4": "2002:7f00:1::",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "v6 documentation": "2001:db8::1",
    "v6 documentation, new": "3fff::1",
    "discard": "100::1",
    "segment routing": "5f00::1",
}


@pytest.mark.parametrize("address", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_public_is_refused_as_address_and_in_a_url(address: str) -> None:
    assert address_problem(ipaddress.ip_address(address)) is not None
    host = f"[{address}]" if ":" in address else address
    assert url_problem(f"https://{host}/hook") is not None


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700:4700::1111", "2a00:1450::1"]
)
def test_public_addresses_are_taken(address: str) -> None:
    assert address_problem(ipaddress.ip_address(address)) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com",
        "https://example.com:8443/a/b?c=d",
        "https://xn--bcher-kva.example/hook",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]/",
        "HTTPS://EXAMPLE.COM./",
        "https://a_b.example.com/%F0%9F%A7%8A",
    ],
)
def test_urls_of_the_internet_are_taken(url: str) -> None:
    assert url_problem(url) is None


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/", "https://"),
        ("ftp://example.com/", "https://"),
        ("//example.com/", "https://"),
        ("example.com", "https://"),
        ("https:///hook", "neither a name"),
        ("https://user@example.com/", "user"),
        ("https://user:word@example.com/", "user"),
        ("https://example.com\\@127.0.0.1/", "user"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com:0/", "port"),
        ("https://example.com:99999/", "URL"),
        ("https://example.com:x/", "URL"),
        ("https://[::1", "URL"),
        ("https://exa mple.com/", "visible ASCII"),
        ("https://example.com/\r\nX: y", "visible ASCII"),
        ("https://bücher.example/", "punycode"),
        ("https://localhost/", "this machine"),
        ("https://a.localhost./", "this machine"),
        ("https://127.1/", "neither a name"),
        ("https://2130706433/", "neither a name"),
        ("https://0x7f.0.0.1/", "neither a name"),
        ("https://0177.0.0.1/", "neither a name"),
        ("https://example.123/", "neither a name"),
        ("https://a..example/", "neither a name"),
        ("https://-a.example/", "neither a name"),
        (f"https://{'a' * 64}.example/", "neither a name"),
        ("https://example.com/" + "a" * 2_048, "2,048"),
    ],
)
def test_other_urls_are_refused_with_the_reason(url: str, why: str) -> None:
    problem = url_problem(url)
    assert problem is not None
    assert why in problem


def test_operators_may_allow_their_intranet_and_plain_http_to_loopback_only() -> None:
    for url in (
        "https://10.0.0.1/",
        "https://localhost/",
        "http://127.0.0.1:80/",
        "http://[::1]/",
        "http://localhost/",
    ):
        assert url_problem(url, allow_private=True) is None, url
    for url in (
        "http://10.0.0.1/",
        "http://example.com/",
        "http://8.8.8.8/",
        "https://224.0.0.1/",
        "https://0.0.0.0/",
    ):
        assert url_problem(url, allow_private=True) is not None, url

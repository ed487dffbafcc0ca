"""Where a webhook may point: the rules for URLs, told when one is given, and for addresses, held when one is called.

A name is resolved only when it is called (`service/webhook_connector.py`), because what it resolves to can
change at any time.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

__all__ = ["MAX_URL", "URL_PATTERN", "Address", "address_problem", "url_problem"]

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2_048
URL_PATTERN = (
    r"^https://([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}(:[1-9][0-9]{0,3})?"
    r'([/?][!"$-\[\]-~]*)?$'
)
"""For schemas: the URLs that nobody refuses. Some others are taken too: public IP addresses, names of one label."""
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*\.?")
_ENDS_IN_NUMBER = re.compile(r"(^|\.)(\d+|0[xX][0-9A-Fa-f]*)\.?$")
"""What resolvers may read as an IPv4 address: 127.1, 0x7f.0.0.1, 2130706433. Source: WHATWG URL, host parsing."""

_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is given out as global unicast; mapped IPv4, NAT64, local and multicast lie outside it."""
# Source of the networks: IANA's special-purpose address registries. `ipaddress` knows most of them, but which
# depends on the release of Python.
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by carriers' NAT
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; clouds answer with credentials here
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "168.63.129.16/32",  # Azure's wire server: an inner service at a public address
        "2001::/23",  # protocol assignments, Teredo among them: it carries an IPv4 address
        "2001:db8::/32",
        "2002::/16",  # 6to4: carries an IPv4 address
        "3fff::/20",  # documentation
    )
)


def url_problem(url: str, *, allow_private: bool = False) -> str | None:
    """Say why no webhook may have this URL, as far as the URL itself tells; None if nothing speaks against it.

    `allow_private` (the operator's setting) also allows private addresses, and http to loopback.
    """
    if len(url) > MAX_URL:
        return f"found {len(url)} characters, but a URL may have {MAX_URL:,} at most"
    if not re.fullmatch(r"[!-~]+", url):
        return "a URL has visible ASCII characters only: write names in punycode (xn--…) and paths percent-encoded"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f"this is not a URL: {error}"
    if parts.scheme != "https" and not (parts.scheme == "http" and allow_private):
        return "expected a URL that begins with https://"
    if "@" in parts.netloc or "\\" in url:
        return "a URL with a user, a password or a backslash is refused: receivers know us by the signature"
    if parts.fragment or "#" in url:
        return "a URL with a fragment (#…) is refused: it would not be sent"
    if port == 0:
        return "port 0 does not exist"
    return _host_problem(parts, allow_private)


def _host_problem(parts: SplitResult, allow_private: bool) -> str | None:
    host = parts.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if len(host) > 253 or not _HOST_NAME.fullmatch(host) or _ENDS_IN_NUMBER.search(host):
            return f"the host {host[:60]!r} is neither a name nor a proper IP address"
        local = host.rstrip(".").rpartition(".")[2] == "localhost"
        if local and not allow_private:
            return f"the host {host!r} is this machine itself; a webhook must be reachable from the internet"
        if parts.scheme == "http" and not local:
            return "http is for loopback only; expected a URL that begins with https://"
        return None
    return address_problem(address, allow_private=allow_private, plain=parts.scheme == "http")


def address_problem(address: Address, *, allow_private: bool = False, plain: bool = False) -> str | None:
    """Say why no webhook may be sent to an address; None if it may. `plain`: without TLS."""
    if plain and not address.is_loopback:
        return f"http is for loopback only, and {address} is another machine; use https"
    if not allow_private and not _public(address):
        return f"{address} is not a public address"
    if address.is_multicast or address.is_unspecified:
        return f"{address} is not the address of one machine"
    return None


def _public(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address not in _PUBLIC_V6:
        return False
    return address.is_global and not any(
        address.version == network.version and address in network for network in _REFUSED
    )

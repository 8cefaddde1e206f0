"""Host names: whether one is this machine, and the name in a Host header."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def address_named(host: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address in `host`, mapped IPv4 as IPv4; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def is_loopback(host: str) -> bool:
    """Report whether only this machine can reach a server that listens on `host`."""
    address = address_named(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_this_machine(host: str) -> bool:
    """Report whether `host` is this machine, without a name lookup on another machine."""
    name = host.lower().rstrip(".")
    address = address_named(name)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return name == "localhost" or name.endswith(".localhost")


def host_name(header: str) -> str:
    """Return the name or address in `NAME`, `NAME:PORT` or `[ADDRESS]:PORT`, in lower case."""
    name = header.rsplit("]", 1)[0].lstrip("[") if header.startswith("[") else header.split(":")[0]
    return name.lower().rstrip(".")

"""Names of hosts: which are this machine, and which name a Host header holds."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address


def address_named(host: str) -> IPv4Address | IPv6Address | None:
    """The IP address that `host` writes, an IPv4 one within IPv6 as such; None for a name."""
    try:
        address = ip_address(host)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`."""
    address = address_named(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def is_this_machine(host: str) -> bool:
    """Whether a client that connects to `host` reaches this machine by itself, without asking
    another for what a name means."""
    name = host.lower().rstrip(".")
    address = address_named(name)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return name == "localhost" or name.endswith(".localhost")


def host_name(header: str) -> str:
    """The name or address in `NAME`, `NAME:PORT` or `[ADDRESS]:PORT`, in lower case."""
    name = header.rsplit("]", 1)[0].lstrip("[") if header.startswith("[") else header.split(":")[0]
    return name.lower().rstrip(".")

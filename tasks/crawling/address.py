"""Connections that go nowhere private, whatever a name resolves to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import httpcore

from llm.errors import LoamError

Resolver = Callable[[str, int], Awaitable[list[str]]]
_NAT64 = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are an IPv4 address


class PrivateAddressError(LoamError):
    """A host resolves to an address that is not of the public Internet."""


def is_public(address: str) -> bool:
    """Whether `address` is a public unicast address, and so is one embedded in it.

    Private, loopback, link-local, shared, reserved and multicast ranges (the IANA special-purpose
    registries) are not; IPv4 inside IPv6 (mapped, 6to4, NAT64) is judged as the IPv4 it is.
    """
    ip = _embedded(ip_address(address))
    if ip.is_multicast or ip.is_reserved or not ip.is_global:
        return False
    return not (isinstance(ip, IPv6Address) and ip.is_site_local)


async def resolve(host: str, port: int) -> list[str]:
    """Every address of `host`, in the system's order of preference."""
    infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(info[4][0]) for info in infos))


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a host, checks every address, and connects to what it checked.

    One resolution serves both the check and the connection, so a name server that answers
    differently the second time (DNS rebinding) gains nothing. TLS still verifies the host's name.
    """

    def __init__(self, allowed: Collection[str], resolver: Resolver = resolve) -> None:
        self._allowed = frozenset(entry.lower() for entry in allowed)
        self._resolve = resolver
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} does not resolve: {error}") from error
        for address in addresses:
            self._check(host, port, address)
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)

    def _check(self, host: str, port: int, address: str) -> None:
        names = {host, f"{host}:{port}", f"[{host}]:{port}", address, f"{address}:{port}"}
        if not is_public(address) and not names & self._allowed:
            raise PrivateAddressError(
                f"{host} is at {address}, which is no public address; "
                f"to fetch it all the same, add '{host}:{port}' to allow_private"
            )


def _embedded(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(ip, IPv4Address):
        return ip
    if ip in _NAT64:
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or ip

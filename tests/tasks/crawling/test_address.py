from __future__ import annotations

import asyncio

import httpcore
import pytest

from tasks.crawling.address import GuardedBackend, PrivateAddressError, is_public
from tests.tasks.crawling.site import Answer, Store, outcomes_of, page, quick_config, serving

# One of each range in the IANA special-purpose address registries, and the doors around them.
PRIVATE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.2.1", "192.168.1.1", "198.18.0.1",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
    "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "2002:a00:1::1", "fc00::1", "fd12::1",
    "fe80::1", "fec0::1", "ff02::1",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "192.167.0.1", "11.0.0.1",
    "2606:4700:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_special_purpose_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_other_addresses_are_public(address):
    assert is_public(address)


@pytest.fixture
def connected(monkeypatch) -> list[str]:
    """The addresses that were connected to; no connection is made."""
    addresses: list[str] = []

    async def connect_tcp(self, host, port, *_):
        addresses.append(host)
        raise httpcore.ConnectError("not in this test")

    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect_tcp)
    return addresses


def connect(answers: list[list[str]], allowed: tuple[str, ...] = ()) -> None:
    """Connects to a host that resolves to the next of `answers` each time it is asked for."""
    turns = iter(answers)

    async def resolver(host: str, port: int) -> list[str]:
        return next(turns)

    asyncio.run(GuardedBackend(allowed, resolver).connect_tcp("host.example", 80))


def test_the_address_that_was_checked_is_the_one_connected_to(connected):
    with pytest.raises(httpcore.ConnectError):
        connect([["8.8.8.8", "1.1.1.1"], ["127.0.0.1"]])
    assert connected == ["8.8.8.8", "1.1.1.1"]


def test_one_private_address_among_public_ones_refuses_the_host(connected):
    with pytest.raises(PrivateAddressError, match=r"host\.example is at 10\.0\.0\.1"):
        connect([["8.8.8.8", "10.0.0.1"]])
    assert connected == []


@pytest.mark.parametrize("entry", ["host.example", "HOST.example:80", "10.0.0.1", "10.0.0.1:80"])
def test_a_private_host_may_be_allowed_by_name_address_or_port(connected, entry):
    with pytest.raises(httpcore.ConnectError):
        connect([["10.0.0.1"]], (entry,))
    assert connected == ["10.0.0.1"]


@pytest.mark.parametrize("entry", ["host.example:81", "10.0.0.1:8080", "example"])
def test_what_is_allowed_is_no_more_than_was_said(connected, entry):
    with pytest.raises(PrivateAddressError):
        connect([["10.0.0.1"]], (entry,))


def test_a_redirect_to_a_private_address_is_refused_like_a_link(tmp_path):
    with serving({"/secret": page()}) as inner:
        away = Answer(b"", 302, {"Location": f"{inner.url}/secret"})
        with serving({"/": away, "/robots.txt": Answer(b"", 404)}) as outer:
            config = quick_config(outer, allow=(outer.host, inner.host))
            result = Store(tmp_path).crawl(config)
            assert set(outcomes_of(result, outer).values()) == {"error:private_address"}
        assert inner.requests == []


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f.1", "017700000001", "127.1"])
def test_other_spellings_of_loopback_are_refused_too(tmp_path, spelling):
    with serving({"/": page()}) as site:
        seed = f"http://{spelling}:{site.server_port}/"
        config = quick_config(site, seeds=(seed,), allow_private=())
        assert Store(tmp_path).crawl(config).counts == {"error:private_address": 1}
        assert site.requests == []

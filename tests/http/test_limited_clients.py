"""Which client a request is charged to: its token's, or an address that it cannot choose.

Rates are so low that nothing accrues during a test.
"""

from pathlib import Path
from typing import Final

import pytest

from chat_service.service import Service
from tests.conftest import StartService
from tests.support import access
from tests.support.client_limits import BOB, EVE, FIVE, PROXIED, connected, each_way, is_left, of
from tests.support.raw import Wire, get, request


@pytest.mark.settings(**FIVE)
@each_way
async def test_a_forged_address_gets_no_bucket_of_its_own(way: bytes, service: Service) -> None:
    wire = Wire(service.port)
    answers = [
        await wire.ask(get(b"/chat/nobody", way, of(f"198.51.100.{number}"))) for number in range(6)
    ]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    await wire.close()


@pytest.mark.settings(**PROXIED, **FIVE)
@each_way
async def test_addresses_left_of_the_proxys_are_ignored(way: bytes, service: Service) -> None:
    wire = Wire(service.port)
    heads = [
        *(of(f"203.0.113.{number}, 198.51.100.7") for number in range(3)),
        b"Forwarded: for=198.51.100.7",
        b'Forwarded: for=203.0.113.9, for="198.51.100.7:99"',
        of("198.51.100.7") + b"\r\nForwarded: for=198.51.100.7",
    ]
    answers = [await wire.ask(get(b"/chat/nobody", way, head)) for head in heads]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    await wire.close()


@pytest.mark.settings(**PROXIED, **FIVE)
@each_way
async def test_rotation_inside_an_ipv6_network_helps_nobody(way: bytes, service: Service) -> None:
    wire = Wire(service.port)
    answers = [
        await wire.ask(get(b"/chat/nobody", way, of(f"2001:db8:0:7:{number:x}::{number:x}")))
        for number in range(6)
    ]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    assert (await wire.ask(get(b"/chat/nobody", way, of("2001:db8:0:8::1")))).status == 200
    await wire.close()


#: The holders of five invalid tokens and a good one.
NAMES: Final = ("nobody",) * 5 + ("alice",)


@each_way
async def test_a_token_is_one_client_wherever_it_comes_from(
    way: bytes, start_service: StartService, access_file: Path
) -> None:
    service = await start_service(**PROXIED, **FIVE, access="tokens", access_file=str(access_file))
    async with connected(service) as wire:
        alice, bob = access.bearer("alice"), access.bearer("bob")
        answers = [
            await wire.ask(get(b"/chat/alice", way, alice, of(f"198.51.100.{number}")))
            for number in range(6)
        ]
        assert [answer.status for answer in answers] == [200] * 5 + [429]
        # Another token from the same address is another client.
        assert (await wire.ask(get(b"/chat/bob", way, bob, of("198.51.100.1")))).status == 200


@each_way
async def test_failed_logins_are_charged_to_their_address(
    way: bytes, start_service: StartService, access_file: Path
) -> None:
    rates = {"client_requests_per_s": 0.001, "client_burst": 40}
    service = await start_service(**PROXIED, **rates, access="tokens", access_file=str(access_file))
    async with connected(service) as wire:
        wrong, alice = access.bearer("nobody"), access.bearer("alice")
        answers = [await wire.ask(get(b"/chat/alice", way, wrong, EVE)) for _ in range(5)]
        assert [answer.status for answer in answers] == [401] * 3 + [429] * 2
        assert is_left(answers[-1].headers["retry-after"], 20000)
        # A good token from there goes on working, and so do other addresses.
        assert (await wire.ask(get(b"/chat/alice", way, alice, EVE))).status == 200
        assert (await wire.ask(get(b"/chat/alice", way, wrong, BOB))).status == 401


async def test_failed_sign_ins_are_charged_to_their_address(
    start_service: StartService, access_file: Path
) -> None:
    rates = {"client_requests_per_s": 0.001, "client_burst": 40}
    service = await start_service(**PROXIED, **rates, access="tokens", access_file=str(access_file))
    async with connected(service) as wire:
        begin = [request(b"POST", b"/session", access.bearer(name), EVE) for name in NAMES]
        answers = [await wire.ask(sent) for sent in begin]
        assert [answer.status for answer in answers] == [401] * 3 + [429] * 2 + [200]


async def test_the_address_pays_for_requests_without_a_token(
    start_service: StartService, access_file: Path
) -> None:
    service = await start_service(**PROXIED, **FIVE, access="tokens", access_file=str(access_file))
    async with connected(service) as wire:
        answers = [await wire.ask(get(b"/chat/alice", EVE)) for _ in range(6)]
        assert [answer.status for answer in answers] == [401] * 5 + [429]
        assert (await wire.ask(get(b"/chat/alice", access.bearer("alice"), EVE))).status == 200

"""`chat capacity`: what it prints for people and for programs, and its exit codes."""

import pytest

from tests.cli.conftest import Chat

LOAD = ("capacity", "--lifetime", "1h", "--size", "300", "--requests")


def test_capacity_names_every_part_for_people(chat: Chat) -> None:
    done = chat(*LOAD, "10000", "--text")
    assert done.code == 0
    names = [line[:12].strip() for line in done.out.splitlines()]
    assert names == [
        *("nodes", "batches", "primary", "oplog", "messages", "disk", "memory", "TTL"),
        *("connections", "network", "full first", "then"),
    ]


def test_capacity_exits_with_1_if_a_database_is_too_small(chat: Chat) -> None:
    done = chat(*LOAD, "1000000", "--text")
    assert done.code == 1
    assert "one replica set carries" in done.err


def test_capacity_prints_one_json_object(chat: Chat) -> None:
    done = chat(*LOAD, "10000", "--nodes", "4", "--grace", "600")
    (record,) = done.records
    assert record["nodes"] == 4
    assert record["demand"]["grace_s"] == 600


def test_capacity_refuses_a_load_without_a_size(chat: Chat) -> None:
    done = chat("capacity", "--requests", "10", "--lifetime", "1h")
    assert done.code == 2
    assert "--size" in done.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((*LOAD, "nan"), "--requests"),
        ((*LOAD, "10", "--lifetime", "0s"), "--lifetime"),
        ((*LOAD, "10", "--read-after", "2h"), "--read-after"),
    ],
)
def test_capacity_refuses_what_no_load_can_be(
    chat: Chat, arguments: tuple[str, ...], named: str
) -> None:
    done = chat(*arguments)
    assert done.code == 2
    assert named in done.err


def test_capacity_exits_with_1_if_the_nodes_are_too_few(chat: Chat) -> None:
    done = chat(*LOAD, "50000", "--nodes", "2", "--text")
    assert done.code == 1
    assert "full first   the nodes" in done.out
    assert "2 node(s) carry" in done.err

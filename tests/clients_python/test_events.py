"""Server-Sent Events: the client parses them by the standard, wherever the network cuts them."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from chat_inbox.events import Event, EventParser


@pytest.mark.parametrize(
    ("sent", "events"),
    [
        (b"data: a\n\n", [Event("message", "a", "")]),
        (b"data: a\r\rdata:b\r\n\r\n", [Event("message", "a", ""), Event("message", "b", "")]),
        (b"data: a\ndata:  b\ndata\n\n", [Event("message", "a\n b\n", "")]),
        (b"data: a\r\ndata: b\r\n\r\n", [Event("message", "a\nb", "")]),
        (b"data\n\n", [Event("message", "", "")]),
        (b"\xef\xbb\xbfevent: open\ndata: {}\n\n", [Event("open", "{}", "")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", [Event("message", "b", "")]),
        (b"id: 1\n\nid: 2\0\ndata: a\n\n", [Event("message", "a", "1")]),
        (
            b"id: 1\ndata: a\n\nid\ndata: b\n\n",
            [Event("message", "a", "1"), Event("message", "b", "")],
        ),
        (b": data: a\n:\ndata: b\nother: c\n\n", [Event("message", "b", "")]),
        (b"event: x\n\ndata: a\n\n", [Event("message", "a", "")]),
        (b"data: \xe2\x82\xac \xff\n\n", [Event("message", "€ �", "")]),
        (b"data: never ended\n", []),
    ],
)
def test_events_are_read_by_the_rules(sent: bytes, events: list[Event]) -> None:
    assert EventParser().feed(sent) == events
    parser = EventParser()
    assert [event for byte in sent for event in parser.feed(bytes((byte,)))] == events


@pytest.mark.parametrize(
    ("value", "retry_ms"),
    [("1500", 1500), ("0", 0), ("-1", None), ("1.5", None), ("²", None), ("9" * 5000, 10**9)],
)
def test_a_retry_counts_where_it_is_a_number(value: str, retry_ms: int | None) -> None:
    parser = EventParser()
    assert parser.feed(f"retry: {value}\n\n".encode()) == []
    assert parser.retry_ms == retry_ms


_PIECES = st.sampled_from(
    [
        "\r",
        "\n",
        "\r\n",
        "data",
        "id",
        "event",
        "retry",
        ":",
        ": ",
        " ",
        "é",
        "€",
        "𝄞",
        "\ufeff",
        "7",
    ]
).map(str.encode) | st.binary(max_size=3)


@given(st.lists(_PIECES, max_size=40).map(b"".join), st.lists(st.integers(0, 99), max_size=6))
@example(b"data: a\r\ndata: b\r\n\r\n", [8])
@example(b"\xef\xbb\xbfdata: \xf0\x9d\x84\x9e\r\n\r\n", [1, 10, 15, 16])
def test_the_place_of_a_cut_makes_no_difference(sent: bytes, cuts: list[int]) -> None:
    whole, pieces = EventParser(), EventParser()
    ends = sorted({cut for cut in cuts if cut < len(sent)})
    chunks = [sent[start:end] for start, end in zip([0, *ends], [*ends, len(sent)], strict=True)]
    assert [event for chunk in chunks for event in pieces.feed(chunk)] == whole.feed(sent)
    assert pieces.retry_ms == whole.retry_ms

"""The recording of a terminal in the README shows what its commands print today."""

from rich.text import Text

from tests.docs.recording import COLUMNS, PICTURE, draw, normalized, record, visible
from tests.support.server import Server


def test_the_recording_matches_reality(server: Server) -> None:
    lines = visible(draw(record(server.base.removeprefix("http://"))))
    shown = visible(PICTURE.read_text(encoding="utf-8"))
    assert normalized(lines) == normalized(shown)


def test_a_recording_shows_every_line_as_it_was_printed() -> None:
    for text in ("$ chat read bob", 'a  <b> & "c"', "x" * COLUMNS, ""):
        assert visible(draw([Text("before"), Text(text), Text("after")])) == [
            "before",
            text,
            "after",
        ]


def test_only_values_that_vary_are_normalized() -> None:
    same = [["01a21250a61f00003806f85f6b6168bd, just now"], ["0" * 32 + ", 3 s ago"]]
    assert normalized(same[0]) == normalized(same[1])
    assert normalized(["lunch"]) != normalized(["dinner"])

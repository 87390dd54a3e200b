"""Text that strangers wrote, made fit for a terminal.

A message may hold characters that a terminal obeys: escape sequences that move the cursor, set the
title or answer for the user, and marks that turn the direction of writing. They are written as
what they are, `\\x1b`, so that the reader sees that they were there.
"""

import re

#: C0 but tab and newline, DEL and C1; marks of direction; line and paragraph separators; halves
#: of characters, which no terminal can be sent.
_OBEYED = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    r"\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    """The text, with everything that a terminal would obey spelled out; lines and tabs stay."""
    return _OBEYED.sub(_spelled, text)


def harmless_json(document: str) -> str:
    """The same for a JSON document, as escapes of JSON: it means what it meant."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _spelled(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

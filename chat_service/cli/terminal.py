"""Escapes text from untrusted senders before it reaches a terminal.

A message may contain characters that control a terminal: escape sequences that move the cursor,
set the title or type on the user's behalf, and marks that change the direction of text. They are
shown as escapes such as `\\x1b`, so the reader sees that they were there.
"""

import re

#: C0 except tab and newline, DEL and C1; direction marks; line and paragraph separators; lone
#: surrogates, which cannot be encoded.
_CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
    r"\ud800-\udfff]"
)


def escape_controls(text: str) -> str:
    """Return the text with control characters escaped. Tabs and newlines are kept."""
    return _CONTROLS.sub(_escape, text)


def escape_controls_in_json(document: str) -> str:
    """Return a JSON document with control characters as JSON escapes; its value is unchanged."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", document)


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"

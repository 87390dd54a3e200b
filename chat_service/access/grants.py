"""Rights as operators and issuers write them, and the rights that a subject gets from them."""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

from msgspec import Meta, Struct

from chat_service.api.identity import Rights

#: A name, or the beginning of names and one `*` at its end. `{sub}` stands for the subject. Other
#: braces are refused, because they are misspelled placeholders.
Pattern: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=1024, pattern=r"^(?:[^*{}]|\{sub\})*\*?\Z")
]
_SUBJECT = "{sub}"


class Grants(Struct, frozen=True, forbid_unknown_fields=True):
    """The patterns of names that may be sent to and read, and whether the subject is an operator.

    An entry of the access file, or the claim `chat` of a JSON Web Token.
    """

    send: tuple[Pattern, ...] = ()
    read: tuple[Pattern, ...] = ()
    ops: bool = False

    def rights_of(self, subject: str) -> Rights:
        """Return the rights of a subject: `{sub}` in a pattern is replaced by it, once.

        A subject cannot widen a pattern. If it contains `*`, which would match other names, the
        patterns with `{sub}` grant nothing.
        """
        return Rights(_filled(self.send, subject), _filled(self.read, subject), self.ops)


def _filled(patterns: Sequence[str], subject: str) -> tuple[str, ...]:
    if not subject or "*" in subject:
        return tuple(pattern for pattern in patterns if _SUBJECT not in pattern)
    return tuple(pattern.replace(_SUBJECT, subject) for pattern in patterns)

"""When a message becomes a dead letter, and the dead-letter inbox of an inbox.

A message that was leased `max_deliveries` times without an acknowledgement is probably one that its
readers cannot process. It moves to a dead-letter inbox, so that it does not keep them from their
other messages. `workers.store.moves` moves it.
"""

from hashlib import sha256
from typing import NamedTuple

#: Stands for the name of the inbox in a template.
USERNAME = "{username}"
#: How many digits of its hash a name ends in that was too long.
_HASH_DIGITS = 8


class DeadLetters(NamedTuple):
    """The rules of dead letters. Without `max_deliveries`, no message becomes one.

    `inbox` is the template of the name of a dead-letter inbox, and `username_chars_max` the length
    of the longest name, in code points.
    """

    max_deliveries: int = 0
    inbox: str = f"dead/{USERNAME}"
    username_chars_max: int = 128

    def is_exhausted(self, deliveries: int, *, is_dead_letter: bool) -> bool:
        """Return whether a message becomes a dead letter when its lease ends.

        It was delivered this many times. A message in a dead-letter inbox stays there.
        """
        return 0 < self.max_deliveries <= deliveries and not is_dead_letter

    def inbox_of(self, username: str) -> str:
        """Return the name of the dead-letter inbox of an inbox.

        A name that would be too long is cut, and ends in digits of its hash. The result is the same
        in all processes with the same rules.
        """
        name = self.inbox.replace(USERNAME, username)
        if len(name) <= self.username_chars_max:
            return name
        digits = sha256(name.encode()).hexdigest()[:_HASH_DIGITS]
        return name[: max(self.username_chars_max - _HASH_DIGITS, 0)] + digits

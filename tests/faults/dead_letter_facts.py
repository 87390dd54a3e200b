"""Dead letters in a history, told apart from the messages that they are copies of.

A dead letter has the text of its original, another id, and another inbox. For the rules of
`tests.faults.checker` it is a message of its own, under a text of its own.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from tests.faults.derived_facts import MessageRecord
from tests.faults.history import History, ReadRecord

#: The shortest lifetime of a dead letter, in seconds.
LIFETIME_MIN_S = 3600.0


class Death(NamedTuple):
    """A message moved to its dead-letter inbox, before a read there was answered with its copy."""

    copy: MessageRecord
    seen: ReadRecord


class DeadLetterFacts(NamedTuple):
    """The reads with the texts of dead letters replaced, and the deaths by the original's text."""

    reads: list[ReadRecord]
    deaths: Mapping[str, Death]


def dead_letter_facts(history: History, messages: Mapping[str, MessageRecord]) -> DeadLetterFacts:
    """Find the dead letters that clients saw."""
    if not history.dead_letters.max_deliveries:
        return DeadLetterFacts(history.reads, {})
    seen: dict[str, list[tuple[ReadRecord, str]]] = {}
    reads = []
    for read in history.reads:
        renamed = []
        for message_id, text in read.messages:
            sent = messages.get(text)
            is_copy = (
                sent is not None
                and history.dead_letters.inbox_of(sent.user) == read.user != sent.user
            )
            if is_copy:
                seen.setdefault(text, []).append((read, message_id))
            renamed.append((message_id, _text_of_copy(text) if is_copy else text))
        reads.append(read._replace(messages=tuple(renamed)))
    return DeadLetterFacts(
        reads, {text: _death_of(messages[text], where) for text, where in seen.items()}
    )


def _text_of_copy(text: str) -> str:
    return f"dead letter of {text}"


def _death_of(sent: MessageRecord, seen: list[tuple[ReadRecord, str]]) -> Death:
    first = min((read for read, _ in seen), key=lambda read: read.ended)
    # A drop removes the copy, too.
    lives_until = max(sent.earliest_expiry, sent.earliest_due + LIFETIME_MIN_S)
    if sent.dropped_from < math.inf:
        lives_until = min(lives_until, sent.dropped_from)
    text = _text_of_copy(sent.text)
    copy = MessageRecord(
        *(text, first.user, text, sent.began, first.ended),
        lives_until,
        max(sent.latest_expiry, first.ended + LIFETIME_MIN_S),
        "refused" if sent.outcome == "refused" else "ok",
        frozenset(message_id for _, message_id in seen),
        "",
        sent.dropped_from,
        sent.recreated,
        sent.earliest_due,
        first.ended,
    )
    return Death(copy, first)

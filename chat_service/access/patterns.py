"""Patterns of names: the rules for writing them, and their resolution for one subject.

`chat_service.api.identity.Rights` compares resolved patterns with names.
"""

from collections.abc import Sequence

#: Stands for the name of the caller.
_SUBJECT = "{sub}"
#: The longest pattern and the longest subject, in characters. No username is longer.
PATTERN_MAX, SUBJECT_MAX = 512, 512


def pattern_fault(pattern: object) -> str | None:
    """Return the rule that a pattern breaks, or None."""
    if not isinstance(pattern, str) or not 1 <= len(pattern) <= PATTERN_MAX:
        return f"must be text of 1 to {PATTERN_MAX} characters"
    if "*" in pattern[:-1]:
        return "may have one * only, at its end"
    return None


def resolve(patterns: Sequence[str], subject: str) -> tuple[str, ...]:
    """Return the patterns with `{sub}` replaced by a subject.

    Leaves out a pattern that would end in the subject's own `*`, because that would match other
    names. A subject without a name has no pattern with `{sub}`.
    """
    resolved = []
    for pattern in patterns:
        if _SUBJECT in pattern:
            if not subject or (pattern.endswith(_SUBJECT) and subject.endswith("*")):
                continue
            pattern = pattern.replace(_SUBJECT, subject)
        resolved.append(pattern)
    return tuple(resolved)

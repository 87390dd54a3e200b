"""The rules for posts to an inbox, whose body is the text of the message.

Used by `chat_service.handlers.inbox`. Every function raises a `chat_service.api.problems.Problem`
that names what is wrong.
"""

import re
from collections.abc import Mapping

from chat_service.api.problems import FieldError, invalid
from chat_service.api.request_options import PostOptions, agreed
from chat_service.api.validation import MessageLimits, NewMessage, message_fields, valid_message

#: What shell users get who try `curl -F`.
NO_FORM = (
    "must not be multipart/form-data, because the text would be the whole form; to send a file, "
    "use its content as the body: curl --data-binary @FILE"
)
_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s;"]*)', re.IGNORECASE)
#: Names of UTF-8 and of a part of it.
_UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
_JSON = frozenset({"application/json", "text/json"})


def message_to(
    username: str,
    body: bytes,
    headers: Mapping[str, str],
    options: PostOptions,
    rules: MessageLimits,
) -> NewMessage:
    """Return the message to `username` in a body: its text, or a JSON object without a name.

    The `Content-Type` decides: the body is the text byte for byte unless the type is JSON's.
    """
    content_type = headers.get("Content-Type", "")
    media = content_type.partition(";")[0].strip().lower()
    if media == "multipart/form-data":
        raise invalid(FieldError("Content-Type", NO_FORM))
    for charset in _CHARSET.findall(content_type):
        if charset.lower() not in _UTF_8:
            raise invalid(FieldError("Content-Type", "must not name a charset other than UTF-8"))
    if media in _JSON or media.endswith("+json"):
        return _message_in_json(username, body, options, rules)
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise invalid(FieldError("text", "is not UTF-8")) from None
    return valid_message(text, username, *options, rules)


def _message_in_json(
    username: str, body: bytes, options: PostOptions, rules: MessageLimits
) -> NewMessage:
    text, named, timeout, delay = message_fields(body)
    if named is not None and named != username:
        raise invalid(FieldError("username", "must be absent, or the name in the path"))
    # The body's value comes first, because only there a value of another type can equal a number.
    timeout = agreed("timeout", timeout, options.timeout)
    delay = agreed("delay", delay, options.delay)
    return valid_message(text, username, timeout, delay, rules)
